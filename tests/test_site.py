"""`make docs`: every document is in the site, a link that leads nowhere fails, a page asks nobody else for anything."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from places import ROOT

SITE = ROOT / "build" / "docs" / "site"


@pytest.fixture(scope="module")
def pages():
    done = subprocess.run([sys.executable, ROOT / "tools" / "build_docs.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {str(path.relative_to(SITE)): path.read_text(encoding="utf-8") for path in SITE.rglob("*.html")}


class _Fetched(HTMLParser):
    """The addresses that a browser fetches by itself when it shows a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        names = {"link": ["href"]}.get(tag, [] if tag == "a" else ["src", "srcset", "data", "poster"])
        self.found += [value for name, value in attributes if name in names and value]


def test_every_document_is_a_page(pages):
    for path in (ROOT / "docs").glob("*.md"):
        assert f"docs/{path.stem}.html" in pages
    assert "Small mixture-of-experts language models for phones" in pages["index.html"]


def test_a_page_fetches_nothing_from_elsewhere(pages):
    for name, text in pages.items():
        parser = _Fetched()
        parser.feed(text)
        assert any(address.endswith(".js") for address in parser.found)
        assert not [address for address in parser.found if re.match(r"(\w+:)?//", address)], name
    for style in SITE.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.parametrize("link", ["[x](no-page.md)", "[x](guide.md#no-heading)", "![x](no-picture.png)"])
def test_a_link_that_leads_nowhere_fails(pages, link, tmp_path):
    source = tmp_path / "source"
    (source / "docs").mkdir(parents=True)
    (source / "docs" / "guide.md").write_text("# Guide\n")
    (source / "README.md").write_text("# Start\n[guide](docs/guide.md)\n")
    settings = (ROOT / "mkdocs.yml").read_text().replace("build/docs", str(tmp_path))
    (tmp_path / "mkdocs.yml").write_text(re.sub(r"^nav:\n(?: .*\n)+", "", settings, flags=re.MULTILINE))

    def build():
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", tmp_path / "mkdocs.yml"]
        return subprocess.run(command, capture_output=True, text=True)

    assert (done := build()).returncode == 0, done.stderr
    (source / "docs" / "guide.md").write_text(f"# Guide\n{link}\n")
    done = build()
    assert done.returncode == 1
    assert "contains a link" in done.stderr
