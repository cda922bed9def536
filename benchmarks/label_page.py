"""How quick the labeling page is on a huge sheet, in a real browser (chromium and chromedriver).

    python benchmarks/label_page.py --size 28000

A generated sheet without overviews is opened in ``potsdam_points/label.py``: time to the first view, time of a tile,
50 clicks with a SIGKILL of the server in their middle, time until Learn changes the map in view, and from one further
click to an updated view. The table is written beside this script.
"""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[0] = str(REPOSITORY)

import numpy as np  # noqa: E402 - imports begin at the repository's root
import rasterio  # noqa: E402
import tyro  # noqa: E402
from affine import Affine  # noqa: E402
from selenium import webdriver  # noqa: E402
from selenium.webdriver import ActionChains  # noqa: E402

from benchmarks.tables import processor, write_table  # noqa: E402
from common.images.write import GEOTIFF  # noqa: E402
from common.scenes.aerial_world import AerialWorld  # noqa: E402

BLOCK = 2048
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,900",
)


@dataclass(frozen=True)
class Config:
    """Measure the labeling page."""

    size: int = 28_000
    """Side of the sheet, pixels."""
    sheet: Path | None = None
    """A sheet of this benchmark that is there already."""


def write_sheet(path: Path, size: int) -> None:
    """A sheet of a generated town, one block of it repeated; deflate, tiled, without overviews."""
    image = AerialWorld(0).render(0, 0, BLOCK, BLOCK)[0]
    block = np.ascontiguousarray(image if image.shape[0] == 3 else np.moveaxis(image, -1, 0))
    options: dict[str, Any] = GEOTIFF | {"count": 3, "height": size, "width": size, "dtype": "uint8"}
    place = {"crs": "EPSG:25832", "transform": Affine(0.2, 0, 5e5, 0, -0.2, 5e6)}
    wide = np.tile(block, (1, 1, -(-size // BLOCK)))[:, :, :size]
    with rasterio.open(path, "w", **options, **place, num_threads="all_cpus") as dataset:
        for row in range(0, size, BLOCK):
            rows = min(BLOCK, size - row)
            dataset.write(wide[:, :rows], window=((row, row + rows), (0, size)))


class Page:
    """The command and a browser on its page."""

    def __init__(self, sheet: Path, folder: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or "chromium"
        for flag in FLAGS:
            options.add_argument(flag)
        service = webdriver.ChromeService(shutil.which("chromedriver") or "chromedriver")
        self.browser = webdriver.Chrome(options=options, service=service)
        self.sheet, self.folder = sheet, folder
        self.start()

    def start(self) -> None:
        """Start the command and open its page."""
        command: list[str | Path] = [
            sys.executable,
            REPOSITORY / "potsdam_points" / "label.py",
            self.sheet,
            "--no-browser",
        ]
        command += ["--points-file", self.folder / "points.csv", "--cache-dir", self.folder / "cache"]
        command += ["--output-dir", self.folder / "run"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=self.folder)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[1]

    def open(self) -> float:
        """Seconds from asking for the page to its first whole view."""
        started = time.monotonic()
        self.browser.get(self.address)
        self.wait(lambda: self.browser.execute_script("return document.body.dataset.shown === 'yes'"))
        return time.monotonic() - started

    def wait(self, condition: Callable[[], Any], seconds: float = 180) -> None:
        """Poll until something is so."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.02)

    def ask(self, path: str) -> bytes:
        """Ask the server, past the browser."""
        base, _, token = self.address.partition("/?token=")
        with urllib.request.urlopen(urllib.request.Request(base + path, headers={"X-Token": token})) as answer:
            return bytes(answer.read())

    def click(self, key: str, right: int, down: int) -> None:
        """Choose a class and click beside the middle of the view."""
        canvas = self.browser.find_element("id", "view")
        ActionChains(self.browser, duration=0).send_keys(key).move_to_element_with_offset(
            canvas, right, down
        ).click().perform()

    def points(self) -> int:
        """Points on the disk."""
        table = self.folder / "points.csv"
        return table.read_text().count("\n") - 1 if table.exists() else 0

    def close(self) -> None:
        """End both."""
        self.browser.quit()
        self.process.send_signal(signal.SIGINT)
        self.process.wait()


def measure(sheet: Path, folder: Path) -> list[dict[str, object]]:
    """All measurements, as rows of the table."""
    generator, page = np.random.default_rng(0), Page(sheet, folder)
    rows: list[dict[str, object]] = []

    def note(what: str, measured: str, target: str = "") -> None:
        rows.append({"what": what, "measured": measured, "target": target})

    note("first view", f"{page.open():.2f} s", "2 s")
    times = []
    name = sheet.stem
    for x, y in generator.integers(0, 100, (60, 2)):
        started = time.monotonic()
        page.ask(f"/tile?layer=picture&image={name}&z=0&x={x}&y={y}")
        times.append(1000 * (time.monotonic() - started))
    note("a tile (median of 60)", f"{statistics.median(times):.0f} ms", "100 ms")
    places = [(50 * (i % 10) - 225, 90 * (i // 10) - 180) for i in range(50)]
    started = time.monotonic()
    for number, (right, down) in enumerate(places):
        if number == 25:
            page.process.kill()
            page.process.wait()
            before = page.points()
            page.start()
            page.open()
            note("points after SIGKILL", f"{page.points()} of {before}", "all")
        page.click("123456"[number % 6], right, down)
        page.wait(partial(lambda count: page.points() > count, number))
    each = (time.monotonic() - started) / len(places)
    note("points on the disk after 50 clicks", str(page.points()), "50")
    note("a click, browser to disk (mean, restart included)", f"{each:.2f} s", "")
    ActionChains(page.browser, duration=0).send_keys("++++").perform()  # to the picture's own pixels
    started = time.monotonic()
    page.browser.find_element("id", "learn").click()
    page.wait(lambda: page.browser.execute_script("return document.body.dataset.map === '1'"))
    note("Learn to a new map in view", f"{time.monotonic() - started:.1f} s", "60 s")
    page.wait(lambda: not json.loads(page.ask("/state"))["busy"])
    page.browser.find_element("id", "auto").click()
    started = time.monotonic()
    page.click("1", 5, 5)
    page.wait(lambda: page.browser.execute_script("return document.body.dataset.map === '2'"))
    note("one click to an updated view", f"{time.monotonic() - started:.1f} s", "5 s")
    page.browser.save_screenshot(str(folder / "page.png"))
    page.close()
    return rows


def main() -> None:
    """Write the sheet, measure, write the table."""
    config = tyro.cli(Config)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sheet = config.sheet or folder / "sheet.tif"
        if config.sheet is None:
            write_sheet(sheet, config.size)
        rows = measure(sheet, folder)
        shutil.copyfile(folder / "page.png", Path(tempfile.gettempdir()) / "label_page.png")
    write_table(Path(__file__), rows, f"{config.size} x {config.size} pixels without overviews; {processor()}")


if __name__ == "__main__":
    main()
