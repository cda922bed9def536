"""Inference that is killed at random moments and started again, against an uninterrupted run.

    python benchmarks/killed_runs.py --size 6000 --kills 3
    python benchmarks/killed_runs.py --size 6000 --kills 3 --workers 2

The same command is started, killed with SIGKILL at a random moment, and started again until it ends by itself. With
workers so many of those are killed at work, and the command itself once in between. The rasters must then be the same
bytes as those of a run in one process that nobody killed, the polygons the same feature by feature, and nothing else
may lie in the folder. The table is written beside this script.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[0] = str(REPOSITORY)

import numpy as np  # noqa: E402 - imports begin at the repository's root
import pyogrio  # noqa: E402
import torch  # noqa: E402
import tyro  # noqa: E402

from benchmarks.large_raster import make_raster  # noqa: E402
from benchmarks.quick_model import quick_checkpoint  # noqa: E402
from benchmarks.tables import processor, write_table  # noqa: E402


@dataclass(frozen=True)
class Config:
    """Kill inference and see whether it goes on."""

    size: int = 6000
    """Side of the raster, pixels."""
    kills: int = 3
    """How often the run, or a worker, is killed."""
    workers: int = 0
    """Of the run that is killed, with one thread each."""
    seed: int = 0
    """Of the moments."""
    checkpoint: Path = REPOSITORY / "data" / "benchmarks" / "unet_small.pt"
    """Weights of unet_small; trained briefly if there are none."""


def start(source: Path, checkpoint: Path, folder: Path, threads: int, workers: int = 0) -> subprocess.Popen[str]:
    """Start inference with all products."""
    flags = ["--checkpoint", checkpoint, "--output-dir", folder, "--vector", "gpkg", "--cog", "--workers", workers]
    command = [sys.executable, str(REPOSITORY / "footprints" / "infer.py"), str(source), *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def features(path: Path) -> list[tuple[object, ...]]:
    """The geometry and the fields of every polygon."""
    _, _, geometry, columns = pyogrio.raw.read(path)
    return list(zip(geometry.tolist(), *(column.tolist() for column in columns), strict=True))


def compare(whole: Path, killed: Path) -> dict[str, str]:
    """Whether the products of both folders are the same."""
    names = {path.name for path in whole.iterdir()}
    found = {path.name for path in killed.iterdir()}
    result = {"files": "the same" if names == found else f"differ: {sorted(names ^ found)}"}
    for path in sorted(whole.glob("town*")):
        if path.suffix == ".gpkg":
            ours, theirs = features(path), features(killed / path.name)
            result[path.name] = f"{len(ours)} polygons, {'equal' if ours == theirs else 'DIFFERENT'}"
        else:
            same = path.read_bytes() == (killed / path.name).read_bytes()
            result[path.name] = "identical bytes" if same else "DIFFERENT"
    return result


@dataclass
class Killed:
    """What a run went through until it ended by itself."""

    moments: list[str]
    went_on: list[str]


def kill_runs(config: Config, source: Path, folder: Path, seconds: float, threads: int) -> Killed:
    """Start the command and kill it, until it was killed often enough and ends by itself."""
    rng, found, left = np.random.default_rng(config.seed), Killed([], []), seconds
    while True:
        process = start(source, config.checkpoint, folder, threads)
        moment = float(rng.uniform(0.1, 0.9)) * left if len(found.moments) < config.kills else None
        try:
            _, said = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
            found.moments.append(f"{moment:.1f} s")
            left *= 0.8  # what was finished is not done again
        else:
            if process.returncode:
                raise RuntimeError(f"a later run failed: {said}")
            return found
        finally:
            found.went_on += [line.split(": ", 1)[1] for line in said.splitlines() if "finished before" in line]


def at_work(folder: Path, not_before: float) -> list[tuple[int, int]]:
    """Workers that have finished rows of a part since a time: process id, rows."""
    found = []
    for state in folder.glob(".town-*/rows-*.partial/finished.json"):
        try:
            if state.stat().st_mtime > not_before:
                owner = json.loads((state.parent / "owner.json").read_text())
                found.append((owner["pid"], json.loads(state.read_text())["rows"]))
        except (OSError, ValueError):  # it is just being renamed
            continue
    return found


def kill_workers(config: Config, source: Path, folder: Path, seconds: float) -> Killed:
    """Kill workers in the midst of their parts, and once the command, whose successor goes on."""
    rng, found = np.random.default_rng(config.seed), Killed([], [])
    process = start(source, config.checkpoint, folder, config.workers, config.workers)
    for number in range(config.kills + 1):
        before = time.time()
        while not (busy := at_work(folder, before)):
            if process.poll() is not None:
                raise RuntimeError("the run ended before all kills")
            time.sleep(0.05)
        time.sleep(float(rng.uniform(0, 0.1)) * seconds)
        busy = at_work(folder, before) or busy
        if number == config.kills // 2 + 1:
            process.kill()
            process.communicate()
            found.moments.append("the command")
            process = start(source, config.checkpoint, folder, config.workers, config.workers)
        else:
            pid, rows = busy[int(rng.integers(len(busy)))]
            os.kill(pid, signal.SIGKILL)
            found.moments.append(f"a worker at row {rows} of its part")
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the last run failed: {said}")
    found.went_on = [line.split(": ", 1)[1] for line in said.splitlines() if "finished before" in line]
    return found


def main() -> None:
    """Run once undisturbed and once with kills, compare, write killed_runs.csv and .md."""
    config = tyro.cli(Config)
    quick_checkpoint(config.checkpoint)
    threads = 1 if config.workers else torch.get_num_threads()
    with tempfile.TemporaryDirectory() as temporary:
        source, whole, other = (Path(temporary) / name for name in ("town.tif", "whole", "killed"))
        make_raster(source, config.size, config.size)
        started = time.perf_counter()
        if start(source, config.checkpoint, whole, threads).wait():
            raise RuntimeError("the undisturbed run failed")
        seconds = time.perf_counter() - started
        if config.workers:
            killed = kill_workers(config, source, other, seconds)
        else:
            killed = kill_runs(config, source, other, seconds, threads)
        rows = [{"what": what, "result": result} for what, result in compare(whole, other).items()]
    note = (
        f"{config.size} x {config.size} pixels, undisturbed in one process with {threads} thread(s) {seconds:.1f} s; "
        f"killed{f' of {config.workers} workers' if config.workers else ''}: {', '.join(killed.moments)}; "
        f"{'; '.join(killed.went_on) or 'nothing was finished before'}. {processor()}."
    )
    write_table(Path(__file__).with_stem("killed_runs" + "_workers" * bool(config.workers)), rows, note)


if __name__ == "__main__":
    main()
