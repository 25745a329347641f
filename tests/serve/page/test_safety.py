"""Nothing that a model, a file or a stranger writes becomes more than text, and the page asks its own server only.

Every test here and beside it also fails for a request to another origin, a violation of the page's policy, an error of
a script, a dialog, or a new tab: see `pages.context`.
"""

import json
import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from mobilemoe.serve import page as page_routes
from mobilemoe.serve.page import PATHS
from pages import answered, answers_with, opened, send, set_number
from servers import KEY, running

pytest_plugins = ["pages"]

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)><style>body{display:none}</style>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt:alert(1))",
    "[click](java\tscript:alert(1))",
    "[click]( javascript:alert(1))",
    "[click](<javascript:alert(1)>)",
    "[click](data:text/html,<script>alert(1)</script>)",
    "[click](vbscript:msgbox)",
    "[click](//evil.example)",
    '[click](https://good.example/"onmouseover="alert(1))',
    "![picture](https://evil.example/pixel.png)",
    "![picture](javascript:alert(1))",
    "<javascript:alert(1)>",
    "<https://good.example/><img src=x onerror=alert(1)>",
    "```html\n<script>alert(1)</script>\n```",
    "```<img/src=x/onerror=alert(1)>\ncode\n```",
    "| a | b |\n|--|--|\n| <img src=x onerror=alert(1)> | [x](javascript:alert(1)) |",
    "# <img src=x onerror=alert(1)>\n> <script>alert(1)</script>\n- <b onclick=alert(1)>x</b>",
    "[[a](https://one.example)](https://two.example)",
    "`</code><script>alert(1)</script>`",
]
MADE = {
    *(
        "P",
        "H3",
        "H4",
        "H5",
        "H6",
        "STRONG",
        "EM",
        "DEL",
        "CODE",
        "PRE",
        "A",
        "BR",
        "HR",
        "UL",
        "OL",
        "LI",
        "BLOCKQUOTE",
    ),
    *("TABLE", "THEAD", "TBODY", "TR", "TH", "TD", "DIV", "SPAN", "FIGURE", "FIGCAPTION", "BUTTON", "svg", "path"),
}


@pytest.fixture(scope="module")
def locked():
    with running() as server:
        yield server


def test_hostile_answers_become_text_and_links_of_the_web_only(page):
    answers_with(page, *("\n\n" + attack for attack in ATTACKS))
    send(page, "<img src=x onerror=alert(1)>")
    answer = answered(page)
    tags = answer.evaluate("node => [...new Set([...node.querySelectorAll('*')].map(each => each.tagName))]")
    assert set(tags) <= MADE
    names = "node => [...node.querySelectorAll('*')].flatMap(each => each.getAttributeNames())"
    assert not [name for name in answer.evaluate(names) if name.startswith("on") or name in ("src", "style", "srcdoc")]
    links = answer.evaluate("node => [...node.querySelectorAll('a')].map(a => [a.href.slice(0, 8), a.rel, a.target])")
    assert len(links) >= 4
    assert {*map(tuple, links)} == {("https://", "noopener noreferrer nofollow", "_blank")}
    assert answer.evaluate("node => node.querySelectorAll('a a').length") == 0
    expect(page.locator(".mine .text")).to_have_text("<img src=x onerror=alert(1)>")
    expect(page.locator("#conversations .name")).to_have_text("<img src=x onerror=alert(1)>")
    page.locator("#actions").click()
    page.get_by_text("Delete").click()
    expect(page.locator("#ask-text")).to_contain_text("<img src=x")


def test_hostile_answers_are_text_while_they_grow_too(page):
    """Each beginning of a text is shown for a moment; here all of them, one after the other."""
    shown = page.evaluate(
        """async (texts) => {
            const { showMarkdown } = await import("/page/markdown.js");
            const box = document.body.appendChild(document.createElement("div"));
            for (const text of texts) for (let end = 0; end <= text.length; end += 1) {
                showMarkdown(box, text.slice(0, end));
                if (box.querySelector("script, img, iframe, style, [onerror], a:not([href^=http])")) return text;
            }
            return "nothing";
        }""",
        ATTACKS,
    )
    assert shown == "nothing"


def test_a_hostile_file_brings_text_and_no_fields_of_its_own(page, tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    message = {"id": evil, "parent": None, "role": "user", "text": evil, "onclick": evil}
    answer = {
        "id": "b",
        "parent": evil,
        "role": "assistant",
        "text": evil,
        "finish": evil,
        "error": evil,
        "stats": evil,
    }
    settings = {"system": evil, "temperature": evil, "top_p": 7, "format": evil, "schema": "{}", "model": evil}
    conversation = {"id": evil, "title": evil, "messages": [message, answer], "head": "b", "settings": settings}
    file = {"kind": "mobilemoe conversations", "version": 1, "conversations": [conversation]}
    text = json.dumps(file).replace('"head"', '"__proto__": {"polluted": true}, "head"')
    (tmp_path / "evil.json").write_text(text)
    page.set_input_files("#import-file", tmp_path / "evil.json")
    expect(page.locator("#title")).to_have_text(evil)
    expect(page.locator(".message .text")).to_have_text([evil, evil])
    assert page.evaluate("({}).polluted") is None
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, "And now?")
    body = asked.value.post_data_json
    assert body["temperature"] == 0.7
    assert body["top_p"] == 1
    assert body["model"] == "nano"
    assert "response_format" not in body
    answered(page, 2)


