"""Train building footprints: ``python footprints/train.py --data-root DIR`` (without flags: the demo)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first(__file__)

from common.command.cli import run_command
from common.command.config import TrainConfig, check_prediction
from common.data.augmentation import Augmentation
from common.data.generated import with_generated
from common.data.pairs import Facts, require_usable, say_facts, say_notes, value_rows
from common.data.splits import Split, count_parts
from common.images.ground import metres_per_pixel
from common.images.ranges import ValueRanges
from common.inference.predictor import Predictor
from common.inference.score import CONTEXT, TILE_SIDE, score_samples
from common.losses import ONE_LOGIT, LossRecipe
from common.networks.precision import Precision
from common.networks.shipped import BUILDINGS, NAME
from common.report.plots import History, roc
from common.scenes.aerial import write_footprints
from common.training.budget import end_of
from common.training.command import run_training
from common.training.experiment import Experiment
from common.training.finish import Outcome, finish_run
from common.training.predicted import Predicted
from common.training.runs import RunFolder, demo_data
from common.training.suspects import without_suspects
from footprints.data import SceneSet, Tile, audit, find_pairs, load_scenes, plan_tiles, split_scenes
from footprints.samples import NORMALIZATIONS, FootprintCrops, FootprintTiles
from footprints.scene import Scene
from footprints.task import TASK

DEMO = Path("data/demo/footprints")


@dataclass(frozen=True)
class Config(TrainConfig):
    """Train building footprints. Without --data-root (or --images and --labels) the demo scenes are used.

    Examples:
        python footprints/train.py
        python footprints/train.py --data-root crops --recipe best --max-minutes 30
    """

    # Network
    arch: Literal["refinenet", "unet_small"] = "refinenet"
    """Network; unet_small is for laptops."""
    encoder: Literal["resnet34", "resnet50"] = "resnet50"
    """Encoder of refinenet."""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Feature channels of unet_small per resolution, from the finest on."""
    stem: Literal[1, 2] = 1
    """Stride of unet_small's first convolution; 2 is four times faster and a little coarser."""
    normalization: Literal["source", "aerial"] = "source"
    """source: values / 255; aerial: then minus the mean of aerial photographs, divided by their spread."""
    scale: float = 0.0
    """Images are read at this multiple of their size (0 = 1; with --weights shipped what brings them to the ground
    resolution that those were trained at)."""
    # Samples
    crop_size: int = 384
    """Side of the training crops, pixels; smaller images are mirrored at their edges."""
    samples_per_epoch: int = 0
    """Training crops per epoch (0 = as many as cover all images once)."""
    balance: float = 0.0
    """Share of the crops that are placed around a building."""
    rotate: float = 15.0
    """Crops are turned by up to so many degrees either way (180 = any angle)."""
    zoom: float = 0.0
    """Crops are scaled at random by up to exp(zoom) either way."""
    color: float = 0.0
    """Strength of random color changes, 0...1."""
    generated: float = 0.0
    """Share of the samples that show generated towns instead: a network that sees few pictures keeps in mind what they
    leave out, such as ground without buildings."""
    loss: str = "bce+dice"
    """Weighted sum of bce, edge_bce (borders count more), dice, jaccard, focal, such as edge_bce+dice."""

    def __post_init__(self) -> None:
        """Validate fields against each other."""
        super().__post_init__()
        LossRecipe.of_config(vars(self)).check(ONE_LOGIT)
        check_prediction(None, self.scale or None)
        if self.crop_size < 64:
            raise ValueError(f"--crop-size {self.crop_size} must be at least 64")


@dataclass(frozen=True)
class Data:
    """What is trained and scored on."""

    found: SceneSet
    split: Split
    tiles: dict[str, list[Tile]]
    """Of each part."""
    scale: float
    """At which images are read."""
    facts: Facts
    root: Path


def main() -> int:
    """Load data, build, fit, finish."""
    return run_training(TASK, Config, Path(__file__).resolve().parent, load_data, build, finish)


