"""Takes a picture of a figure that a program left as a page.

    python docs/figures.py runs/steering/money_figure.html docs/images/steering_money.png

The page is one that plotly wrote. Needs Playwright and a Chromium, which the test set-up installs.
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> None:
    """Open the page, wait for the figure, keep a picture of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("page", type=Path, help="a .html file with one figure")
    parser.add_argument("picture", type=Path, help="the .png to write")
    parser.add_argument("--width", type=int, default=1080, help="pixels (1080)")
    parser.add_argument("--height", type=int, default=400, help="pixels (400)")
    arguments = parser.parse_args()
    browser_path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path)
        page = browser.new_page(
            viewport={"width": arguments.width, "height": arguments.height}, device_scale_factor=1.5
        )
        page.goto(arguments.page.absolute().as_uri())
        page.wait_for_selector(".main-svg", timeout=60_000)
        page.wait_for_timeout(800)
        page.locator(".js-plotly-plot").first.screenshot(path=arguments.picture)
        browser.close()


if __name__ == "__main__":
    main()
