"""The explorer in a real browser: every page, its main action, hostile text, the keyboard.

Screenshots are left in build/screenshots. Where no Chromium is found the tests are skipped, except
in CI, where they must run.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.explorer_runs import HOSTILE, make_runs

ROOT = Path(__file__).parent.parent
SHOTS = ROOT / "build" / "screenshots"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PAGES = ("runs", "latents", "latent", "prompt", "steering", "compare")
SLOW = 240_000
"""Milliseconds that a page may take on a busy machine."""

expect.set_options(timeout=SLOW)
pytestmark = pytest.mark.skipif(
    BROWSER is None and not os.environ.get("CI"),
    reason="no Chromium was found; `make browser` installs Debian's",
)


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """A running explorer on small runs with hostile text."""
    runs = make_runs(tmp_path_factory.mktemp("explorer"))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "saelab", "explore", str(runs), "--port", str(port)]
    log = (tmp_path_factory.getbasetemp() / "explorer.log").open("wb")
    server = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=2):
                    break
            except OSError:
                assert server.poll() is None, "the explorer stopped: see explorer.log"
                time.sleep(0.5)
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait(120)
        log.close()


@pytest.fixture(scope="module")
def browser():
    assert BROWSER is not None, "CI must have a Chromium: `make browser` installs Debian's"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser, address):
    """Opens a page of the explorer; afterwards nothing may have been complained about."""
    complaints: list[str] = []
    pages = []

    def opened(path: str, scheme: str = "light"):
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
        page.on("pageerror", lambda error: complaints.append(f"page error: {error}"))
        page.on("console", lambda line: complaints.extend(_complaint(line)))
        page.on("response", lambda found: complaints.extend(_missing(found)))
        page.on("requestfailed", lambda asked: complaints.append(f"not reached: {asked.url}"))
        pages.append(page)
        page.goto(address + path)
        settled(page)
        return page

    yield opened
    for page in pages:
        assert page.evaluate("window.hacked") is None, "text of a token was run as a script"
        page.close()
    assert complaints == []


def _complaint(line) -> list[str]:
    # Which resource was missing is told by its response, below.
    return [line.text] if line.type == "error" and "Failed to load" not in line.text else []


def _missing(found) -> list[str]:
    # Streamlit looks for its own server under every part of the address first.
    missing = found.status >= 400 and "/_stcore/" not in found.url
    return [f"{found.status} {found.url}"] if missing else []


def settled(page) -> None:
    """Wait until the script of the page has ended and every part of it is drawn.

    Parts that come later still, such as the text inside a box, must be waited for by `expect`:
    a box is drawn first and filled a moment after.
    """
    page.wait_for_selector('[data-testid="stMainBlockContainer"] h1', timeout=SLOW)
    page.wait_for_selector('[data-test-script-state="notRunning"]', timeout=SLOW)
    for part in ('[data-testid="stSkeleton"]', ".stSpinner"):
        page.wait_for_function(f"() => !document.querySelector('{part}')", timeout=SLOW)
    # The last changes of the state are drawn within two frames.
    page.evaluate(
        "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )


def keep(page, name: str) -> None:
    """Leave a picture to look at."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_every_page_opens_without_an_error_and_fits_the_window(visit, name, scheme):
    page = visit(f"/{'' if name == 'runs' else name}?run=abs_topk", scheme)
    keep(page, f"{name}_{scheme}")
    assert page.locator('[data-testid="stException"], [data-testid="stAlert"]').count() == 0
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) <= 1, "the page scrolls sideways at 1280 px"


def test_a_latent_is_found_in_the_table_and_opened_from_the_search_box(visit):
    page = visit("/latents?run=topk")
    page.get_by_role("textbox", name="Search").fill("11")
    page.get_by_role("textbox", name="Search").press("Enter")
    page.wait_for_url("**/latent?**latent=11**", timeout=SLOW)
    expect(page.locator(".sl-lead")).to_contain_text("Latent 11 of blocks.1")
    page.get_by_role("button", name="→").click()
    page.wait_for_url("**latent=12**", timeout=SLOW)
    expect(page.locator(".sl-lead")).to_contain_text("Latent 12 of blocks.1")
    page.go_back()
    page.wait_for_url("**latent=11**", timeout=SLOW)
    expect(page.locator(".sl-lead")).to_contain_text("Latent 11 of blocks.1")


