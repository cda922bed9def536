"""Memory and speed of the streaming path: a georeferenced raster of any size to a class COG and polygons.

    python benchmarks/large_raster.py --width 21817 --height 15899

The raster is a window of the generated town. Each measurement runs in a process of its own: what counts is the most
that the process took beyond what it had before the first window was read. A second raster of a quarter of the height
shows whether memory depends on it. The table is written beside this script.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[0] = str(REPOSITORY)

import numpy as np  # noqa: E402 - imports begin at the repository's root
import pyogrio  # noqa: E402
import rasterio  # noqa: E402
import tyro  # noqa: E402
from affine import Affine  # noqa: E402

from benchmarks.quick_model import quick_checkpoint  # noqa: E402
from benchmarks.tables import processor, write_table  # noqa: E402
from common.images.write import GEOTIFF  # noqa: E402
from common.inference.job import Job  # noqa: E402
from common.inference.predictor import Predictor  # noqa: E402
from common.inference.products import Products, provenance  # noqa: E402
from common.networks.precision import choose_precision  # noqa: E402
from common.outputs import OutputFolder  # noqa: E402
from common.scenes.aerial_world import BLOCK, AerialWorld  # noqa: E402
from footprints.task import TASK  # noqa: E402

GSD = 0.2


@dataclass(frozen=True)
class Config:
    """Measure the prediction of a raster that should not be held in memory."""

    width: int = 21817
    """Pixels."""
    height: int = 15899
    """Pixels."""
    prob: bool = False
    """Write the probabilities too."""
    folder: Path | None = None
    """Where rasters and results go, and stay; default: a temporary folder."""
    checkpoint: Path = REPOSITORY / "data" / "benchmarks" / "unet_small.pt"
    """Weights of unet_small; trained briefly if there are none."""


def make_raster(path: Path, width: int, height: int) -> None:
    """Render a town into a GeoTIFF, unless it is there."""
    if path.is_file():
        return
    world, grid = AerialWorld(2, gsd=GSD), Affine(GSD, 0, 430000, 0, -GSD, 4580000)
    options = GEOTIFF | {"count": 3, "height": height, "width": width, "dtype": "uint8", "predictor": 2}
    options |= {"crs": "EPSG:25830", "transform": grid, "photometric": "rgb", "interleave": "pixel"}
    temporary = path.with_suffix(".part.tif")
    with rasterio.open(temporary, "w", **options) as dataset:
        for row in range(0, height, BLOCK):
            image, _ = world.render(row, 0, min(BLOCK, height - row), width)
            dataset.write(np.moveaxis(image, -1, 0), window=((row, row + len(image)), (0, width)))
    temporary.replace(path)


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measure(source: Path, config: Config, results: multiprocessing.Queue[dict[str, float]]) -> None:
    """Predict a raster and put what it took into the queue."""
    precision = choose_precision("cpu")
    predictor = Predictor.load(TASK, [config.checkpoint], precision)
    predictor(np.zeros((3, 512, 512), np.float32))  # libraries set themselves up
    products = Products("gpkg", cog=True, prob=config.prob, tags=provenance([config.checkpoint], predictor.threshold))
    peak, done = [resident()], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak.append(max(resident(), peak.pop()))

    before, started = peak[0], time.perf_counter()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    predicted: list[float] = []
    job = Job(predictor, OutputFolder(source.parent / "out"), products)
    job.run(source, source.stem, lambda _: predicted.append(time.perf_counter() - started))
    seconds = time.perf_counter() - started
    done.set()
    thread.join()
    results.put({"added": peak[0] - before, "seconds": seconds, "predicted": predicted[-1]})


def row_of(source: Path, config: Config) -> dict[str, object]:
    """Measure one raster in a fresh process; a row of the table."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measure, args=(source, config, results))
    process.start()
    found = results.get()
    process.join()
    with rasterio.open(source) as dataset:
        width, height = dataset.width, dataset.height
    megapixels = width * height / 1e6
    return {
        "raster": f"{width} x {height} x 3",
        "Mpx": round(megapixels, 1),
        "added memory, MB": round(found["added"] / 1e6),
        "seconds": round(found["seconds"], 1),
        "Mpx/s": round(megapixels / found["seconds"], 2),
        "of it the network, s": round(found["predicted"], 1),
        "polygons": pyogrio.read_info(source.parent / "out" / f"{source.stem}.gpkg")["features"],
    }


def main() -> None:
    """Make both rasters, measure both, write large_raster.csv and .md."""
    config = tyro.cli(Config)
    quick_checkpoint(config.checkpoint)
    with tempfile.TemporaryDirectory() as temporary:
        folder = config.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for height in (config.height, config.height // 4):
            source = folder / f"town_{config.width}_{height}.tif"
            make_raster(source, config.width, height)
            rows.append(row_of(source, config))
    note = (
        "unet_small, class COG"
        f"{', probabilities' * config.prob} and GeoPackage; {processor()}, {choose_precision('cpu')}."
    )
    write_table(Path(__file__), rows, note)


if __name__ == "__main__":
    main()
