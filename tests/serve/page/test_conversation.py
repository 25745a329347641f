"""Talking to a model on the page: what it writes, and what a user can do with it."""

import json
import time

import pytest
from playwright.sync_api import expect

from pages import answered, answers_with, copy_by, opened, send, set_number

pytest_plugins = ["pages"]
QUESTION = "What is 58 minus 23?"


def test_greedy_answers_are_those_of_the_verb_chat_turn_by_turn(page, nano):
    set_number(page, "temperature", "0")
    messages = []
    for turn, question in enumerate((QUESTION, "And 10 plus 5?"), 1):
        messages.append({"role": "user", "content": question})
        expected = nano.generate(messages=messages)
        send(page, question)
        assert answered(page, turn).inner_text() == expected.strip()
        messages.append({"role": "assistant", "content": expected})


def test_the_system_prompt_and_the_settings_are_sent(page):
    page.click("#toggle-settings")
    page.fill("#set-system", "Answer briefly.")
    for name, value in (("temperature", "0.3"), ("top_k", "7"), ("seed", "11"), ("max_tokens", "1")):
        set_number(page, name, value)
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, QUESTION)
    body = asked.value.post_data_json
    assert body["messages"] == [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": QUESTION},
    ]
    assert body.items() >= {"temperature": 0.3, "top_k": 7, "seed": 11, "max_tokens": 1, "stream": True}.items()
    assert "min_p" not in body
    answered(page)
    expect(page.locator(".ending")).to_contain_text("longest length")


def test_a_number_out_of_range_is_marked_and_not_taken(page):
    set_number(page, "temperature", "9")
    assert page.get_attribute("#set-temperature", "aria-invalid") == "true"
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, QUESTION)
    assert asked.value.post_data_json["temperature"] == 0.7
    answered(page)


def test_an_answer_grows_and_can_be_stopped(slow_page, slow_server):
    page, text = slow_page, slow_page.locator(".message:not(.mine) .text")
    set_number(page, "temperature", "0")
    send(page, "Once upon a time")
    expect(page.locator(".message.writing")).to_have_count(1)
    expect(text).not_to_be_empty()
    some = text.inner_text()
    expect(text).not_to_have_text(some)
    assert text.inner_text().startswith(some[:-1])
    page.click("#stop")
    kept = answered(page).inner_text()
    expect(page.locator(".ending")).to_have_text("Stopped.")
    slow_server.wait_for(running=0)
    time.sleep(0.2)
    assert text.inner_text() == kept, "nothing more arrives"
    page.reload()
    assert answered(page).inner_text() == kept


def test_escape_stops_too_and_the_prompt_keeps_the_focus(slow_page, slow_server):
    send(slow_page, "Once upon a time")
    expect(slow_page.locator(".message:not(.mine) .text")).not_to_be_empty()
    slow_page.keyboard.press("Escape")
    answered(slow_page)
    slow_server.wait_for(running=0)
    assert slow_page.evaluate("document.activeElement.id") == "prompt"


KEPT = """() => new Promise((resolve) => {
    const opening = indexedDB.open("mobilemoe");
    opening.onsuccess = () => {
        const all = opening.result.transaction("conversations").objectStore("conversations").getAll();
        all.onsuccess = () => resolve(all.result[0].messages.at(-1).text);
        opening.result.close();
    };
})"""


def test_a_page_that_is_closed_meanwhile_keeps_what_was_written(slow_page, slow_server):
    set_number(slow_page, "temperature", "0")
    send(slow_page, "Once upon a time")
    text = slow_page.locator(".message:not(.mine) .text")
    expect(text).not_to_be_empty()
    until = time.monotonic() + 30
    while not slow_page.evaluate(KEPT):  # for the case that the browser dies, it is kept now and then
        assert time.monotonic() < until
    expect(text).not_to_have_text(text.inner_text())
    some = text.inner_text()
    slow_page.reload()
    kept = answered(slow_page).inner_text()
    assert kept.startswith(some[:-1]), "all that was seen is kept when the page is left"
    expect(slow_page.locator(".ending")).to_have_text("Stopped.")
    slow_server.wait_for(running=0)


