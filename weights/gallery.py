"""Make the pictures that the READMEs open with, of generated scenes: ``python weights/gallery.py [--folder DIR]``.

Each task's picture is an image beside what the weights that ship make of it, without any training.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import tyro
from PIL import Image

from common.command.cli import run_command
from common.images.display import Pixels, overlay, stretch, strip
from common.inference.predictor import Predictor
from common.networks.precision import choose_precision
from common.networks.task import Task
from common.scenes.aerial import render_scene
from footprints.task import TASK as FOOTPRINTS
from hela_nuclei.draw import outlines
from hela_nuclei.frames import scale_frame
from hela_nuclei.predict import NucleiPredictor
from hela_nuclei.scenes.sequences import render_sequence
from hela_nuclei.task import TASK as NUCLEI
from permeability.task import TASK as PERMEABILITY
from potsdam_points.task import TASK as POTSDAM
from rooftops.task import TASK as ROOFTOPS

SIZE = (320, 560)
"""Height and width of each picture's half, pixels."""
SCENES: dict[str, tuple[Task, int, float]] = {
    "footprints": (FOOTPRINTS, 8, 0.4),
    "rooftops": (ROOFTOPS, 10, 0.3),
    "permeability": (PERMEABILITY, 21, 0.5),
    "potsdam_points": (POTSDAM, 8, 0.3),
}
"""Task, seed of the scene, and metres per pixel; buildings are found in these as in the median of seeds 1 to 20."""


@dataclass(frozen=True)
class Config:
    """Make the pictures that the READMEs open with."""

    folder: Path = Path(__file__).resolve().parents[1]
    """Where they go, as <task>/gallery.jpg."""


def main() -> int:
    """Predict and write the picture of every task."""
    root = tyro.cli(Config).folder
    pictures = {name: aerial(*scene) for name, scene in SCENES.items()} | {NUCLEI.name: nuclei()}
    for name, picture in pictures.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(root / name / "gallery.jpg", quality=85)
    return 0


def aerial(task: Task, seed: int, gsd: float) -> Pixels:
    """A generated town and the classes found in it."""
    assert task.shipped is not None
    image, _ = render_scene(seed, *SIZE, gsd, undefined=False)
    predictor = Predictor.load(task, [task.shipped.path], choose_precision("cpu", "off")).at(gsd)
    values = np.moveaxis(image, -1, 0).astype(np.float32) / np.float32(255)
    return strip([image, overlay(image, predictor.classify(predictor(values)), predictor.card.palette)])


def nuclei() -> Pixels:
    """A generated frame and the nuclei found in it, touching ones apart."""
    assert NUCLEI.shipped is not None
    frames, _, _ = render_sequence(7, 1, *SIZE, 90)
    shared = Predictor.load(NUCLEI, [NUCLEI.shipped.path], choose_precision("cpu", "off"))
    found = NucleiPredictor(shared)(scale_frame(frames[0])).nuclei()
    return strip([stretch(frames[0]), outlines(frames[0], found)])


if __name__ == "__main__":
    run_command(main)