@pytest.mark.parametrize("part", ["%3Cimg%20src=x%20onerror=alert(1)%3E", "%", "a"])
def test_an_address_from_elsewhere_opens_nothing_of_its_own(page, server, part):
    page.goto(f"{server.root}/#{part}")
    page.reload()
    expect(page.locator("#welcome")).to_be_visible()


def test_every_file_of_the_page_has_the_headers_and_is_the_same_for_all(server, locked):
    client = httpx.Client()
    for path in sorted(PATHS):
        answer = client.get(server.root + path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "require-trusted-types-for 'script'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert client.get(locked.root + path).content == answer.content
        assert client.head(server.root + path).status_code == 200
        assert client.post(server.root + path, json={}).status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page",
        "/page/index.html",
        "/page/../page.py",
        "/page/..%2fpage.py",
        "/page/nothing.js",
        "/page/%00",
        "//",
    ],
)
def test_no_other_path_gives_a_file(server, locked, path):
    assert httpx.get(server.root + path).status_code == 404
    assert httpx.get(locked.root + path).status_code == 401


def test_the_page_is_refused_under_a_foreign_name(server):
    assert httpx.get(f"{server.root}/", headers={"Host": "evil.example"}).status_code == 403


def test_the_page_asks_for_the_key_and_forgets_it_with_the_tab(context, locked):
    page = context.new_page()
    page.goto(f"{locked.root}/")
    expect(page.locator("#ask-title")).to_have_text("API key")
    page.fill("#ask-input", "wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#ask-fault")).to_contain_text("API key is missing or wrong")
    page.fill("#ask-input", KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#ask")).to_be_hidden()
    expect(page.locator("#state")).to_have_text("nano")
    set_number(page, "temperature", "0")
    send(page, "What is 58 minus 23?")
    assert "35" in answered(page).inner_text()
    page.reload()
    expect(page.locator("#state")).to_have_text("nano")
    assert KEY not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
    page.close()
    opened_anew = context.new_page()
    opened_anew.goto(f"{locked.root}/")
    expect(opened_anew.locator("#ask-title")).to_have_text("API key")


def test_a_hostile_text_takes_no_long_time(page):
    """Texts at which a careless reader of Markdown takes minutes."""
    texts = {
        "stars": "*a " * 6000,
        "pairs": "*a_" * 6000,
        "strong": "*" * 9000 + "a" + "*" * 9000,
        "brackets": "[" * 18000,
        "links": "[a](" * 5000,
        "ticks": "".join("`" * (n % 90 + 1) + "a" for n in range(400)),
        "quotes": ">" * 20000,
        "nested": "\n".join("  " * n + "- x" for n in range(1500)),
        "blank": "- a\n" + "\n" * 50000 + "- b",
        "dashes": "- " * 20000 + "x",
        "bars": "|" * 20000 + "\n" + "|-" * 10000,
        "addresses": "http://a" + ")" * 19000,
        "angles": "<" * 19000,
        "escapes": "\\*" * 9000,
    }
    took = page.evaluate(
        """async (texts) => {
            const { showMarkdown } = await import("/page/markdown.js");
            const took = {};
            for (const [name, text] of Object.entries(texts)) {
                took[name] = Infinity;
                for (let attempt = 0; attempt < 5 && took[name] > 2000; attempt += 1) {  // the machine may be busy
                    const begin = performance.now();
                    showMarkdown(document.createElement("div"), text);
                    took[name] = Math.min(took[name], Math.round(performance.now() - begin));
                }
            }
            return took;
        }""",
        texts,
    )
    assert not {name: milliseconds for name, milliseconds in took.items() if milliseconds > 2000}, took


def test_where_nothing_is_kept_the_page_says_so(context, server):
    context.add_init_script("indexedDB.open = () => { throw new Error('no') }")
    page = opened(context, server)
    expect(page.locator("#notice")).to_contain_text("keeps nothing")
    send(page, "What is 58 minus 23?")
    answered(page)
    expect(page.locator("#conversations .name")).to_have_count(1)


def test_no_file_of_the_page_turns_text_into_html_or_names_another_host():
    """In browsers, too, that do not know the policy's rule for it."""
    folder = Path(page_routes.__file__).parent / "assets"
    for file in folder.iterdir():
        text = file.read_text()
        for forbidden in (
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
            "new Function",
            "style=",
        ):
            assert forbidden not in text, (file.name, forbidden)
        assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}, file.name
