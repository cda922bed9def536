"""Inference by two workers with one thread each, against one process with two threads.

    python benchmarks/many_workers.py --size 6000 --files 2000 --rounds 3

Both are commands of their own and take turns. Their speed is what their last line says: work without starting up, which
is a column of its own, as is the largest memory of a worker. The table is written beside this script.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[0] = str(REPOSITORY)

import numpy as np  # noqa: E402 - imports begin at the repository's root
import psutil  # noqa: E402
import tyro  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.large_raster import make_raster  # noqa: E402
from benchmarks.quick_model import quick_checkpoint  # noqa: E402
from benchmarks.tables import processor, write_table  # noqa: E402


@dataclass(frozen=True)
class Config:
    """Compare workers with one process."""

    size: int = 6000
    """Side of the raster, pixels."""
    files: int = 2000
    """Small pictures."""
    side: int = 128
    """Of a picture, pixels."""
    rounds: int = 3
    """Of the raster; the pictures have one."""
    workers: int = 2
    """With one thread each; the one process has so many threads."""
    checkpoint: Path = REPOSITORY / "data" / "benchmarks" / "unet_small.pt"
    """Weights of unet_small; trained briefly if there are none."""


@dataclass(frozen=True)
class Run:
    """What a command took."""

    work: float
    """Seconds, without starting up."""
    wall: float
    memory: float
    """Of its largest process but the command itself, or of that if there is no other, MB."""


def infer(config: Config, source: Path, folder: Path, workers: int) -> Run:
    """Run the command and watch its processes."""
    flags = ["--checkpoint", config.checkpoint, "--output-dir", folder, "--vector", "gpkg", "--workers", workers]
    line = [sys.executable, REPOSITORY / "footprints" / "infer.py", source, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": str(config.workers)}
    started, memory = time.perf_counter(), 0.0
    process = subprocess.Popen(list(map(str, line)), env=environment, stderr=subprocess.PIPE, text=True)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            others = watched.children(recursive=True) or [watched]
            memory = max(memory, *(each.memory_info().rss / 1e6 for each in others))
        except psutil.NoSuchProcess:  # it has just ended
            continue
        time.sleep(0.2)
    wall = time.perf_counter() - started
    said = process.stderr.read() if process.stderr else ""
    found = re.search(r"files to .* in ([\d.]+) s", said)
    if process.returncode or not found:
        raise RuntimeError(f"the command failed: {said}")
    shutil.rmtree(folder)
    return Run(float(found[1]), wall, memory)


def compare(config: Config, what: str, source: Path, rounds: int, amount: float, unit: str) -> list[dict[str, object]]:
    """Rows of the table: both ways, taking turns."""
    runs: dict[int, list[Run]] = {0: [], config.workers: []}
    for number in range(rounds):
        for workers in sorted(runs, reverse=number % 2 == 1):
            runs[workers].append(infer(config, source, source.parent / "out", workers))
    ratio = statistics.median(one.work / many.work for one, many in zip(runs[0], runs[config.workers], strict=True))
    rows: list[dict[str, object]] = []
    for workers, done in runs.items():
        work = statistics.median(run.work for run in done)
        rows.append(
            {
                "input": what,
                "processes": f"{workers} workers x 1 thread" if workers else f"1 process x {config.workers} threads",
                "speed": f"{amount / work:.3g} {unit}/s",
                "against one process": f"{ratio:.2f}" if workers else "1",
                "starting up, s": f"{statistics.median(run.wall - run.work for run in done):.1f}",
                "memory of one process, MB": f"{max(run.memory for run in done):.0f}",
            }
        )
    return rows


def main() -> None:
    """Measure and write many_workers.csv and .md."""
    config = tyro.cli(Config)
    quick_checkpoint(config.checkpoint)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        town, pictures = Path(temporary) / "town.tif", Path(temporary) / "pictures"
        make_raster(town, config.size, config.size)
        pictures.mkdir()
        for number in range(config.files):
            pixels = rng.integers(0, 256, (config.side // 8, config.side // 8, 3), dtype=np.uint8)
            Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(pictures / f"{number:04d}.png")
        note = (
            "Prediction, joining and all products (mask, probability, overlay, polygons) of footprints/infer.py with "
            f"unet_small; ratios are medians of {config.rounds} paired rounds (pictures: one). {processor()}."
        )
        rows = compare(config, f"{config.size} x {config.size} px", town, config.rounds, config.size**2 / 1e6, "Mpx")
        write_table(Path(__file__), rows, note)
        if config.files:
            what = f"{config.files} pictures {config.side} x {config.side} px"
            rows += compare(config, what, pictures, 1, config.files, "files")
            write_table(Path(__file__), rows, note)


if __name__ == "__main__":
    main()
