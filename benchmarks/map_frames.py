"""How smoothly does the explorer's map of latents move? Frames a second while it is dragged.

    python -m benchmarks.map_frames --points 9216 65536

Draws the map of lobes with random places in headless Chromium and drags it with the mouse for some
seconds. Counted are the frames that the browser shows meanwhile; without a graphics card WebGL is
computed by the processor, so this is the least that anybody sees. 60 is the most a browser gives.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from playwright.sync_api import Page, sync_playwright

from saelab.lobe_figures import lobe_map

LOBES = 8
EXTENT = 10_000
"""Coordinates of a map are between minus this and this."""


def page_of(n_points: int, folder: Path) -> Path:
    """The map of so many latents as a page."""
    draw = np.random.default_rng(0)
    places = draw.normal(0, EXTENT / 3, (n_points, 2)).clip(-EXTENT, EXTENT)
    points = pd.DataFrame(
        {
            "latent": range(n_points),
            "x": places[:, 0],
            "y": places[:, 1],
            "label": [f"“word {n % 997}”" for n in range(n_points)],
        }
    )
    names = {lobe: f"lobe {lobe}" for lobe in range(LOBES)}
    figure = lobe_map(
        points, draw.integers(0, LOBES, n_points), names, dict.fromkeys(names, (0, 0))
    )
    path = folder / f"{n_points}.html"
    figure.write_html(path, include_plotlyjs=True)
    return path


def frames_a_second(page: Page, seconds: float) -> float:
    """Drag the map back and forth and count what is shown."""
    page.wait_for_selector(".js-plotly-plot canvas", timeout=60_000)
    page.wait_for_timeout(1500)
    page.evaluate(
        "() => { window.shown = 0;"
        "const count = () => { window.shown += 1; requestAnimationFrame(count); };"
        "requestAnimationFrame(count); }"
    )
    page.mouse.move(500, 225)
    page.mouse.down()
    before, start, step = page.evaluate("window.shown"), time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step += 1
        page.mouse.move(500 + step * 3 % 200, 225 + step * 2 % 100)
    shown, spent = page.evaluate("window.shown") - before, time.perf_counter() - start
    page.mouse.up()
    return shown / spent


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--points", nargs="+", type=int, default=[9216, 65536])
    parser.add_argument("--seconds", type=float, default=5.0, help="of dragging (5)")
    arguments = parser.parse_args()
    names = ("chromium", "chromium-browser", "google-chrome")
    browser_path = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=browser_path)
        for n_points in arguments.points:
            page = browser.new_page(viewport={"width": 1000, "height": 460})
            page.goto(page_of(n_points, Path(folder)).as_uri())
            shown = frames_a_second(page, arguments.seconds)
            print(f"{n_points:8,} points: {shown:5.1f} frames a second")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
