"""Everybody can use the page: with the keyboard alone, a screen reader, a phone, in the dark, without motion."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from pages import answered, answers_with, opened, send

pytest_plugins = ["pages"]
ANSWER = """# Title

Text with `code` and a [link](https://example.org).

```python
print(1)
```

| a | b |
|--|--|
| 1 | 2 |

- [x] done
"""
PHONES = [(320, 568), (390, 844), (844, 390)]


COVERED = ("landmark-one-main", "page-has-heading-one")  # the conversation is out of reach below a sheet


def faults(page, *, but: tuple[str, ...] = ()) -> list[str]:
    """What axe finds, by the rules of WCAG 2.2 at the levels A and AA and by its own best practices; contrast too."""
    found = [rule for rule in Axe().run(page).response["violations"] if rule["id"] not in but]
    return [f"{rule['id']}: {[node['target'] for node in rule['nodes']]}" for rule in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_state_of_the_page_breaks_a_rule(context, server, scheme):
    page = opened(context, server)
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    assert faults(page) == []
    send(page, "What is 58 minus 23?")  # it tells its routing
    answered(page)
    answers_with(page, ANSWER)
    send(page, "Show me")
    answered(page, 2)
    assert faults(page) == []
    for panel in ("settings", "routing"):
        page.click(f"#toggle-{panel}")
        page.click(f"#{panel} summary")
        assert faults(page) == [], panel
    page.click("#actions")
    assert faults(page) == []
    page.get_by_text("Rename").click()
    assert faults(page) == []
    page.keyboard.press("Escape")
    page.click("#help")
    assert faults(page) == []


@pytest.mark.parametrize(("width", "height"), PHONES)
def test_on_a_phone_nothing_is_wider_than_the_screen(context, server, width, height):
    page = opened(context, server)
    page.emulate_media(reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": height})
    wide = "document.documentElement.scrollWidth > innerWidth || document.body.scrollWidth > innerWidth"
    assert not page.evaluate(wide)
    cells = "| " + "cell | " * 30 + "\n" + "|--" * 30 + "|"
    answers_with(page, "A " + "long" * 100 + "\n\n```\n" + "code " * 100 + "\n```\n\n" + cells)
    send(page, "word" * 100)
    answered(page)
    scroll = "document.querySelector('#scroll')"
    assert not page.evaluate(f"{scroll}.scrollWidth > {scroll}.clientWidth")
    for drawer in ("sidebar", "settings", "routing"):
        page.click(f"#toggle-{drawer}")
        assert not page.evaluate(wide)
        body = page.locator(f"#{drawer}").bounding_box()
        assert body["x"] >= 0
        assert body["x"] + body["width"] <= width + 1
        assert faults(page, but=COVERED) == []
        page.keyboard.press("Escape")
        expect(page.locator(f"#toggle-{drawer}")).to_be_focused()
    box = page.locator("#send").bounding_box()
    assert box["y"] + box["height"] <= height


def test_a_phone_shows_the_list_and_comes_back_to_the_conversation(context, server):
    page = opened(context, server)
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.locator("#sidebar")).to_be_hidden()
    answers_with(page, "An answer")
    send(page, "One")
    answered(page)
    page.click("#toggle-sidebar")
    assert page.evaluate("document.querySelector('main').inert")
    page.click("#new")
    expect(page.locator("#sidebar")).to_be_hidden()
    expect(page.locator("#welcome")).to_be_visible()
    page.click("#toggle-sidebar")
    page.click("#conversations .name")
    expect(page.locator(".message .text")).to_have_text(["One", "An answer"])


def test_the_keyboard_alone_is_enough(page):
    focused = lambda: page.evaluate("document.activeElement.id || document.activeElement.className")  # noqa: E731
    press = page.keyboard.press
    answers_with(page, "An answer")
    assert focused() == "prompt"
    page.keyboard.type("One")
    press("Shift+Enter")
    page.keyboard.type("two")
    press("Enter")
    answered(page)
    expect(page.locator(".mine .text")).to_have_text("One\ntwo", use_inner_text=True)
    press("Escape")
    press("k")
    assert focused() == "message"
    press("k")
    assert focused() == "message mine"
    press("e")
    assert focused() == "editor"
    press("Escape")
    assert focused() == "plain edit"
    press("r")
    expect(page.locator(".count")).to_have_text("2/2")
    answered(page)
    press("s")
    expect(page.locator("#settings")).to_be_visible()
    press("Escape")
    expect(page.locator("#settings")).to_be_hidden()
    press("x")
    expect(page.locator("#routing")).to_be_visible()
    press("Escape")
    press("?")
    expect(page.locator("#shortcuts")).to_be_visible()
    press("Escape")
    press("n")
    expect(page.locator("#welcome")).to_be_visible()
    assert focused() == "prompt"


def test_single_keys_can_be_turned_off(page):
    page.click("#help")
    page.uncheck("#single-keys")
    page.keyboard.press("Escape")
    page.locator("#scroll").focus()
    page.keyboard.press("s")
    expect(page.locator("#settings")).to_be_hidden()
    page.reload()
    page.locator("#scroll").focus()
    page.keyboard.press("s")
    expect(page.locator("#settings")).to_be_hidden()


def test_tab_walks_through_all_controls_and_each_shows_that_it_has_the_focus(page):
    answers_with(page, "An answer")
    send(page, "One")
    answered(page)
    page.reload()
    expect(page.locator("#state")).to_have_text("nano")
    expect(page.get_by_label("Write another answer")).to_be_visible()
    seen = []
    while (name := tabbed(page)) is not None:
        seen.append(name)
    wanted = ["Skip to the message field", "Close the list", "new", "One", "Actions for One", "system", "import"]
    wanted += ["export-all", "help", "toggle-routing", "toggle-settings", "actions", "Edit and send again", "Copy"]
    wanted += ["Copy", "Write another answer", "prompt"]
    assert [name for name in seen if name in wanted] == wanted


def tabbed(page) -> str | None:
    """The control that the next Tab reaches, which has to look different from then on; None behind the last."""
    page.keyboard.press("Tab")
    name, shown = page.evaluate(
        """() => {
            const node = document.activeElement;
            if (node === document.body) return [null, true];
            const look = (each) => {
                const style = each && getComputedStyle(each);
                return style && (style.outlineStyle !== "none" || style.boxShadow !== "none");
            };
            const name = node.id || node.getAttribute("aria-label") || node.value || node.textContent.trim();
            return [name, look(node) || look(node.nextElementSibling) || look(node.parentElement)];
        }"""
    )
    assert shown, name
    return name


def focused(page) -> str:
    return page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.className")


def test_what_has_the_focus_keeps_it_while_the_page_shows_what_another_tab_did(page, server):
    answers_with(page, "An answer")
    send(page, "One")
    answered(page)
    other = page.context.new_page()
    other.goto(page.url)
    answers_with(other, "Another answer")
    expect(other.get_by_label("Write another answer")).to_be_visible()
    page.get_by_label("Actions for One").focus()
    other.click("#new")
    send(other, "Two")
    answered(other)
    expect(page.locator("#conversations .name")).to_have_text(["Two", "One"])
    assert focused(page) == "Actions for One"
    page.get_by_label("Write another answer").focus()
    other.get_by_label("Actions for One").click()
    other.get_by_text("Rename").click()
    other.fill("#ask-input", "The first")
    other.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text("The first")
    assert focused(page) == "Write another answer"
    other.close()


def test_the_button_of_another_version_keeps_the_focus_or_leaves_it_to_its_message(page):
    answers_with(page, "An answer")
    send(page, "One")
    answered(page)
    for count in "23":
        page.get_by_label("Write another answer").click()
        expect(page.locator(".count")).to_have_text(f"{count}/{count}")
    page.get_by_label("Earlier version").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".count")).to_have_text("2/3")
    assert focused(page) == "Earlier version"
    page.keyboard.press("Enter")
    expect(page.locator(".count")).to_have_text("1/3")
    assert focused(page) == "message"


def test_a_screen_reader_is_told_of_an_answer_politely_and_once(page):
    answers_with(page, "One sentence. ", "Another ", "one. ", "The end")
    send(page, "Tell me")
    answered(page)
    live = page.locator("#live")
    assert live.get_attribute("aria-live") == "polite"
    expect(live).to_contain_text("End of the answer.")
    told = " ".join(live.locator("p").all_inner_texts())
    assert told == "One sentence. Another one. The end End of the answer."
    assert page.locator(".message").last.get_attribute("aria-busy") == "false"


def test_the_theme_is_the_systems_until_one_is_chosen(page):
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(paper)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(paper)
    assert light != dark
    page.check("[name=theme][value=light]")
    assert page.evaluate(paper) == light
    page.reload()
    expect(page.locator("[name=theme][value=light]")).to_be_checked()
    assert page.evaluate(paper) == light
    page.check("[name=theme][value=system]")
    assert page.evaluate(paper) == dark


def test_who_wants_no_motion_gets_none(page):
    page.emulate_media(reduced_motion="reduce")
    seconds = "parseFloat(getComputedStyle(node).transitionDuration)"
    moving = f"[...document.querySelectorAll('*')].filter(node => {seconds} > 0).length"
    assert page.evaluate(moving) == 0
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) > 0
