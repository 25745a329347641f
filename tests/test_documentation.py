"""The documents agree with the repository: links and named files exist, and no picture is left over."""

import re

import pytest

from places import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def anchors(text):
    """The anchors that GitHub gives to the headings of a Markdown text."""
    seen, found = {}, set()
    for heading in re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    ):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        seen[anchor] = seen.get(anchor, -1) + 1
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_exist(document):
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path.name != "LOG.md"], ids=lambda path: path.name)
def test_files_that_are_named_exist(document):
    """LOG.md is left out, because its entries name the files of their day."""
    text = document.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:src|tests|docs|recipes|benchmarks|native|examples)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


def test_every_picture_is_shown():
    texts = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    assert [path.name for path in (ROOT / "docs").glob("*.png") if f"{path.name})" not in texts] == []
