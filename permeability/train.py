"""Train permeable ground: ``python permeability/train.py --data-root DIR`` (without flags: the demo)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first(__file__)

from common.command.cli import run_command, say
from common.command.config import TrainConfig
from common.data.generated import with_generated
from common.data.pairs import Facts, require_usable, say_facts, say_notes, value_rows
from common.data.splits import Split, count_parts
from common.images.ranges import ValueRanges
from common.inference.predictor import Predictor
from common.inference.score import CONTEXT, TILE_SIDE, score_samples
from common.losses import SEVERAL_LOGITS, LossRecipe
from common.networks.precision import Precision
from common.networks.unet_small import SMALL
from common.report.plots import History
from common.scenes.aerial import write_permeability
from common.training.budget import end_of
from common.training.command import run_training
from common.training.experiment import Experiment
from common.training.finish import Outcome, finish_run
from common.training.predicted import Predicted
from common.training.runs import RunFolder, demo_data
from common.training.suspects import LOOKED_AT, without_suspects
from permeability.data import (
    Join,
    SiteSet,
    Tile,
    audit,
    find_files,
    inspect_sites,
    join_sites,
    plan_tiles,
    split_sites,
    thin,
)
from permeability.labels import CLASSES
from permeability.samples import NORMALIZATION, TrainingWindows, ValidationTiles, WindowAugmentation, measure
from permeability.task import GROUPS, TASK

Architecture = Literal[
    "unet", "unetplusplus", "fpn", "deeplabv3", "deeplabv3plus", "linknet", "pspnet", "pan", "unet_small"
]
ResNet = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
MixTransformer = Literal["mit_b0", "mit_b1", "mit_b2", "mit_b3", "mit_b4", "mit_b5"]
DEMO = Path("data/demo/permeability")
MEASURED = 200
"""Training windows whose mean and spread are measured."""


@dataclass(frozen=True)
class Config(TrainConfig):
    """Train permeable ground. Without --data-root (or --images and --labels) the demo scenes are used.

    Examples:
        python permeability/train.py
        python permeability/train.py --data-root pnoa --recipe best --max-minutes 60
        python permeability/train.py --data-root pnoa --arch deeplabv3plus --encoder mit_b4 --weights imagenet
    """

    # Data
    reproject: bool = False
    """Warp masks of another coordinate system or grid to the orthophoto's while reading."""
    resolution: float = 0.0
    """Read at this pixel size, in units of the orthophotos' coordinate system (0 = their own)."""
    val_tiles: int = 0
    """Validate on this many tiles, spread evenly (0 = on all)."""
    # Network
    arch: Architecture = "deeplabv3plus"
    """Network; unet_small has no --encoder and is for training from scratch on a CPU."""
    encoder: Literal[ResNet, MixTransformer] = "mit_b4"
    """Its encoder; unetplusplus and linknet take ResNets alone."""
    channels: int = 3
    """Bands that the network reads; other numbers than 3 need --normalization measured."""
    normalization: Literal["source", "measured"] = "source"
    """source: mean and spread of PNOA orthophotos; measured: those of random training windows."""
    # Samples
    crop_size: int = 512
    """Side of the training windows, pixels."""
    samples_per_epoch: int = 1024
    """Training windows per epoch (0 = as many as cover all sites once)."""
    balance: float = 0.0
    """Share of the windows placed around a pixel of a class drawn evenly; the others are drawn by area."""
    flips: bool = False
    """Flips along both axes and quarter turns, not only flips from left to right."""
    rotate: float = 0.0
    """Windows are turned by up to so many degrees either way (180 = any angle)."""
    zoom: float = 0.0
    """Windows are scaled at random by up to exp(zoom) either way."""
    color: float = 0.0
    """Strength of random color changes, 0...1."""
    generated: float = 0.0
    """Share of the samples that show generated towns instead: a network that sees few pictures keeps in mind what they
    leave out, such as ground without buildings."""
    # Training
    label_smoothing: float = 0.0
    """Label smoothing of the term ce."""

    def __post_init__(self) -> None:
        """Validate fields against each other."""
        super().__post_init__()
        LossRecipe.of_config(vars(self)).check(SEVERAL_LOGITS)
        if self.crop_size < 32:
            raise ValueError(f"--crop-size {self.crop_size} must be at least 32")
        if self.channels < 1 or (self.channels != 3 and self.normalization == "source"):
            raise ValueError(
                f"--channels {self.channels}: the source's mean and spread are of 3 bands; use --normalization measured"
            )
        if self.generated and self.channels != 3:
            raise ValueError(f"--generated {self.generated}: generated towns have 3 bands, not {self.channels}")


@dataclass(frozen=True)
class Data:
    """What is trained and scored on."""

    found: SiteSet
    split: Split
    tiles: dict[str, list[Tile]]
    """Of the validation and the test part."""
    facts: Facts
    root: Path | None
    ranges: ValueRanges
    """What the orthophotos' values mean, and which there are."""


def main() -> int:
    """Load data, build, fit, finish."""
    return run_training(TASK, Config, Path(__file__).resolve().parent, load_data, build, finish)


