"""Commands that are killed with SIGKILL at random moments: no file under a final name that is not whole.

    python tests/hostile/kill.py --rounds 50 --seed 1

Every writing command runs once undisturbed, which says how long it takes, and is then killed at random moments of that
time. After each kill all files under final names must open, and all files of the user be as they were; commands that go
on where they were are then started again and must end well.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402 - imports begin at the repository's root
import tyro  # noqa: E402

from tests.hostile.arena import Arena, Outcome  # noqa: E402
from tests.hostile.cases import Bench, Verdict  # noqa: E402
from tests.hostile.contract import file_faults, snapshot, stream_faults  # noqa: E402
from tests.hostile.kit import COMMON, TRAINING, scene, write_geotiff, write_picture, write_training  # noqa: E402

Words = tuple[object, ...]
Prepare = Callable[[Bench, Path], tuple[str, Words, Words | None]]
"""Makes inputs in a folder; the command, its flags, and the flags with which it goes on (None: it does not)."""


def pictures(bench: Bench, folder: Path) -> tuple[str, Words, Words | None]:
    """Inference in memory."""
    paths = [write_picture(folder / "in" / f"{n}.png", scene((96, 128), n)[0]) for n in range(6)]
    flags = (*paths, "--checkpoint", bench.network("footprints"), "--output-dir", folder / "out", "--vector", "shp")
    return "footprints.infer", flags, flags


def streamed(bench: Bench, folder: Path) -> tuple[str, Words, Words | None]:
    """Inference in bounded memory, with polygons."""
    paths = [write_geotiff(folder / "in" / f"{n}.tif", scene((600, 700), n)[0]) for n in range(2)]
    flags = (*paths, "--checkpoint", bench.network("footprints"), "--output-dir", folder / "out", "--vector", "gpkg")
    return "footprints.infer", (*flags, "--tile-size", "128"), (*flags, "--tile-size", "128")


def frames(bench: Bench, folder: Path) -> tuple[str, Words, Words | None]:
    """Nuclei of a sequence, with the challenge's results."""
    source = write_training("hela_nuclei", folder / "in", 6) / "01"
    flags = (source, "--checkpoint", bench.network("hela_nuclei"), "--output-dir", folder / "out")
    return "hela_nuclei.infer", flags, flags


def video(bench: Bench, folder: Path) -> tuple[str, Words, Words | None]:
    """A video."""
    source = write_training("hela_nuclei", folder / "in", 20) / "01"
    flags = (source, "--checkpoint", bench.network("hela_nuclei"), "--out", folder / "out" / "v.avi")
    return "hela_nuclei.make_video", flags, flags


def training(bench: Bench, folder: Path) -> tuple[str, Words, Words | None]:
    """A training of three epochs."""
    data = write_training("footprints", folder / "in", 12)
    flags = ("--data-root", data, *TRAINING["footprints"], *COMMON, "--epochs", "3", "--output-dir", folder / "out")
    return "footprints.train", flags, (*flags, "--resume", "auto")


def crops(bench: Bench, folder: Path) -> tuple[str, Words, Words | None]:
    """Crops of a raster."""
    image, mask = scene((800, 900))
    write_geotiff(folder / "in" / "images" / "a.tif", image)
    write_geotiff(folder / "in" / "labels" / "a.tif", mask * np.uint8(255))
    return "footprints.crop", (folder / "in", folder / "out", "--size", "48"), None


def masks(bench: Bench, folder: Path) -> tuple[str, Words, Words | None]:
    """Masks of polygons."""
    for number in range(8):
        write_geotiff(folder / "in" / f"{number}.tif", scene((300, 400), number)[0])
    corners = [[14.9, 44.9], [15.1, 44.9], [15.1, 45.3], [14.9, 45.3], [14.9, 44.9]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [corners]}}
    (folder / "ground.geojson").write_text(json.dumps(feature))
    flags = (folder / "ground.geojson", "--ortho", folder / "in", "--out", folder / "out", "--burn", "1")
    return "permeability.make_masks", flags, None


