"""Takes the pictures of the chat page in docs/: `.venv/bin/python tools/page_screenshots.py` (needs Chromium)."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

DOCS = Path(__file__).resolve().parents[1] / "docs"
COLOURS = 256  # of a picture's palette
EARLIER = ["Tell me a short story about a fox.", "How do I boil an egg?"]
QUESTIONS = ["What is a mixture of experts?", "Write a Python function that adds two numbers.", "What is 58 minus 23?"]


def opened(browser: Browser, root: str, size: tuple[int, int], scheme: str, scale: float) -> Page:
    page = browser.new_page(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if scheme == "dark" else "light",
        device_scale_factor=scale,
        reduced_motion="reduce",
    )
    page.goto(root)
    expect(page.locator("#state")).to_have_text("nano")
    page.evaluate("localStorage.setItem('mobilemoe.settings', JSON.stringify({ temperature: 0 }))")
    page.reload()
    expect(page.locator("#state")).to_have_text("nano")
    for text in EARLIER:
        ask(page, text, 1)
        page.keyboard.press("n")
    return page


def ask(page: Page, text: str, count: int) -> None:
    page.fill("#prompt", text)
    page.keyboard.press("Enter")
    expect(page.locator(".message:not(.mine)")).to_have_count(count)
    expect(page.locator(".message.writing")).to_have_count(0)
    page.keyboard.press("Escape")


def take(page: Page, name: str) -> None:
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(400)
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image = image.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image.save(DOCS / f"{name}.png", optimize=True)
    print(f"{name}.png: {(DOCS / f'{name}.png').stat().st_size:,} bytes")


def main() -> None:
    command = [sys.executable, "-m", "mobilemoe", "serve", "nano", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        root = json.loads(server.stdout.readline())["address"].removesuffix("v1")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for scheme in ("light", "dark"):
            wide = opened(browser, root, (1280, 800), scheme, 1.5)
            phone = opened(browser, root, (390, 800), scheme, 1.5)
            for count, text in enumerate(QUESTIONS, 1):
                ask(wide, text, count)
                ask(phone, text, count)
            wide.click("#toggle-routing")
            wide.locator("#tokens span").nth(6).click()
            if scheme == "dark":
                phone.click("#toggle-routing")
                phone.locator("#tokens span").nth(6).click()
            take(wide, f"page-wide-{scheme}")
            take(phone, f"page-phone-{scheme}")
        browser.close()
        server.terminate()


if __name__ == "__main__":
    main()
