"""Make ``weights/nuclei.pt`` from generated frames alone: ``python weights/make_nuclei.py [--resume auto]``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from common.command.cli import run_command
from common.command.config import TrainConfig, parse_config
from common.losses import LossRecipe
from common.networks.precision import choose_precision
from common.training.experiment import Experiment
from common.training.loop import fit, seed_everything
from common.training.runs import open_run
from hela_nuclei.data import Frame, LoadedFrame
from hela_nuclei.model import WIDTHS
from hela_nuclei.samples import FrameCrops, WholeFrames
from hela_nuclei.scenes.sequences import Microscope, render_sequence
from hela_nuclei.scoring import build_criterion
from hela_nuclei.task import TASK
from weights.shipping import ship

SIDE = 448
"""Height and width of the generated frames, pixels."""
BORDER = 0
"""The generated truth has no gaps at the border."""


OUT = Path(__file__).with_name("nuclei.pt")


@dataclass(frozen=True)
class Config(TrainConfig):
    """Train the nuclei network that ships, on generated frames."""

    epochs: int = 60
    batch_size: int = 8
    lr: float = 2e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 50
    scheduler: Literal["constant", "plateau", "step", "poly", "cosine"] = "cosine"
    loss: str = "bce+dice"
    clip_norm: float = 1.0
    ema: float = 0.998
    sequences: int = 140
    """Generated sequences of three frames, each through a microscope of its own."""
    samples_per_epoch: int = 480
    """Crops per epoch."""
    crop_size: int = 256
    """Side of the crops, pixels."""
    out: Path = OUT
    """The file that is made."""


def main() -> int:
    """Worlds, network, training, the file."""
    config = parse_config(Config)
    run = open_run(TASK.name, config)
    precision = choose_precision(config.device, config.amp)
    seed_everything(config.seed)
    frames = render_frames(config.sequences, config.seed)
    held_out = render_frames(max(1, config.sequences // 12), config.seed + 1)
    arch_args = {"outputs": 2, "channels": 1, "widths": list(WIDTHS)}
    loss = LossRecipe(config.loss)
    card = TASK.card(
        "unet", arch_args, normalization={"range": "minimum to maximum of each frame"}, maps=("distance",), loss=loss,
        data_root="generated scenes",
    )  # fmt: skip
    crops = FrameCrops(frames, crop=config.crop_size, length=config.samples_per_epoch, border=BORDER)
    model = TASK.build("unet", **arch_args)
    TASK.initialize(model, config.weights)
    whole = WholeFrames(held_out, border=BORDER)
    run.create(config)
    fit(Experiment(model, card, crops, whole, criterion=build_criterion(loss)), config, run, precision)
    ship(run.path / "best_iou.pt", model, config.out)
    return 0


def render_frames(sequences: int, seed: int) -> list[LoadedFrame]:
    """Frames with every nucleus named: from empty to crowded, each sequence through another microscope."""
    frames = []
    for number in range(sequences):
        rng = np.random.default_rng((seed, number))
        microscope = Microscope.draw(rng)
        crowd = float(rng.uniform(2, 48)) if rng.random() < 0.85 else 0.4
        count = round(crowd * (SIDE / 256 / microscope.zoom) ** 2)
        images, labels, _ = render_sequence(rng, 3, SIDE, SIDE, count, microscope)
        for page, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = Path(f"generated/{seed}/{number:03d}_{page}.tif")
            frames.append(LoadedFrame(Frame(f"{number:03d}", page, place, place), image, label.astype(np.int32)))
    return frames


if __name__ == "__main__":
    run_command(main)
