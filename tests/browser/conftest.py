"""A real browser, and reports to open. Without one these tests are skipped, or fail by REPSHIFT_REQUIRE_BROWSER=1."""

import base64
import io
import os
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repshift.analysis import cli
from repshift.analysis.output.results import Results, write_results

SCHEDULE = "0.2@0,2,4"
SPEEDS = {"dense": 100.5, "shift": 1000.25, "norm": 99.0}
EVALUATED = [
    {"model": "tiny_vit", "method": "dense", "schedule": None, "top1": 96.5, "gmacs": 0.0864, "delta_top1": None},
    {"model": "tiny_vit", "method": "shift", "schedule": SCHEDULE, "top1": 9.75, "gmacs": 0.0585, "delta_top1": -86.75},
    {"model": "tiny_vit", "method": "norm", "schedule": SCHEDULE, "top1": 88.0, "gmacs": 0.0585, "delta_top1": -8.5},
]
TIMED = [
    {"model": "tiny_vit", "method": method, "schedule": "" if method == "dense" else SCHEDULE, "batch_size": 8}
    | {"samples_per_sec": speed, "gmacs": 0.1}
    for method, speed in SPEEDS.items()
]

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
        page.drawn, page.column = partial(drawn, page), partial(column, page)
        page.wait_until("document.getElementById('colophon').textContent !== ''")
        if page.locator("#reading").count():
            page.wait_until("document.getElementById('reading').textContent !== ''")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert told == []


def drawn(page, name):
    """Read the pixels of a canvas, ``(rows, columns, 3)``."""
    address = page.evaluate("name => document.getElementById(name).toDataURL()", name)
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def column(page, table, number):
    """Read a column of a table."""
    return page.locator(f"{table} tbody tr td:nth-child({number})").all_inner_texts()


@pytest.fixture(scope="session")
def evaluated():
    """Rows of an evaluation."""
    return EVALUATED


@pytest.fixture(scope="session")
def timed():
    """Rows of a benchmark."""
    return TIMED


@pytest.fixture(scope="session")
def write_report():
    """Run ``repshift report`` in a folder."""

    def write_report(folder, *arguments):
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.chdir(folder)
            monkeypatch.setattr(sys, "argv", ["repshift", "report", *map(str, arguments), "--output", "report.html"])
            with pytest.raises(SystemExit) as caught:
                cli.main()
        assert not caught.value.code
        return folder / "report.html"

    return write_report


@pytest.fixture(scope="session")
def report(tmp_path_factory, write_report):
    """Three canvases seen by tiny_vit, dense and pruned, with an evaluation and a benchmark."""
    folder = tmp_path_factory.mktemp("report")
    write_results(folder / "eval.json", Results("eval", EVALUATED, {"torch": "2.8"}))
    write_results(folder / "bench.json", Results("bench", TIMED, {"threads": 1}))
    settings = ("--model", "tiny_vit", "--pretrained", "--drop", SCHEDULE, "--num-images", 3)
    return write_report(folder, "eval.json", "bench.json", *settings)
