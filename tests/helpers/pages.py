"""The chat page in a headless Chromium; what no test may cause is watched in every test."""

import json
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Locator, Page, Route, expect, sync_playwright

from servers import SLOW, Server, running

expect.set_options(timeout=40_000)  # on a machine that does other things too
WATCH = "window.violations = []; addEventListener('securitypolicyviolation', e => violations.push(e.violatedDirective))"


@pytest.fixture(scope="module")  # until its end, playwright has an event loop in this thread, where others may want one
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), timeout=120_000)
        except Error as fault:
            pytest.fail(f"the page cannot be tested without Chromium: `make test` installs it. {fault}", pytrace=False)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def slow_server() -> Iterator[Server]:
    with running(key=None, before=SLOW) as server:
        yield server


@pytest.fixture
def context(browser) -> Iterator[BrowserContext]:
    """What a test opens in it may ask only the server it came from, and break no rule of its policy."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    context.set_default_timeout(40_000)
    context.add_init_script(WATCH)
    requests: list[str] = []
    faults: list[str] = []
    context.on("request", lambda request: requests.append(request.url))
    context.on("weberror", lambda error: faults.append(str(error.error)))
    context.on("dialog", lambda dialog: faults.append(dialog.message) or dialog.dismiss())
    yield context
    violations = [each for page in context.pages for each in page.evaluate("window.violations ?? []")]
    origins = {url for url in requests if not url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:"))}
    pages = len(context.pages)
    context.close()
    assert (violations, faults, origins) == ([], [], set())
    assert pages == 1, "the page opened another one"


@pytest.fixture
def page(context, server) -> Page:
    return opened(context, server)


@pytest.fixture
def slow_page(context, slow_server) -> Page:
    return opened(context, slow_server)


def opened(context: BrowserContext, server: Server) -> Page:
    """The page, ready to send."""
    page = context.new_page()
    page.goto(f"{server.root}/")
    expect(page.locator("#state")).to_have_text("nano")
    return page


def send(page: Page, text: str) -> None:
    page.fill("#prompt", text)
    page.keyboard.press("Enter")


def answered(page: Page, count: int = 1):
    """The last of `count` messages of the model, once it is written."""
    answers = page.locator(".message:not(.mine)")
    expect(answers).to_have_count(count)
    expect(page.locator(".message.writing")).to_have_count(0)
    return answers.last.locator(".text")


def copy_by(page: Page, button: Locator) -> None:
    """Clicks it, and waits until it says, for a moment, that the text was copied."""
    page.evaluate(
        """() => {
            const look = () => document.querySelector(".done") && (document.body.dataset.copied = "yes");
            new MutationObserver(look).observe(document.body, { subtree: true, attributeFilter: ["class"] });
        }"""
    )
    button.click()
    expect(page.locator("body[data-copied]")).to_have_count(1)


def set_number(page: Page, name: str, value: str) -> None:
    """Enters a setting; opens the panel, and what it stands in, where that is needed."""
    if page.locator("#settings").is_hidden():
        page.click("#toggle-settings")
    field = page.locator(f"#set-{name}")
    if field.is_hidden():
        page.click("#settings summary")
    field.fill(value)


def events(*pieces: str) -> str:
    """The stream of an answer in these pieces."""
    deltas = [{"role": "assistant", "content": ""}, *({"content": piece} for piece in pieces), {}]
    chunks = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}]} for delta in deltas
    ]
    chunks.append({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": len(pieces)}})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def answers_with(page: Page, *pieces: str) -> None:
    """Lets the page read this as the model's next answers; everything else is the real server's."""

    def fulfil(route: Route) -> None:
        route.fulfill(status=200, content_type="text/event-stream", body=events(*pieces))

    page.route("**/v1/chat/completions", fulfil)
