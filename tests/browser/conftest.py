"""A real browser. Without one these tests are skipped; REPSHIFT_REQUIRE_BROWSER=1 lets them fail instead."""

import os
import shutil
import time
from functools import partial
from pathlib import Path

import pytest

# No GPU, no sandbox inside containers, and no requests of the browser's own
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NAMES = ("chromium", "chromium-browser", "google-chrome")


def missing(reason):
    if os.environ.get("REPSHIFT_REQUIRE_BROWSER") == "1":
        pytest.fail(f"REPSHIFT_REQUIRE_BROWSER=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: pip install -e '.[dev]'")
    with sync_playwright() as playwright:
        installed = next(filter(None, map(shutil.which, NAMES)), playwright.chromium.executable_path)
        if not Path(installed).exists():
            missing(f"there is no browser: install {' or '.join(NAMES)}, or run 'playwright install chromium'")
        started = playwright.chromium.launch(executable_path=installed, args=OPTIONS)
        yield started
        started.close()


def wait_until(page, condition, seconds=10):
    """Wait for a condition of a page; its own waiting evaluates text in the page, which the page's policy forbids."""
    until = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < until, f"not within {seconds} s: {condition}"
        page.wait_for_timeout(20)


@pytest.fixture
def open_page(browser):
    """Open a report; errors, warnings and requests other than for the file itself fail the test when it ends."""
    contexts, told = [], []

    def open_page(path, width=1200, height=900, **media):
        context = browser.new_context(viewport={"width": width, "height": height}, **media)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: told.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: told.append(f"error: {error}"))
        address = Path(path).resolve().as_uri()
        page.on("request", lambda request: request.url.startswith(("data:", address)) or told.append(request.url))
        page.goto(address)
        page.wait_until = partial(wait_until, page)
        page.wait_until("document.getElementById('colophon').textContent !== ''")
        if page.locator("#reading").count():
            page.wait_until("document.getElementById('reading').textContent !== ''")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert told == []
