"""Training windows per second against bare rasterio reads of the same windows: ``python benchmarks/window_loading.py``.

All read the same files at the same places, orthophoto and mask, with handles that stay open and a block cache far
smaller than the files; rounds alternate, in processes of equal number. Bare reads throw away what they read, or are
handed over by a DataLoader as they are. Ours joins two files by their georeference, checks classes and nodata, and is
handed over by the same DataLoader.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ["GDAL_CACHEMAX"] = "16"  # MB, in every process

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import rasterio
import torch
import tyro
from torch.utils.data import DataLoader, Dataset

from benchmarks.tables import processor, write_table
from common.data.sampling import Key
from common.images.windows import Window
from common.scenes.aerial import write_permeability
from permeability.data import Join, find_files, inspect_sites, join_sites
from permeability.samples import TrainingWindows, around

Place = tuple[str, str, Window, Window]
"""Orthophoto, mask, and the window in each."""


@dataclass(frozen=True)
class Config:
    """Compare the loading of windows with bare reads."""

    data_root: Path | None = None
    """Folder in the task's layout; default: three generated sheets of 3000 x 4000 pixels."""
    side: int = 512
    """Side of the windows, pixels."""
    windows: int = 400
    """Windows of one round."""
    batch: int = 8
    """Windows of one batch."""
    rounds: int = 5
    """Rounds; the median counts."""


def main() -> None:
    """Measure with 0 and 2 workers."""
    config = tyro.cli(Config)
    with tempfile.TemporaryDirectory() as folder:
        root = config.data_root
        if root is None:
            root = Path(folder) / "scenes"
            write_permeability(root, sheets=(3, 0, 0), height=3000, width=4000)
        compare(config, root)


def compare(config: Config, root: Path) -> None:
    """Run the rounds and write the table."""
    sites, _, _ = join_sites(*find_files(root, None, None), Join())
    found, _ = inspect_sites(sites)
    data = TrainingWindows(found, [site.id for site in found.sites], crop=config.side, length=config.windows)
    seeds = np.random.default_rng(0).integers(0, 2**31, config.windows).tolist()
    keys: list[Key] = list(zip(range(config.windows), seeds, strict=True))
    # Bare reads want windows inside the files, so both sides get those alone.
    keys = [key for key in keys if place_of(data, key) is not None]
    places = [place for key in keys if (place := place_of(data, key)) is not None]
    rows = []
    for workers in (0, 2):
        rounds = np.array(measure(data, keys, places, workers, config))
        thrown, handed, ours = np.median(rounds, axis=0)
        rows.append(
            {
                "workers": workers,
                "bare rasterio, windows/s": f"{thrown:.1f}",
                "the same through a DataLoader": f"{handed:.1f}",
                "TrainingWindows": f"{ours:.1f}",
                "ours / bare, median": f"{np.median(rounds[:, 2] / rounds[:, 0]):.3f}",
                "ours / bare through a DataLoader, median": f"{np.median(rounds[:, 2] / rounds[:, 1]):.3f}",
            }
        )
    what = f"{len(keys)} windows of {config.side} x {config.side} a round, {config.rounds} paired rounds"
    write_table(Path(__file__), rows, f"{what}, batches of {config.batch}; {processor()}.")


def place_of(data: TrainingWindows, key: Key) -> Place | None:
    """Where a sample is read; None where its window lies partly beyond a file."""
    site, center, _ = data._draw(key)
    window, (row, col) = around(center, data.crop), site.offset or (0, 0)
    inside = min(window.row, window.col, window.row - row, window.col - col) >= 0
    inside &= window.row + data.crop <= site.grid.height and window.col + data.crop <= site.grid.width
    height, width = site.mask.size
    inside &= window.row - row + data.crop <= height and window.col - col + data.crop <= width
    if not inside:
        return None
    mask = Window(window.row - row, window.col - col, data.crop, data.crop)
    return str(site.image.path), str(site.mask.path), window, mask


def measure(
    data: TrainingWindows, keys: Sequence[Key], places: Sequence[Place], workers: int, config: Config
) -> list[tuple[float, float, float]]:
    """Windows per second of bare reads, of those through a loader, and of ours; the first round opens the files."""
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    ours: Any = DataLoader(data, batch_sampler=Batches(keys, config.batch), **options)  # type: ignore[arg-type]
    reads: Any = DataLoader(BareReads(), batch_sampler=Batches(places, config.batch), **options)
    pool = ProcessPoolExecutor(workers) if workers else None
    rounds = [(bare(places, workers, pool), loaded(reads), loaded(ours)) for _ in range(config.rounds + 1)]
    if pool is not None:
        pool.shutdown()
    return rounds[1:]


class BareReads(Dataset[dict[str, Any]]):
    """What rasterio reads at a place, and nothing else."""

    def __getitem__(self, place: Place) -> dict[str, Any]:
        """Image and mask."""
        image, mask = read(place)
        return {"image": torch.from_numpy(image), "target": torch.from_numpy(mask), "id": place[0]}


def bare(places: Sequence[Place], workers: int, pool: ProcessPoolExecutor | None) -> float:
    """Windows per second of plain reads, in this process or shared by several."""
    begun = time.perf_counter()
    if pool is None:
        read_all(places)
    else:
        list(pool.map(read_all, [places[i::workers] for i in range(workers)]))
    return len(places) / (time.perf_counter() - begun)


def read_all(places: Sequence[Place]) -> None:
    """Read all of them, and keep nothing."""
    for place in places:
        read(place)


def read(place: Place) -> tuple[Any, Any]:
    """Orthophoto and mask at a place."""
    photo, mask, where, there = place
    image = opened(photo, os.getpid()).read([1, 2, 3], window=where)
    return image, opened(mask, os.getpid()).read(1, window=there)


@cache
def opened(path: str, process: int) -> Any:  # noqa: ANN401 - rasterio has no types
    """A file of this process, open until the end: handles do not survive a fork."""
    return rasterio.open(path)


def loaded(loader: Any) -> float:  # noqa: ANN401 - of keys, for which torch has no type
    """Windows per second of the data loader, from its start to its last batch."""
    begun = time.perf_counter()
    count = sum(len(batch["id"]) for batch in loader)
    return count / (time.perf_counter() - begun)


class Batches:
    """Batches of keys."""

    def __init__(self, keys: Sequence[Any], size: int) -> None:
        self.keys, self.size = list(keys), size

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.keys) // self.size)

    def __iter__(self) -> Iterator[list[Any]]:
        """One batch after another."""
        for first in range(0, len(self.keys), self.size):
            yield self.keys[first : first + self.size]


if __name__ == "__main__":
    main()
