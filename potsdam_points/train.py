"""Train land cover from points: ``python potsdam_points/train.py --data-root patches`` (without flags: the demo)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first(__file__)

from torch import Tensor

from common.command.cli import run_command
from common.command.config import TrainConfig
from common.data.augmentation import Augmentation
from common.data.labeled import LabeledImage, Sample
from common.data.pairs import Facts, require_usable, say_facts, say_notes, value_rows
from common.data.splits import count_parts
from common.images.ranges import ValueRanges
from common.inference.predictor import Predictor
from common.inference.score import score_samples
from common.losses import SEVERAL_LOGITS, LossRecipe
from common.networks.precision import Precision
from common.networks.unet_small import SMALL
from common.report.plots import History
from common.scenes.aerial import write_potsdam
from common.training.budget import end_of
from common.training.command import run_training
from common.training.experiment import Experiment
from common.training.finish import Outcome, finish_run
from common.training.pictures import thicken
from common.training.predicted import Predicted
from common.training.runs import RunFolder, demo_data
from common.training.suspects import without_suspects
from potsdam_points.data import Unknown, audit, find_patches, load_patches, split_patches
from potsdam_points.labels import CLASSES, Coding, check_classes, class_counts, palette_of
from potsdam_points.points import (
    Sampling,
    at_points,
    class_weights,
    draw_points,
    save_class_weights,
    to_points,
    write_points,
)
from potsdam_points.samples import NORMALIZATION, CropPlan, PointCrops, WholePatches
from potsdam_points.task import TASK

DEMO = Path("data/demo/potsdam_points")


@dataclass(frozen=True)
class Config(TrainConfig):
    """Train land cover from sparse points. Without --data-root (or --images and --labels) the demo scenes are used.

    Examples:
        python potsdam_points/train.py
        python potsdam_points/train.py --data-root patches --points 300 --recipe best
        python potsdam_points/train.py --images pictures --points-file points.csv --val-last 0 --weights shipped
    """

    # Data
    val_last: int = 300
    """The last N ids are validation (0 = a random split by --val-fraction and --test-fraction)."""
    val_ids: tuple[str, ...] = ()
    """Ids that are validation, in place of --val-last: names, or ranges of numbers such as 20-29."""
    label_coding: Coding = "auto"
    """palette = ISPRS colors; index = 1...6 with 0 ignored; auto = by the number of bands."""
    unknown: Unknown = "refuse"
    """Colors or indices that are no class: refuse the file, or ignore those pixels."""
    points: int = 20000
    """Labeled points per training image (0 = every labeled pixel: full supervision)."""
    point_sampling: Sampling = "uniform"
    """balanced: the points of an image are shared evenly among its classes."""
    points_file: Path | None = None
    """Table id,x,y,class in place of dense labels (no labels are read then)."""
    # Network
    arch: Literal["resnet18", "unet_small"] = "resnet18"
    """Network."""
    decoder: Literal["plain", "skip"] = "plain"
    """Decoder of resnet18: the source's transposed convolutions, or one with skip connections."""
    widths: tuple[int, ...] = tuple(SMALL["widths"])
    """Feature channels of unet_small, from half its input's resolution on."""
    shrink: int = 2
    """Images are read at 1 / shrink of their size, as block means; logits are compared at full size."""
    # Samples
    crop_size: int = 300
    """Side of the training crops in pixels of the image."""
    samples_per_epoch: int = 0
    """Training crops per epoch (0 = as many as images)."""
    points_per_step: int = 0
    """Use at most so many of an image's points in one crop, drawn anew each time: faster (0 = all)."""
    balance: float = 0.0
    """Share of crops centered on a point of a class drawn evenly."""
    rotate: float = 0.0
    """Crops are turned by up to so many degrees either way (180 = any angle), besides quarter turns."""
    zoom: float = 0.0
    """Crops are scaled at random by up to exp(zoom) either way."""
    color: float = 0.0
    """Strength of random color changes, 0...1."""
    loss: str = "ce"
    """Weighted sum of partial_ce (of points: fast), ce, edge_ce (borders count more), focal, dice, jaccard, such as
    partial_ce+dice."""
    # Training
    classes: tuple[str, ...] = tuple(CLASSES)
    """Names of the classes; other ones than Potsdam's need --points-file."""
    class_weights: bool = True
    """Weight classes by median frequency / frequency over the labeled points."""
    weight_power: float = 1.0
    """Exponent of the class weights: 0.5 softens them."""
    gamma: float = 2.0
    """Focal exponent of partial_ce."""

    def __post_init__(self) -> None:
        """Validate fields against each other."""
        LossRecipe.of_config(vars(self)).check(SEVERAL_LOGITS)
        check_classes(self.classes)
        if self.points_file is not None and self.labels is None and self.images is not None:
            replace(self, images=None)  # points need no --labels; everything else is checked on this copy
        else:
            super().__post_init__()
        if self.shrink < 1 or self.crop_size < 32 * self.shrink or self.crop_size % self.shrink:
            raise ValueError(
                f"--crop-size {self.crop_size} must be a multiple of --shrink {self.shrink}, at least 32 times as large"
            )


@dataclass(frozen=True)
class Data:
    """What is trained and scored on."""

    part: dict[str, list[LabeledImage]]
    """Patches of each part with their dense labels."""
    sparse: list[LabeledImage]
    """The training part with its points alone."""
    class_weights: Tensor | None
    facts: Facts
    root: Path
    ranges: ValueRanges
    """What the images' values mean, and which there are."""


def main() -> int:
    """Load data, build, fit, finish."""
    return run_training(TASK, Config, Path(__file__).resolve().parent, load_data, build, finish)