def test_another_answer_is_another_version(page):
    answers_with(page, "The first")
    send(page, QUESTION)
    answered(page)
    answers_with(page, "The second")
    page.click(".again")
    assert answered(page).inner_text() == "The second"
    expect(page.locator(".count")).to_have_text("2/2")
    page.click(".left")
    expect(page.locator(".message:not(.mine) .text")).to_have_text("The first")
    page.reload()
    expect(page.locator(".message:not(.mine) .text")).to_have_text("The first")
    expect(page.locator(".count")).to_have_text("1/2")


def test_an_edited_message_is_sent_again_and_its_first_version_stays(page):
    answers_with(page, "To the first")
    send(page, "First")
    answered(page)
    answers_with(page, "To the second")
    page.click(".edit")
    page.fill(".editor", "Second")
    with page.expect_request("**/v1/chat/completions") as asked:
        page.keyboard.press("Enter")
    assert asked.value.post_data_json["messages"] == [{"role": "user", "content": "Second"}]
    assert answered(page).inner_text() == "To the second"
    page.click(".mine .left")
    expect(page.locator(".message .text")).to_have_text(["First", "To the first"])


def test_an_edit_that_is_given_up_changes_nothing(page):
    answers_with(page, "An answer")
    send(page, "First")
    answered(page)
    page.click(".edit")
    page.fill(".editor", "Second")
    page.keyboard.press("Escape")
    expect(page.locator(".message .text")).to_have_text(["First", "An answer"])
    assert page.evaluate("document.activeElement.className") == "plain edit"


def test_conversations_are_kept_listed_renamed_and_deleted(page):
    answers_with(page, "An answer")
    for text in ("One", "Two"):
        page.click("#new")
        send(page, text)
        answered(page)
    page.goto(page.url.split("#")[0])
    names = page.locator("#conversations .name")
    expect(names).to_have_text(["Two", "One"])
    page.click("#conversations li:nth-child(2) .more")
    page.get_by_text("Rename").click()
    page.fill("#ask-input", "The first")
    page.keyboard.press("Enter")
    expect(names).to_contain_text(["Two", "The first"])
    names.nth(1).click()
    expect(page.locator(".message .text")).to_have_text(["One", "An answer"])
    expect(page.locator("#title")).to_have_text("The first")
    page.click("#actions")
    page.get_by_text("Delete").click()
    page.click("#ask-go")
    expect(names).to_have_text(["Two"])
    expect(page.locator("#welcome")).to_be_visible()


def test_what_another_tab_changes_is_seen(page, server):
    answers_with(page, "An answer")
    other = page.context.new_page()
    other.goto(f"{server.root}/")
    send(page, "Seen elsewhere")
    answered(page)
    expect(other.locator("#conversations .name")).to_have_text(["Seen elsewhere"])
    other.close()


def test_an_export_is_read_back_as_it_was(page, tmp_path):
    answers_with(page, "Some **bold** text")
    send(page, "A question")
    answered(page)
    files = {}
    for kind in ("Markdown", "JSON"):
        page.click("#actions")
        with page.expect_download() as saved:
            page.get_by_text(f"Export as {kind}").click()
        files[kind] = tmp_path / saved.value.suggested_filename
        saved.value.save_as(files[kind])
    assert files["Markdown"].name == "A-question.md"
    assert (
        files["Markdown"].read_text()
        == "# A question\n\n**You**\n\nA question\n\n**Assistant**\n\nSome **bold** text\n"
    )
    page.click("#actions")
    page.get_by_text("Delete").click()
    page.click("#ask-go")
    expect(page.locator("#conversations .name")).to_have_count(0)
    page.set_input_files("#import-file", files["JSON"])
    expect(page.locator(".message .text")).to_have_text(["A question", "Some bold text"])
    page.set_input_files("#import-file", files["JSON"])
    expect(page.locator("#conversations .name")).to_have_count(2)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("no JSON", "is not JSON"),
        ("{}", "no exported conversations"),
        ('{"kind": "mobilemoe conversations", "version": 2, "conversations": []}', "another version"),
        ('{"kind": "mobilemoe conversations", "version": 1, "conversations": [{"id": "a"}]}', "no messages"),
        (
            '{"kind": "mobilemoe conversations", "version": 1, "conversations": [{"id": "a", "messages": '
            '[{"id": "b", "parent": "c", "role": "user", "text": "d"}]}]}',
            "a damaged message 1",
        ),
    ],
)
def test_a_file_that_is_no_export_is_refused_with_one_sentence(page, tmp_path, text, fault):
    (tmp_path / "file.json").write_text(text)
    page.set_input_files("#import-file", tmp_path / "file.json")
    expect(page.locator("#notice")).to_contain_text(fault)
    expect(page.locator("#conversations .name")).to_have_count(0)