def load_data(config: Config) -> Data:
    """Join, look at and split the data, and print what they are."""
    root = config.data_root if config.has_data else demo_scenes()
    join = Join(config.reproject, config.resolution, ValueRanges(config.input_range))
    sites, problems, notes = join_sites(*find_files(root, config.images, config.labels), join)
    say_notes(notes)
    found, bad = inspect_sites(sites, config.channels)
    require_usable(len(found.sites), problems + bad, skip_bad=config.skip_bad)
    split, how = split_sites(found.sites, config.val_fraction, config.test_fraction, config.seed)
    split = without_suspects(split, config.skip_suspects)
    facts = [
        *audit(found),
        *value_rows(join.ranges),
        ("left out", f"{len(notes)} notes, {len(problems + bad)} bad files, listed at the start"),
        ("split", f"{count_parts(split)} ({how})"),
    ]
    say_facts(facts)
    tiles = {part: list(plan_tiles(found.part(split[part]), TILE_SIDE, CONTEXT)) for part in ("val", "test")}
    if not tiles["val"]:
        raise ValueError("the masks of the validation part are ignored everywhere; nothing could be validated")
    return Data(found, split, {**tiles, "val": thin(tiles["val"], config.val_tiles)}, facts, root, join.ranges)


def build(config: Config, data: Data) -> Experiment:
    """The network with its initial weights, its card, and the samples it is trained on."""
    normalization = choose_normalization(config, data)
    arch_args = network_args(config)
    model = TASK.build(config.arch, **arch_args)
    card = TASK.card(
        config.arch,
        arch_args,
        normalization=normalization | data.ranges.card(),
        scale=data.found.pixel,
        loss=LossRecipe.of_config(vars(config)),
        split=data.split,
        data_root=str((data.root or config.images or Path()).resolve()),
    )
    windows = TrainingWindows(
        data.found,
        data.split["train"],
        crop=config.crop_size,
        length=config.samples_per_epoch,
        balance=config.balance,
        channels=config.channels,
        augment=WindowAugmentation(config.rotate, config.zoom, config.color, config.flips) if config.augment else None,
    )
    TASK.initialize(model, config.weights, card, windows)
    tiles = ValidationTiles(data.tiles["val"], config.channels)
    samples = with_generated(windows, config.generated, GROUPS, config.crop_size)
    return Experiment(model, card, samples, tiles, len(data.tiles["test"]))


def choose_normalization(config: Config, data: Data) -> dict[str, list[float]]:
    """The source's mean and spread, or those of random training windows."""
    if config.normalization == "source":
        return dict(NORMALIZATION)
    crop, ids = min(config.crop_size, 256), data.split["train"]
    measured = measure(data.found, ids, crop=crop, channels=config.channels, count=MEASURED, seed=config.seed)
    say(f"{'measured:':24}mean {numbers(measured['mean'])}, spread {numbers(measured['std'])}")
    return measured


def numbers(values: Sequence[float]) -> str:
    """``0.412 0.424 0.391``."""
    return " ".join(f"{value:.3f}" for value in values)


def network_args(config: Config) -> dict[str, Any]:
    """The arguments that build a network."""
    ends = {"outputs": len(CLASSES), "channels": config.channels}
    return {**SMALL, **ends} if config.arch == "unet_small" else {"encoder": config.encoder, **ends}


def finish(run: RunFolder, config: Config, data: Data, history: History, precision: Precision) -> None:
    """Score the best network on the test (else validation) part, and write pictures and report."""
    predictor = Predictor.load(TASK, [run.path / "best_iou.pt"], precision)
    part, predicted = "test" if data.tiles["test"] else "val", Predicted(predictor.classify)
    parts = tiles_at_own_size(config, data)
    samples = {name: [tile.sample(config.channels) for tile in tiles] for name, tiles in parts.items()}
    scores = score_samples(predictor, samples[part], end_of(config), predicted.add)
    outcome = Outcome(part, predictor.card, scores.result(), scores, predicted, samples, predictor)
    finish_run(run, config, data.facts, history, precision, outcome)


def tiles_at_own_size(config: Config, data: Data) -> dict[str, list[Tile]]:
    """The tiles of each part in the files' own pixels, also where training reads them at another resolution.

    Of the training part, in which label errors are looked for, at most ``LOOKED_AT``.
    """
    sites, known = data.found.sites, data.tiles
    if config.resolution:
        files = find_files(data.root, config.images, config.labels)
        sites, known = join_sites(*files, Join(config.reproject, ranges=data.ranges))[0], {}
    parts = {}
    for part, ids in data.split.items():
        wanted = {site.id for site in data.found.part(ids)}
        planned = plan_tiles([site for site in sites if site.id in wanted], TILE_SIDE, CONTEXT)
        parts[part] = known[part] if part in known else list(islice(planned, LOOKED_AT if part == "train" else None))
    return parts


def demo_scenes() -> Path:
    """The folder of the generated scenes, written at the first use."""
    return demo_data(
        DEMO,
        "aerial scenes",
        lambda folder: write_permeability(folder, sheets=(24, 4, 4), seed=6, height=256, width=320, gsd=0.5),
    )


if __name__ == "__main__":
    run_command(main, several=True)
