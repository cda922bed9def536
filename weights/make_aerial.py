"""Make ``weights/aerial.pt`` from generated towns alone: ``python weights/make_aerial.py [--resume auto]``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from common.command.cli import run_command, say
from common.command.config import TrainConfig, parse_config
from common.data.generated import Crops, sample, scene
from common.losses import LossRecipe
from common.networks.checkpoint import ModelCard, load_matching, read_weights
from common.networks.precision import choose_precision
from common.networks.unet_small import SMALL, UNetSmall
from common.samples import Sample
from common.scenes.aerial import LAND
from common.scenes.sensor import photograph
from common.training.experiment import Experiment
from common.training.loop import fit, seed_everything
from common.training.runs import open_run
from weights.shipping import ship

TASK = "aerial"
MEAN, STD = (0.45, 0.45, 0.43), (0.22, 0.20, 0.20)
"""Of aerial photographs in 0...1."""
SEEN = (0.3, 0.55)
"""Of the crops, which are zoomed: what images are read at."""
CLASS_WEIGHTS = (1.0, 1.6, 1.0, 1.0, 1.0, 1.5, 1.5, 1.0)
"""Of the cross-entropy."""
PALETTE = {
    0: (255, 255, 255), 1: (0, 0, 255), 2: (0, 255, 255), 3: (0, 255, 0), 4: (255, 255, 0), 5: (255, 0, 0),
    6: (0, 0, 120), 7: (200, 170, 120),
}  # fmt: skip

OUT = Path(__file__).with_name("aerial.pt")


@dataclass(frozen=True)
class Config(TrainConfig):
    """Train the aerial network that ships, on generated towns."""

    epochs: int = 120
    batch_size: int = 8
    lr: float = 3e-3
    weight_decay: float = 1e-3
    warmup_steps: int = 50
    scheduler: Literal["constant", "plateau", "step", "poly", "cosine"] = "cosine"
    loss: str = "ce+dice"
    clip_norm: float = 5.0
    ema: float = 0.998
    widths: tuple[int, ...] = tuple(SMALL["widths"])
    """Feature channels per resolution, from half the image's on."""
    scenes: int = 2400
    """Generated scenes, each a town of its own; rendered when they are first needed."""
    samples_per_epoch: int = 1600
    """Crops per epoch."""
    crop_size: int = 128
    """Side of the crops, pixels."""
    mean: tuple[Path, ...] = ()
    """Files whose mean with the best of the training is made."""
    out: Path = OUT
    """The file that is made."""


def main() -> int:
    """Worlds, network, training, the file."""
    config = parse_config(Config)
    run = open_run(TASK, config)
    precision = choose_precision(config.device, config.amp)
    seed_everything(config.seed)
    arch_args: dict[str, Any] = {"outputs": len(LAND), **SMALL, "widths": list(config.widths)}
    card = ModelCard(
        TASK, "unet_small", arch_args, list(LAND), PALETTE, normalization={"mean": list(MEAN), "std": list(STD)},
        gsd=SEEN, loss=LossRecipe(config.loss, class_weights=CLASS_WEIGHTS), data_root="generated scenes",
    )  # fmt: skip
    crops = Crops(config.scenes, config.samples_per_epoch, config.crop_size, config.seed, small=0.3)
    held_out = HeldOut(max(2, min(24, config.scenes // 8)), config.crop_size, config.seed + 1)
    network = UNetSmall(**arch_args)
    if config.weights != "none":
        say(f"weights: {load_matching(network, read_weights(Path(config.weights)))} from {config.weights}")
    others = [read_weights(path) for path in config.mean]
    run.create(config)
    fit(Experiment(network, card, crops, held_out), config, run, precision)
    ship(run.path / "best_iou.pt", network, config.out, others)
    return 0


class HeldOut:
    """Validation samples: scenes of other towns, each taken by one other camera."""

    def __init__(self, count: int, side: int, seed: int) -> None:
        self.samples = []
        for number in range(count):
            image, classes = scene(seed, number, side)
            rng = np.random.default_rng((seed, number))
            self.samples.append(sample(photograph(image, rng), classes, f"held out {number}"))

    def __len__(self) -> int:
        """Number of scenes."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """One scene."""
        return self.samples[index]


if __name__ == "__main__":
    run_command(main)