def load_data(config: Config) -> Data:
    """Read and split the patches, draw their points, and print what they are."""
    root = config.data_root if config.has_data else demo_scenes()
    found, unpaired = find_patches(
        root, images=config.images, labels=config.labels, points_file=config.points_file, classes=config.classes
    )
    say_notes(unpaired)
    ranges = ValueRanges(config.input_range)
    loaded, problems = load_patches(found, config.label_coding, config.unknown, ranges)
    require_usable(len(loaded), problems, skip_bad=config.skip_bad)
    ids, shares = [patch.id for patch in loaded], (config.val_fraction, config.test_fraction)
    split = split_patches(ids, config.val_last, *shares, config.seed, val_ids=config.val_ids)
    split = without_suspects(split, config.skip_suspects)
    part = {name: [patch for patch in loaded if patch.id in set(ids)] for name, ids in split.items()}
    sparse = [with_points(patch, config) for patch in part["train"]]
    counts = class_counts([patch.classes for patch in sparse], len(config.classes))
    weights = class_weights(counts) ** config.weight_power if config.class_weights else None
    names = config.classes
    facts = [
        *audit(loaded, names),
        *value_rows(ranges),
        ("left out", f"{len(unpaired)} files without a partner, {len(problems)} bad pairs"),
        ("split", count_parts(split)),
        (
            "training points",
            f"{counts.sum()} ({counts.sum() / len(sparse):.0f} an image): {numbers(names, counts.tolist())}",
        ),
        ("class weights", "none" if weights is None else numbers(names, weights.tolist())),
    ]
    if never := [name for name, count in zip(names, counts, strict=True) if count == 0]:
        facts.append(("never labeled", f"{', '.join(never)}: cannot be learned"))
    say_facts(facts)
    return Data(part, sparse, weights, facts, root or config.images or Path(), ranges)


def build(config: Config, data: Data) -> Experiment:
    """The network with its initial weights, its card, its criterion, and the samples it is trained on."""
    arch_args: dict[str, Any] = {"outputs": len(config.classes), "upsample": config.shrink}
    arch_args |= (
        {"decoder": config.decoder} if config.arch == "resnet18" else {"widths": list(config.widths), "stem": 2}
    )
    model = TASK.build(config.arch, **arch_args)
    weights = None if data.class_weights is None else tuple(data.class_weights.tolist())
    loss = replace(LossRecipe.of_config(vars(config)), class_weights=weights)
    card = TASK.card(
        config.arch,
        arch_args,
        classes=list(config.classes),
        palette=palette_of(config.classes),
        normalization=NORMALIZATION | data.ranges.card(),
        scale=1 / config.shrink,
        loss=loss,
        split={name: [patch.id for patch in patches] for name, patches in data.part.items()},
        data_root=str(data.root.resolve()),
    )
    crops = PointCrops(
        data.sparse,
        CropPlan(
            crop=config.crop_size,
            shrink=config.shrink,
            length=config.samples_per_epoch,
            balance=config.balance,
            most_points=config.points_per_step,
        ),
        augment=Augmentation(config.rotate, config.zoom, config.color) if config.augment else None,
    )
    TASK.initialize(model, config.weights, card, crops)
    loss_of_points = loss.build()
    whole = WholePatches(data.part["val"], shrink=config.shrink)
    return Experiment(
        model,
        card,
        crops,
        whole,
        len(data.part["test"]),
        lambda logits, batch: loss_of_points(*at_points(logits, batch["target"])),
        annotate=lambda folder: save_annotation(folder, config, data),
    )


def finish(run: RunFolder, config: Config, data: Data, history: History, precision: Precision) -> None:
    """Score the best network on the test (else validation) part, and write pictures and report."""
    predictor = Predictor.load(TASK, [run.path / "best_iou.pt"], precision)
    part, predicted = "test" if data.part["test"] else "val", Predicted(predictor.classify)
    samples = {name: list(map(Sample.held, patches)) for name, patches in data.part.items()}
    scores = score_samples(predictor, samples[part], end_of(config), predicted.add)
    points = lambda patch: thicken(with_points(patch, config).classes)  # noqa: E731
    outcome = Outcome(part, predictor.card, scores.result(), scores, predicted, samples, predictor, points)
    finish_run(run, config, data.facts, history, precision, outcome)


def demo_scenes() -> Path:
    """The folder of the generated scenes, written at the first use."""
    return demo_data(DEMO, "aerial scenes", lambda folder: write_potsdam(folder, count=64, seed=6, size=300))


def with_points(patch: LabeledImage, config: Config) -> LabeledImage:
    """The patch with its drawn points alone; points from a file are kept as they are."""
    if config.points_file is not None:
        return patch
    drawn = draw_points(
        patch.classes, config.points, seed=config.seed, image_id=patch.id, sampling=config.point_sampling
    )
    return replace(patch, classes=drawn)


def numbers(classes: Sequence[str], values: Sequence[float]) -> str:
    """``impervious 12, building 3...``."""
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(classes, values, strict=True))


def save_annotation(folder: Path, config: Config, data: Data) -> None:
    """Write points.csv (unless every pixel is labeled) and class_weights.pt into the run folder."""
    if config.points > 0 or config.points_file is not None:
        points = ((patch.id, to_points(patch.classes)) for patch in data.sparse)
        write_points(folder / "points.csv", points, config.classes)
    if data.class_weights is not None:
        save_class_weights(folder / "class_weights.pt", data.class_weights)


if __name__ == "__main__":
    run_command(main, several=True)
