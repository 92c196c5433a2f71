"""Takes the pictures of docs/explorer.md from the running explorer.

    saelab atlas runs/quickstart/topk && saelab map runs/quickstart/topk
    saelab trace runs/set --prompt "The capital of France is" --out runs/circuits-page/paris.json
    saelab geometry runs/quickstart/topk --wider runs/reference/topk
    saelab documents runs/quickstart/topk --text sotu --max-rows 2
    python docs/screenshots.py runs [--only latents]

Needs Playwright and a Chromium, which the test set-up installs.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).parent
RUN = "quickstart/topk"
TEXT = "The old harbor was silent until the ships came home from the war."
VIEWS = {
    "runs": f"/?run={RUN}",
    "latents": f"/latents?run={RUN}&sort=best+automatic+label&color=kind+of+label",
    "latent": f"/latent?run={RUN}&latent=1258",
    "prompt": f"/prompt?run={RUN}&text={TEXT.replace(' ', '+')}",
    "steering": f"/steering?run={RUN}&push=1258:20&text=The+weather+today",
    "circuits": "/circuits?run=set/layer_15&graph=circuits-page/paris&keep=80"
    "&errors=false&words=true&node=24_2251_5",
}
VIEWS |= {
    "geometry": f"/geometry?run={RUN}",
    "crystals": f"/geometry?run={RUN}&part=Crystals",
    "families": f"/geometry?run={RUN}&part=Families",
    "data": f"/data?run={RUN}&how=by+year&at=1930",
}
WAITED_FOR = {
    "prompt": "What the model expects next",
    "steering": "The next token",
    "circuits": "Take it away",
}
"""Words that a page shows once the model has run."""


HEIGHTS = {"circuits": 1080}
"""Of pages whose main part is taller than a window of 800 pixels."""


def main() -> None:
    """Start the explorer, visit each view, keep a picture of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", type=Path, help="folder of runs")
    parser.add_argument("--dark", action="store_true", help="in the dark theme")
    parser.add_argument("--only", action="append", choices=VIEWS, help="this page; repeatable")
    arguments = parser.parse_args()
    browser_path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "saelab", "explore", str(arguments.runs), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(f"http://localhost:{port}/_stcore/health")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_path)
            for name in arguments.only or VIEWS:
                page = browser.new_page(
                    viewport={"width": 1280, "height": HEIGHTS.get(name, 800)},
                    color_scheme="dark" if arguments.dark else "light",
                )
                page.goto(f"http://localhost:{port}{VIEWS[name]}")
                _settle(page)
                if name in WAITED_FOR:
                    page.get_by_text(WAITED_FOR[name]).wait_for(timeout=300_000)
                    _settle(page)
                page.screenshot(path=DOCS / "images" / f"explorer_{name}.png")
                page.close()
            browser.close()
    finally:
        server.terminate()
        server.wait(20)


def _wait(address: str) -> None:
    for _ in range(240):
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("The explorer did not start; try: saelab explore RUNS")


def _settle(page: Page) -> None:
    page.wait_for_selector('[data-testid="stMainBlockContainer"] h1', timeout=120_000)
    page.wait_for_selector('[data-test-script-state="notRunning"]', timeout=300_000)
    for part in (".stSpinner", '[data-testid="stSkeleton"]'):
        page.wait_for_function(f"() => !document.querySelector('{part}')", timeout=120_000)
    page.wait_for_timeout(2500)


if __name__ == "__main__":
    main()