def load_data(config: Config) -> Data:
    """Open and split the data, and print what they are."""
    root = config.data_root if config.has_data else demo_scenes()
    pairs, unpaired = find_pairs(root, images=config.images, labels=config.labels)
    say_notes(unpaired)
    found, problems = load_scenes(pairs, ranges=ValueRanges(config.input_range))
    require_usable(len(found.scenes), problems, skip_bad=config.skip_bad)
    split, how = split_scenes(found.scenes, config.val_fraction, config.test_fraction, config.seed)
    split = without_suspects(split, config.skip_suspects)
    scale, why = reading_scale(config, found.part(split["train"]))
    facts = [
        *audit(found),
        *value_rows(found.ranges),
        ("left out", f"{len(unpaired)} files without a partner, {len(problems)} bad pairs"),
        ("split", f"{count_parts(split)} ({how})"),
        *([("scale", f"{scale:.3g} ({why})")] if scale != 1 else []),
    ]
    say_facts(facts)
    tiles = {part: list(plan_tiles(found.part(ids), TILE_SIDE, CONTEXT)) for part, ids in split.items()}
    return Data(found, split, tiles, scale, facts, root or config.images or Path())


def reading_scale(config: Config, scenes: Sequence[Scene]) -> tuple[float, str]:
    """The multiple of their size at which scenes are read, and why."""
    if config.scale or config.weights != NAME:
        return config.scale or 1.0, "--scale"
    frames = [scene.frame for scene in scenes]
    sizes = [metres_per_pixel(frame.transform, frame.crs, (frame.height, frame.width)) for frame in frames]
    known = sorted(size for size in sizes if size)
    if not known:
        return 1.0, "of unknown ground resolution"
    gsd = known[len(known) // 2]
    scale = TASK.shipped_scale(gsd)
    return scale, f"{gsd:.3g} m per pixel, read at {gsd / scale:.3g} m as the weights that ship were; --scale overrides"


def build(config: Config, data: Data) -> Experiment:
    """The network with its initial weights, its card, and the samples it is trained on."""
    arch_args: dict[str, Any] = {"encoder": config.encoder}
    if config.arch == "unet_small":
        arch_args = {"widths": list(config.widths), "stem": config.stem}
    model = TASK.build(config.arch, **arch_args)
    values = NORMALIZATIONS[config.normalization] | data.found.ranges.card()
    loss, root = LossRecipe.of_config(vars(config)), str(data.root.resolve())
    card = TASK.card(
        config.arch,
        arch_args,
        normalization=values,
        scale=data.scale,
        loss=loss,
        split=data.split,
        data_root=root,
    )
    crops = FootprintCrops(
        data.found,
        data.split["train"],
        crop=config.crop_size,
        length=config.samples_per_epoch,
        balance=config.balance,
        augment=Augmentation(config.rotate, config.zoom, config.color) if config.augment else None,
        scale=data.scale,
    )
    TASK.initialize(model, config.weights, card, crops)
    samples = with_generated(crops, config.generated, BUILDINGS.groups, config.crop_size)
    return Experiment(model, card, samples, FootprintTiles(data.tiles["val"], data.scale), len(data.tiles["test"]))


def finish(run: RunFolder, config: Config, data: Data, history: History, precision: Precision) -> None:
    """Score the best network on the test (else validation) part, and write pictures and report."""
    predictor = Predictor.load(TASK, [run.path / "best_iou.pt"], precision)
    part, predicted = "test" if data.split["test"] else "val", Predicted(predictor.classify)
    samples = {part: [tile.sample for tile in tiles] for part, tiles in data.tiles.items()}
    scores = score_samples(predictor, samples[part], end_of(config), predicted.add)
    outcome = Outcome(part, predictor.card, scores.result(), scores, predicted, samples, predictor)
    finish_run(run, config, data.facts, history, precision, outcome)
    curve = scores.curve.roc()
    if curve is not None:
        roc(list(zip(*curve, strict=True)), run.path / "roc.png", outcome.scores["auc"])


def demo_scenes() -> Path:
    """The folder of the generated scenes, written at the first use."""
    return demo_data(
        DEMO, "aerial scenes", lambda folder: write_footprints(folder, counts=(96, 12, 12), seed=6, size=256, gsd=0.5)
    )


if __name__ == "__main__":
    run_command(main, several=True)