def test_an_answer_by_a_schema_is_json_that_fits_it(page):
    set_number(page, "temperature", "0")
    page.check("[name=format][value=schema]")
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    page.fill("#set-schema", json.dumps(schema))
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, "One or two?")
    assert asked.value.post_data_json["response_format"]["json_schema"]["schema"] == schema
    answered(page)
    assert json.loads(page.inner_text(".message:not(.mine) code"))["n"] in (1, 2)


def test_a_schema_that_is_no_json_is_said_before_anything_is_sent(page):
    page.click("#toggle-settings")
    page.check("[name=format][value=schema]")
    page.fill("#set-schema", "{")
    expect(page.locator("#schema-fault")).to_contain_text("not JSON")
    page.click("[data-close=settings]")
    send(page, QUESTION)
    expect(page.locator("#set-schema")).to_be_focused()
    expect(page.locator(".message")).to_have_count(0)
    assert page.input_value("#prompt") == QUESTION


def test_a_refusal_of_the_server_is_shown_and_can_be_tried_again(page):
    set_number(page, "temperature", "0")
    error = {"error": {"message": "64 requests wait already", "type": "rate_limit_error", "code": "queue_full"}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=429, body=json.dumps(error)))
    send(page, QUESTION)
    expect(page.locator(".failure")).to_contain_text("64 requests wait already.")
    page.unroute("**/v1/chat/completions")
    page.get_by_text("Try again").click()
    assert "35" in answered(page).inner_text()


def test_a_conversation_longer_than_the_context_is_refused_in_words(page):
    send(page, "word " * 3000)
    expect(page.locator(".failure")).to_contain_text("context")


def test_speed_memory_and_the_use_of_the_context_are_shown(page):
    send(page, QUESTION)
    answered(page)
    expect(page.locator("#speed")).to_contain_text("tokens/s")
    expect(page.locator("#memory")).to_contain_text("MB memory")
    expect(page.locator("#fill")).to_contain_text("of 2,048 tokens")


def test_the_end_stays_in_sight_unless_the_user_scrolls_away_from_it(page):
    at_end = expect(page.locator(".message").last.get_by_label("Write another answer"))
    answers_with(page, "line\n\n" * 100)
    send(page, "Much")
    answered(page)
    at_end.to_be_in_viewport()
    page.click("#toggle-routing")
    at_end.to_be_in_viewport()
    expect(page.locator("#latest")).to_be_hidden()
    page.locator("#scroll").hover()
    page.mouse.wheel(0, -2000)
    expect(page.locator("#latest")).to_be_visible()
    at_end.not_to_be_in_viewport()
    page.click("#latest")
    expect(page.locator("#latest")).to_be_hidden()
    at_end.to_be_in_viewport()


def test_a_text_is_copied_where_the_browser_gives_no_clipboard_too(context, server):
    """As over plain HTTP from another machine."""
    context.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page = opened(context, server)
    answers_with(page, "To be copied")
    send(page, "Say it")
    answered(page)
    copy_by(page, page.locator(".message").last.get_by_label("Copy"))
    page.focus("#prompt")
    page.keyboard.press("Control+v")
    expect(page.locator("#prompt")).to_have_value("To be copied")


def test_the_page_waits_for_the_model_and_says_when_nothing_answers(context, server):
    state = {"status": "loading", "running": 0, "waiting": 0}
    page = context.new_page()
    page.route("**/health", lambda route: route.fulfill(status=503, body=json.dumps(state)))
    page.goto(f"{server.root}/")
    expect(page.locator("#state")).to_have_text("The model is being loaded")
    page.fill("#prompt", "Too early")
    expect(page.locator("#send")).to_be_disabled()
    page.unroute("**/health")
    expect(page.locator("#state")).to_have_text("nano")
    expect(page.locator("#send")).to_be_enabled()
    context.set_offline(True)
    page.keyboard.press("Enter")
    expect(page.locator(".failure")).to_contain_text("The server does not answer")
    expect(page.locator("#state")).to_have_text("The server does not answer")
