"""How fast everything around a network is: a large raster to files, with a network that costs nothing.

    python benchmarks/pipeline_ceiling.py --side 8192

The raster is a deflated GeoTIFF of three bytes a pixel with some 20 000 bright rectangles; the network's output is its
first band. Each row is a process of its own, from the open network to the last file, and is compared with reading the
raster alone. Processor seconds are given too: on a busy machine they say more than the clock. The table is written
beside this script.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[0] = str(REPOSITORY)

import numpy as np  # noqa: E402 - imports begin at the repository's root
import rasterio  # noqa: E402
import torch  # noqa: E402
import tyro  # noqa: E402
from affine import Affine  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.large_raster import resident  # noqa: E402
from benchmarks.tables import processor, write_table  # noqa: E402
from common.images.write import GEOTIFF  # noqa: E402
from common.inference.job import Job  # noqa: E402
from common.inference.predictor import Predictor  # noqa: E402
from common.inference.products import Products  # noqa: E402
from common.networks.checkpoint import ModelCard  # noqa: E402
from common.networks.precision import Precision  # noqa: E402
from common.outputs import OutputFolder  # noqa: E402

KINDS = {
    "class raster": Products(prob=False),
    "with probabilities, float32": Products(),
    "with probabilities, uint8": Products(prob_type="uint8"),
    "with GeoPackage": Products("gpkg", prob=False),
}
EVERY = 58
"""Pixels between rectangles: 20 000 of them on 8192 x 8192."""


@dataclass(frozen=True)
class Config:
    """Measure the path from a file to files without a network."""

    side: int = 8192
    """Of the raster, pixels."""
    rounds: int = 3
    """How often each row is measured; medians are shown."""
    folder: Path | None = None
    """Where the raster goes, and stays; default: a temporary folder."""


class Free(nn.Module):
    """The first band, as logits."""

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 1, H, W)."""
        return images[:, :1]


def make_raster(path: Path, side: int) -> None:
    """Write rectangles on a noisy ground, unless the file is there."""
    if path.is_file():
        return
    rng = np.random.default_rng(0)
    options = GEOTIFF | {"count": 3, "height": side, "width": side, "dtype": "uint8", "predictor": 2}
    options |= {"crs": "EPSG:25830", "transform": Affine(0.2, 0, 430000, 0, -0.2, 4580000), "interleave": "pixel"}
    cols = np.arange(side)
    with rasterio.open(path, "w", **options) as dataset:
        for first in range(0, side, 512):
            rows = np.arange(first, min(first + 512, side))
            band = rng.integers(60, 76, (3, len(rows), side), np.uint8)
            height, width = 20 + rows // EVERY % 12, 16 + cols // EVERY % 17
            band += np.uint8(150) * ((rows % EVERY < height)[:, None] & (cols % EVERY < width)[None])
            dataset.write(band, window=((first, first + len(rows)), (0, side)))


def measure(source: Path, kind: str, results: multiprocessing.Queue[dict[str, float]]) -> None:
    """Make the products of a kind and put what it took into the queue."""
    torch.set_num_threads(1)  # there is nothing to compute
    card = ModelCard(
        "footprints", "free", {}, ["background", "building"], {0: (0, 0, 0), 1: (255, 0, 0)}, reach=16, threshold=0.64
    )
    predictor = Predictor([(Free(), card)], Precision(torch.device("cpu"), None))
    predictor(np.zeros((3, 512, 512), np.float32))
    peak, done = [resident()], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak.append(max(resident(), peak.pop()))

    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        before, started, spent = peak[0], time.perf_counter(), sum(os.times()[:4])
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        Job(predictor, OutputFolder(Path(folder)), KINDS[kind]).run(source, source.stem, lambda _: None)
        seconds, spent = time.perf_counter() - started, sum(os.times()[:4]) - spent
    done.set()
    thread.join()
    results.put({"seconds": seconds, "spent": spent, "added": peak[0] - before})


def read_alone(source: Path, results: multiprocessing.Queue[dict[str, float]]) -> None:
    """Decode the raster by rows and put what it took into the queue."""
    started, spent = time.perf_counter(), sum(os.times()[:4])
    with rasterio.open(source) as dataset:
        for first in range(0, dataset.height, 512):
            dataset.read(window=((first, min(first + 512, dataset.height)), (0, dataset.width)))
    results.put({"seconds": time.perf_counter() - started, "spent": sum(os.times()[:4]) - spent, "added": 0})


def main() -> None:
    """Make the raster, measure all rows in turns, write pipeline_ceiling.csv and .md."""
    config = tyro.cli(Config)
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("rasterio reads it", *KINDS)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = config.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        source = folder / f"free_{config.side}.tif"
        make_raster(source, config.side)
        for _ in range(config.rounds):
            for name in found:
                results: multiprocessing.Queue[dict[str, float]] = context.Queue()
                work = (measure, (source, name, results)) if name in KINDS else (read_alone, (source, results))
                process = context.Process(target=work[0], args=work[1])
                process.start()
                found[name].append(results.get())
                process.join()
    middle = {
        name: {key: statistics.median(one[key] for one in each) for key in each[0]} for name, each in found.items()
    }
    megapixels, base = config.side**2 / 1e6, middle["rasterio reads it"]
    rows = [
        {
            "what": name,
            "seconds": round(each["seconds"], 2),
            "Mpx/s": round(megapixels / each["seconds"], 1),
            "of reading alone": round(each["seconds"] / base["seconds"], 2),
            "processor seconds": round(each["spent"], 2),
            "of reading alone's": round(each["spent"] / base["spent"], 2),
            "added memory, MB": round(each["added"] / 1e6),
        }
        for name, each in middle.items()
    ]
    write_table(Path(__file__), rows, f"{config.side} x {config.side} x 3, {config.rounds} rounds; {processor()}.")


if __name__ == "__main__":
    main()
