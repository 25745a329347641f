"""Markdown becomes what CommonMark and GitHub make of it, as far as models write it."""

import pytest
from playwright.sync_api import expect

from pages import answered, answers_with, copy_by, send

pytest_plugins = ["pages"]

CASES = {
    "a *b* **c** ***d*** _e_ __f__ ~~g~~": (
        "<p>a <em>b</em> <strong>c</strong> <em><strong>d</strong></em> <em>e</em> <strong>f</strong> <del>g</del></p>"
    ),
    "snake_case_name 2*3*4 a ** b": "<p>snake_case_name 2<em>3</em>4 a ** b</p>",
    "**bold *both* bold**": "<p><strong>bold <em>both</em> bold</strong></p>",
    "*open and **closed**": "<p>*open and <strong>closed</strong></p>",
    "\\*no\\* `a*b*` ``c ` d``": "<p>*no* <code>a*b*</code> <code>c ` d</code></p>",
    "one\ntwo\n\nthree": "<p>one<br>two</p><p>three</p>",
    "# One\n### Three #\n####### seven": "<h3>One</h3><h5>Three</h5><p>####### seven</p>",
    "a\n---\nb\n***": "<p>a</p><hr><p>b</p><hr>",
    "> a\n> > b\n\nc": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>",
    "- a\n- b\n  - c\n  - d\n- e": "<ul><li>a</li><li>b<ul><li>c</li><li>d</li></ul></li><li>e</li></ul>",
    "3. a\n4. b\n\ntext": '<ol start="3"><li>a</li><li>b</li></ol><p>text</p>',
    "1. a\n\n   b\n2. c": '<ol start="1"><li><p>a</p><p>b</p></li><li><p>c</p></li></ol>',
    "1. a\n   - b\n   - c\n2. d": '<ol start="1"><li>a<ul><li>b</li><li>c</li></ul></li><li>d</li></ol>',
    "- a\n\n1. b": '<ul><li>a</li></ul><ol start="1"><li>b</li></ol>',
    "text\n- a\nmore": "<p>text</p><ul><li>a<br>more</li></ul>",
    "| a | b |\n|:-:|--:|\n| `x` | 1 |\n| y |": (
        '<div><table><thead><tr><th class="center">a</th><th class="to-end">b</th></tr></thead><tbody>'
        '<tr><td class="center"><code>x</code></td><td class="to-end">1</td></tr>'
        '<tr><td class="center">y</td><td class="to-end"></td></tr></tbody></table></div>'
    ),
    "a | b\nno table": "<p>a | b<br>no table</p>",
    "[a *b*](https://x.example/c_d 'title')": '<p><a href="https://x.example/c_d">a <em>b</em></a></p>',
    "see https://x.example/a_(b), or <https://y.example>.": (
        '<p>see <a href="https://x.example/a_(b)">https://x.example/a_(b)</a>, '
        'or <a href="https://y.example/">https://y.example</a>.</p>'
    ),
    "[a](b.html) [c] (d)": "<p><span>a</span> [c] (d)</p>",
    "![cat](https://x.example/cat.png)": '<p><a href="https://x.example/cat.png">Picture: cat</a></p>',
    "a <b>c</b> &amp; d": "<p>a &lt;b&gt;c&lt;/b&gt; &amp;amp; d</p>",
    "```text\na < b\n\n  c\n```\nd": "<pre>a &lt; b\n\n  c</pre><p>d</p>",
    "~~~\n```\n~~~": "<pre>```</pre>",
    "- a\n  ```\n  b\n\n    c\n  ```": "<ul><li>a<pre>b\n\n  c</pre></li></ul>",
    "```python\nopen": "<pre>open</pre>",
}
# The attributes that stand on every link, table and block of code are left out; code is its text.
SHOW = """async (text) => {
    const { showMarkdown } = await import("/page/markdown.js");
    const box = document.createElement("div");
    for (let end = 1; end <= text.length; end += 1) showMarkdown(box, text.slice(0, end));
    for (const code of box.querySelectorAll(".code")) {
        const plain = document.createElement("pre");
        plain.textContent = code.querySelector("pre").textContent;
        code.replaceWith(plain);
    }
    for (const link of box.querySelectorAll("a")) ["target", "rel"].forEach((name) => link.removeAttribute(name));
    const tables = [...box.querySelectorAll("div")];
    for (const table of tables) table.getAttributeNames().forEach((name) => table.removeAttribute(name));
    return box.innerHTML;
}"""


def test_each_text_becomes_what_it_says_however_it_arrives(page):
    assert {text: page.evaluate(SHOW, text) for text in CASES} == CASES


def test_code_has_its_language_its_colours_and_can_be_copied(page):
    code = 'def add(a):\n    return a + 1  # "one"'
    answers_with(page, f"```python\n{code}\n```")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    send(page, "Write code")
    block = answered(page).locator(".code")
    expect(block.locator("figcaption span")).to_have_text("python")
    assert block.locator(".word").all_inner_texts() == ["def", "return"]
    assert block.locator(".comment").all_inner_texts() == ['# "one"']
    assert block.locator(".number").all_inner_texts() == ["1"]
    copy_by(page, block.get_by_label("Copy the code"))
    assert page.evaluate("navigator.clipboard.readText()") == code


@pytest.mark.parametrize("language", ["python", "js", "sql", "c", "unheard-of", ""])
def test_coloured_code_is_the_code(page, language):
    code = "x = \"a\\\"b' # // -- /* not closed\n'c\n`d\n\t\U0001f600 if 0x1f.5e3 _y9 é"
    shown = """async ([code, language]) =>
        (await import("/page/markdown.js")).codeBlock(code, language).querySelector("code").textContent"""
    assert page.evaluate(shown, [code, language]) == code


def test_finished_parts_of_a_growing_answer_are_left_alone(page):
    """What a user has selected in them stays selected."""
    same = page.evaluate(
        """async () => {
            const { showMarkdown } = await import("/page/markdown.js");
            const box = document.createElement("div");
            showMarkdown(box, "one\\n\\ntwo");
            const [first, second] = box.children;
            showMarkdown(box, "one\\n\\ntwo and more\\n\\nthree");
            return [box.children[0] === first, box.children[1] === second, box.children.length];
        }"""
    )
    assert same == [True, False, 3]
