"""Inference that is killed at random moments and started again, against an uninterrupted run.

    python benchmarks/killed_runs.py --size 6000 --kills 3

The same command is started, killed with SIGKILL at a random moment, and started again until it ends by itself. Its
rasters must then be the same bytes as those of a run that nobody killed, its polygons the same feature by feature, and
nothing else may lie in the folder. The table is written beside this script.
"""

from __future__ import annotations

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
    """How often the run is killed."""
    seed: int = 0
    """Of the moments."""
    checkpoint: Path = REPOSITORY / "data" / "benchmarks" / "unet_small.pt"
    """Weights of unet_small; trained briefly if there are none."""


def start(source: Path, checkpoint: Path, folder: Path) -> subprocess.Popen[str]:
    """Start inference with all products."""
    flags = ["--checkpoint", checkpoint, "--output-dir", folder, "--vector", "gpkg", "--cog"]
    command = [sys.executable, str(REPOSITORY / "footprints" / "infer.py"), str(source), *map(str, flags)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def features(path: Path) -> list[tuple[object, ...]]:
    """The geometry and the fields of every polygon."""
    _, _, geometry, columns = pyogrio.raw.read(path)
    return list(zip(geometry.tolist(), *(column.tolist() for column in columns), strict=True))


def compare(whole: Path, killed: Path) -> dict[str, str]:
    """Whether the products of both folders are the same."""
    names = {path.name for path in whole.iterdir()}
    found = {path.name for path in killed.iterdir()}
    result = {"files": "the same" if names == found else f"differ: {sorted(names ^ found)}"}
    for path in sorted(whole.iterdir()):
        if path.suffix == ".gpkg":
            ours, theirs = features(path), features(killed / path.name)
            result[path.name] = f"{len(ours)} polygons, {'equal' if ours == theirs else 'DIFFERENT'}"
        else:
            same = path.read_bytes() == (killed / path.name).read_bytes()
            result[path.name] = "identical bytes" if same else "DIFFERENT"
    return result


def main() -> None:
    """Run once undisturbed and once with kills, compare, write killed_runs.csv and .md."""
    config = tyro.cli(Config)
    quick_checkpoint(config.checkpoint)
    rng = np.random.default_rng(config.seed)
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "town.tif"
        make_raster(source, config.size, config.size)
        started = time.perf_counter()
        if start(source, config.checkpoint, Path(temporary) / "whole").wait():
            raise RuntimeError("the undisturbed run failed")
        seconds = time.perf_counter() - started
        moments: list[float] = []
        went_on: list[str] = []
        left = seconds
        while True:
            process = start(source, config.checkpoint, Path(temporary) / "killed")
            moment = float(rng.uniform(0.1, 0.9)) * left if len(moments) < config.kills else None
            try:
                _, said = process.communicate(timeout=moment)
            except subprocess.TimeoutExpired:
                process.kill()
                _, said = process.communicate()
                moments.append(moment or 0.0)
                left *= 0.8  # what was finished is not done again
            else:
                if process.returncode:
                    raise RuntimeError(f"a later run failed: {said}")
                break
            finally:
                went_on += [line.split(": ", 1)[1] for line in said.splitlines() if "finished before" in line]
        rows = [
            {"what": what, "result": result}
            for what, result in compare(Path(temporary) / "whole", Path(temporary) / "killed").items()
        ]
    times = ", ".join(f"{moment:.1f} s" for moment in moments)
    note = (
        f"{config.size} x {config.size} pixels, undisturbed {seconds:.1f} s, {len(moments)} kills after {times}; "
        f"{'; '.join(went_on) or 'nothing was finished before'}. {processor()}."
    )
    write_table(Path(__file__), rows, note)


if __name__ == "__main__":
    main()