def test_the_address_of_a_view_brings_it_back(visit):
    first = visit("/latents?run=topk&often=over+10%25&sort=number&find=ship")
    found = first.get_by_text("latents; pick one to open it")
    expect(found).not_to_contain_text("48")  # the filter must leave some out
    count = found.inner_text()
    again = visit(first.url.removeprefix(first.url.split("/latents")[0]))
    expect(again.get_by_text("latents; pick one to open it")).to_have_text(count)
    expect(again.get_by_label("Find")).to_have_value("ship")


def test_a_prompt_with_hostile_tokens_is_read(visit):
    page = visit("/prompt?run=topk")
    box = page.get_by_label("Text")
    expect(box).not_to_have_value("")
    box.fill(f"the {HOSTILE[0]} ship **bold** came home")
    page.get_by_role("button", name="Read it").click()
    page.wait_for_url("**text=the+%3Cscript**", timeout=SLOW)
    expect(page.get_by_role("radio", name="<script>")).to_be_visible()
    settled(page)
    keep(page, "prompt_read")


@pytest.mark.slow
def test_a_box_drawn_on_the_map_filters_the_table_and_is_in_the_address(visit):
    page = visit("/latents?run=topk")
    found = page.get_by_text("pick one to open it")
    expect(found).to_contain_text("48 latents;")
    canvas = page.locator(".js-plotly-plot .nsewdrag").first
    place = canvas.bounding_box()
    corners = [(0.02, 0.02), (0.98, 0.02), (0.98, 0.5), (0.02, 0.5)]
    at = [(place["x"] + u * place["width"], place["y"] + v * place["height"]) for u, v in corners]
    page.mouse.move(*at[0])
    page.mouse.down()
    for point in at[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()
    page.wait_for_url("**area=**", timeout=SLOW)
    expect(found).to_contain_text("chosen on the map")
    count = found.inner_text()
    again = visit(page.url.removeprefix(page.url.split("/latents")[0]))
    expect(again.get_by_text("pick one to open it")).to_have_text(count)
    keep(again, "latents_chosen")
    again.get_by_role("button", name="Let go").click()
    expect(again.get_by_text("pick one to open it")).to_contain_text("48 latents;")


def test_a_latent_is_steered_with_from_its_page(visit):
    page = visit("/latent?run=topk&latent=3")
    page.get_by_role("link", name="Steer with it").click()
    page.wait_for_url("**/steering?**push=3**", timeout=SLOW)
    expect(page.get_by_text("The next token")).to_be_visible()
    box = page.get_by_label("Text to go on from")
    box.fill(f"the {HOSTILE[0]} ship **bold** came")
    page.get_by_role("button", name="Steer").click()
    page.wait_for_url("**text=the+%3Cscript**", timeout=SLOW)
    expect(page.locator(".sl-running").first).to_contain_text(HOSTILE[0])
    settled(page)
    keep(page, "steering_pushed")


def test_hostile_tokens_lie_on_the_page_as_text(visit):
    page = visit("/latent?run=topk&latent=0&examples=Quantiles")
    expect(page.locator(".sl-text").first).to_be_visible()
    keep(page, "latent_hostile")
    assert page.locator(".sl-text h1, .sl-text script, .sl-text img").count() == 0


def test_the_keyboard_reaches_the_search_box_and_the_pages(visit):
    page = visit("/?run=topk")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(document.activeElement.getAttribute('aria-label') || "
                "document.activeElement.innerText || '').trim().split('\\n').at(-1)"
            )
        )
    assert {"Search", "Latents", "Prompt"} <= reached, reached
