"""The routing view shows what the server tells of each token, as a picture and in words."""

import json
import re

import pytest
from playwright.sync_api import expect

from pages import answered, opened, send, set_number

pytest_plugins = ["pages"]
QUESTION = [{"role": "user", "content": "What is 58 minus 23?"}]
LAYERS, EXPERTS, ACTIVE = 8, 18, 4


@pytest.fixture(scope="module")
def told(server) -> list:
    """The experts [tokens][layers][active] of the greedy answer."""
    answer = server.client.chat.completions.create(
        model="nano", messages=QUESTION, temperature=0, extra_body={"x_mobilemoe": {"routing": True}}
    )
    return answer.choices[0].x_mobilemoe["routing"]


@pytest.fixture
def view(page, told):
    """The page with the greedy answer, its routing view and the view's table open."""
    set_number(page, "temperature", "0")
    page.click("#toggle-routing")
    send(page, QUESTION[0]["content"])
    answered(page)
    page.click("#as-text summary")
    expect(page.locator("#token-text")).to_contain_text(f"Token {len(told)} of {len(told)}")  # drawn a frame later
    return page


def rows(page) -> list[list[str]]:
    found = page.locator("#routing-table tbody tr")
    expect(found).to_have_count(LAYERS)
    return [[cell.inner_text() for cell in row.locator("th, td").all()] for row in found.all()]


def pixels(page) -> list[list[float]]:
    """How far each cell's middle is from the palest one's colour."""
    return page.evaluate(
        """([layers, experts]) => {
            const canvas = document.getElementById("map");
            const scale = canvas.width / canvas.clientWidth;
            const across = (canvas.clientWidth - 26) / experts, down = (canvas.clientHeight - 16) / layers;
            const draw = canvas.getContext("2d");
            return Array.from({ length: layers }, (_, l) => Array.from({ length: experts }, (_, e) =>
                draw.getImageData((26 + (e + 0.45) * across) * scale, (16 + (l + 0.45) * down) * scale, 1, 1).data[3]));
        }""",
        [LAYERS, EXPERTS],
    )


def test_each_token_shows_its_experts_by_layer(view, told):
    expect(view.locator("#token-text")).to_contain_text(f"Token {len(told)} of {len(told)}")
    assert "".join(view.locator("#tokens span").all_inner_texts()) == view.inner_text(".message:not(.mine) .text")
    for token in (len(told) - 1, 0, 5):
        view.locator("#tokens span").nth(token).hover()
        expect(view.locator("#token-text")).to_contain_text(f"Token {token + 1} of")
        expected = [", ".join(str(expert + 1) for expert in layer) for layer in told[token]]
        expect(view.locator("#routing-table tbody td:nth-child(2)")).to_have_text(expected)


def test_the_slider_moves_along_the_tokens_and_says_where_it_is(view, told):
    slider = view.locator("#token")
    slider.focus()
    view.keyboard.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", f"Token 1 of {len(told)}: “58”")
    view.keyboard.press("ArrowRight")
    expect(view.locator("#token-text")).to_contain_text(f"Token 2 of {len(told)}")
    expect(view.locator("#tokens .selected")).to_have_count(1)
    expected = [", ".join(str(expert + 1) for expert in layer) for layer in told[1]]
    expect(view.locator("#routing-table tbody td:nth-child(2)")).to_have_text(expected)


def test_the_map_is_darker_where_more_tokens_went(view, told):
    counts = [[sum(expert in token[layer] for token in told) for expert in range(EXPERTS)] for layer in range(LAYERS)]
    shades = pixels(view)
    by_count: dict[int, set] = {}
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            by_count.setdefault(counts[layer][expert], set()).add(shades[layer][expert])
    assert all(len(each) == 1 for each in by_count.values()), "equal counts look equal"
    in_order = [shade for count in sorted(by_count) for shade in by_count[count]]
    assert in_order == sorted(in_order)
    assert in_order[0] < in_order[-1]
    never = [str(row.count(0)) for row in counts]
    assert [row[3] for row in rows(view)] == never
    unused = sum(map(int, never))
    assert f"{unused} of {LAYERS * EXPERTS} experts were never used" in view.get_attribute("#map", "aria-label")


def test_the_map_counts_the_answer_or_the_whole_conversation(view, told):
    send(view, "And 10 plus 5?")
    answered(view, 2)
    label = view.locator("#map")
    second = view.locator("#tokens span").count()
    expect(label).to_have_attribute("aria-label", over_tokens(len(told) + second))
    view.check("[name=scope][value=answer]", force=True)
    expect(label).to_have_attribute("aria-label", over_tokens(second))


def over_tokens(tokens: int) -> re.Pattern:
    return re.compile(rf"over {tokens} tokens")


def test_the_view_grows_while_the_answer_is_written(context, slow_server):
    page = opened(context, slow_server)
    page.click("#toggle-routing")
    send(page, "Once upon a time")
    tokens = page.locator("#tokens span")
    expect(tokens).not_to_have_count(0)
    some = tokens.count()
    expect(tokens.nth(some)).to_be_attached()  # one more
    expect(page.locator("#token-text")).not_to_contain_text(f"of {some}:")
    assert page.locator(".message.writing").count() == 1
    page.click("#stop")
    answered(page)


def test_who_does_not_want_it_is_not_told(page):
    page.click("#toggle-routing")
    page.uncheck("#with-routing")
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, QUESTION[0]["content"])
    assert "x_mobilemoe" not in asked.value.post_data_json
    answered(page)
    expect(page.locator("#routing-view")).to_be_hidden()


def test_the_routing_is_kept_with_the_conversation_and_not_exported(view, told, tmp_path):
    view.reload()
    expect(view.locator(".message")).to_have_count(2)
    view.click("#toggle-routing")
    expect(view.locator("#token-text")).to_contain_text(f"of {len(told)}")
    view.click("#actions")
    with view.expect_download() as saved:
        view.get_by_text("Export as JSON").click()
    saved.value.save_as(tmp_path / "saved.json")
    [conversation] = json.loads((tmp_path / "saved.json").read_text())["conversations"]
    assert all("routing" not in message for message in conversation["messages"])