def graph(bench: Bench, folder: Path) -> tuple[str, Words, Words | None]:
    """A network as ONNX."""
    flags = ("--checkpoint", bench.network("rooftops"), "--out", folder / "out" / "model.onnx")
    return "rooftops.export", flags, flags


def search(bench: Bench, folder: Path) -> tuple[str, Words, Words | None]:
    """A search of two trials."""
    data = write_training("permeability", folder / "in", 6)
    fixed = "arch: unet_small\nnormalization: measured\ncrop_size: 32\nsamples_per_epoch: 4\nepochs: 1\ngrad_accum: 1\n"
    (folder / "space.yaml").write_text(fixed + "lr: {low: 1e-4, high: 1e-2, log: true}\nbatch_size: [1, 2]\n")
    flags = (
        "--engine", "optuna", "--trials", "2", "--storage", folder / "out" / "s.json", "--space", folder / "space.yaml",
        "--data-root", data, "--output-dir", folder / "out" / "tune",
    )  # fmt: skip
    return "permeability.tune", flags, flags


COMMANDS: dict[str, Prepare] = {
    f.__name__: f for f in (pictures, streamed, frames, video, training, crops, masks, graph, search)
}


@dataclass(frozen=True)
class Config:
    """Kill commands and look at what they leave."""

    rounds: int = 3
    """Kills of each command."""
    seed: int = 0
    """Of the moments."""
    commands: tuple[str, ...] = tuple(COMMANDS)
    """Which."""


def undisturbed(bench: Bench, name: str) -> Verdict:
    """A command from start to end."""
    with bench.folder() as folder:
        command, flags, _ = COMMANDS[name](bench, folder)
        verdict = bench.judge(folder, command, *flags, limit=120)
        verdict.what = name
        if verdict.outcome.code:
            verdict.faults.append(f"exit code {verdict.outcome.code} undisturbed")
        return verdict


def killed(bench: Bench, name: str, moment: float) -> Verdict:
    """A command that is killed after some seconds, and goes on where it does that."""
    with bench.folder() as folder:
        command, flags, again = COMMANDS[name](bench, folder)
        before = snapshot(folder)
        outcome = bench.arena.run(command, *flags, cwd=folder, kill_after=moment)
        verdict = Verdict(f"{name} killed after {moment:.2f} s", outcome, file_faults(folder, before, killed=True))
        if again is not None and outcome.killed:
            outcome = bench.arena.run(command, *again, cwd=folder, limit=120)
            verdict.faults += [f"afterwards: {fault}" for fault in after(outcome, folder, before)]
            verdict.outcome = outcome
        return verdict


def after(outcome: Outcome, folder: Path, before: dict[bytes, str]) -> list[str]:
    """Faults of the run that goes on."""
    faults = stream_faults(outcome) + file_faults(folder, before)
    return [f"exit code {outcome.code}", *faults] if outcome.code else faults


def campaign(bench: Bench, config: Config) -> Iterator[Verdict]:
    """Every command, killed at random moments."""
    rng = np.random.default_rng(config.seed)
    for name in config.commands:
        whole = undisturbed(bench, name)
        yield whole
        for _ in range(config.rounds):
            yield killed(bench, name, float(rng.uniform(0.02, 1)) * whole.outcome.seconds)


def main() -> None:
    """Kill, look, print."""
    config = tyro.cli(Config)
    warnings.simplefilter("ignore")
    arena, root = Arena(), Path(tempfile.mkdtemp(prefix="kill-"))
    tried = bad = 0
    try:
        for verdict in campaign(Bench(arena, root), config):
            tried += bool(verdict.outcome.killed) or "killed" in verdict.what
            bad += bool(verdict.faults)
            print(verdict if verdict.faults else f"{verdict.what}: whole", flush=True)
    finally:
        arena.close()
        shutil.rmtree(root, ignore_errors=True)
    print(f"{tried} kills, {bad} with faults")


if __name__ == "__main__":
    main()
