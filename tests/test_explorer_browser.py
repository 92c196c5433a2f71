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

from tests.explorer_runs import make_runs

ROOT = Path(__file__).parent.parent
SHOTS = ROOT / "build" / "screenshots"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PAGES = ("runs", "latents", "latent", "prompt", "compare")

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
        server.wait(20)
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
    """Wait until the page has stopped running."""
    page.wait_for_selector('[data-testid="stMainBlockContainer"] h1', timeout=120_000)
    page.wait_for_selector('[data-testid="stStatusWidget"]', state="detached", timeout=120_000)
    page.wait_for_selector(".stSpinner", state="detached", timeout=120_000)
    page.wait_for_timeout(700)


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
    page.get_by_label("Search").fill("11")
    page.get_by_label("Search").press("Enter")
    page.wait_for_url("**/latent?**latent=11**", timeout=60_000)
    settled(page)
    assert page.get_by_text("Latent 11 of").count() or page.get_by_text("11").count()
    page.get_by_role("button", name="→").click()
    page.wait_for_url("**latent=12**", timeout=60_000)
    settled(page)
    page.go_back()
    page.wait_for_url("**latent=11**", timeout=60_000)


def test_the_address_of_a_view_brings_it_back(visit):
    first = visit("/latents?run=topk&often=over+10%25&sort=number&find=ship")
    count = first.get_by_text("latents; pick one to open it").inner_text()
    again = visit(first.url.removeprefix(first.url.split("/latents")[0]))
    assert again.get_by_text("latents; pick one to open it").inner_text() == count
    assert not count.startswith("48"), "the filter must leave some out"
    assert again.get_by_label("Find").input_value() == "ship"


def test_a_prompt_with_hostile_tokens_is_read(visit):
    page = visit("/prompt?run=topk")
    page.get_by_label("Text").fill("the <script>window.hacked=1</script> ship **bold** came home")
    page.get_by_role("button", name="Read it").click()
    page.get_by_text("What the model expects next").wait_for(timeout=60_000)
    keep(page, "prompt_read")


def test_hostile_tokens_lie_on_the_page_as_text(visit):
    page = visit("/latent?run=topk&latent=0&examples=Quantiles")
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
