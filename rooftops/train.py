"""Train rooftops: ``python rooftops/train.py --data-root DIR`` (without flags: the demo)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
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
from common.inference.score import score_samples
from common.losses import SEVERAL_LOGITS, LossRecipe
from common.networks.precision import Precision
from common.networks.shipped import BUILDINGS
from common.networks.unet_small import SMALL
from common.report.plots import History
from common.scenes.aerial import write_rooftops
from common.training.budget import end_of
from common.training.command import run_training
from common.training.experiment import Experiment
from common.training.finish import Outcome, finish_run
from common.training.predicted import Predicted
from common.training.runs import RunFolder, demo_data
from common.training.suspects import without_suspects
from rooftops.data import Pictures, SplitBy, audit, find_pairs, load_pictures, split_pictures
from rooftops.labels import read_coding
from rooftops.model import NORMALIZATION
from rooftops.samples import PictureAugmentation, WholePictures, Windows, median_side
from rooftops.task import TASK

DEMO = Path("data/demo/rooftops")
FEW = 20
"""Fewer training pictures do not show what a suburb has besides roofs."""


@dataclass(frozen=True)
class Config(TrainConfig):
    """Train rooftops. Without --data-root (or --images and --labels) the demo scenes are used.

    Examples:
        python rooftops/train.py
        python rooftops/train.py --images pictures --labels masks --recipe best --max-minutes 30
    """

    # Data
    classes: Path | None = None
    """YAML file that names each class and its value in the labels (default: rooftops, 0 and 255)."""
    split_by: SplitBy = "picture"
    """prefix: tiles of one picture (img12_3, img12_4) stay in one part."""
    # Network
    arch: Literal["deeplabv3plus", "unet_small"] = "deeplabv3plus"
    """Network; unet_small has no --encoder and is for laptops."""
    encoder: Literal["resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_b0"] = "resnet50"
    """Encoder of deeplabv3plus."""
    output_stride: Literal[16, 8] = 16
    """Stride of the encoder's last map; 8 is finer and about three times as slow."""
    dropout: float = 0.5
    """Dropout after the spatial pyramid."""
    # Samples
    crop_size: int = 256
    """Side of the training samples as the network sees them, pixels."""
    coverage: float = 1.0
    """Share of the side of a picture of median size that a sample covers; pictures are read at the scale of that."""
    samples_per_epoch: int = 0
    """Training samples per epoch (0 = as many as pictures)."""
    rotate: float = 0.0
    """Samples are turned by up to so many degrees either way (180 = any angle), besides quarter turns."""
    zoom: float = 0.0
    """Samples are scaled at random by up to exp(zoom) either way."""
    color: float = 0.0
    """Strength of random color changes, 0...1."""
    blur: float = 0.0
    """Share of the samples that are blurred."""
    cutmix: float = 0.0
    """Share of the samples of which a rectangle is replaced by another sample's."""
    generated: float = 0.0
    """Share of the samples that show generated towns instead: a network that sees few pictures keeps in mind what they
    leave out, such as ground without buildings."""
    # Training
    label_smoothing: float = 0.0
    """Share of the cross-entropy's target that is spread over all classes."""

    def __post_init__(self) -> None:
        """Validate fields against each other."""
        super().__post_init__()
        LossRecipe.of_config(vars(self)).check(SEVERAL_LOGITS)
        if self.crop_size < 32 or self.crop_size % 16:
            raise ValueError(f"--crop-size {self.crop_size} must be a multiple of 16, at least 32")
        if not 0.05 <= self.coverage <= 2:
            raise ValueError(f"--coverage {self.coverage} must lie in 0.05...2")
        if self.generated and self.classes:
            raise ValueError(f"--generated {self.generated}: generated towns have roofs, not the classes of --classes")


@dataclass(frozen=True)
class Data:
    """What is trained and scored on."""

    pictures: Pictures
    split: Split
    scale: float
    """At which pictures are read."""
    facts: Facts
    root: Path


def main() -> int:
    """Load data, build, fit, finish."""
    return run_training(TASK, Config, Path(__file__).resolve().parent, load_data, build, finish)


def load_data(config: Config) -> Data:
    """Read and split the pictures, and print what they are."""
    root = config.data_root if config.has_data else demo_scenes()
    pairs, missing, notes = find_pairs(root, images=config.images, labels=config.labels)
    say_notes(notes)
    pictures, problems = load_pictures(pairs, read_coding(config.classes), ValueRanges(config.input_range))
    problems = missing + problems
    require_usable(len(pictures), problems, skip_bad=config.skip_bad)
    split = split_pictures(
        list(pictures.pairs), config.val_fraction, config.test_fraction, config.seed, config.split_by
    )
    split = without_suspects(split, config.skip_suspects)
    median = median_side([one.size for one in pictures.facts.values()])
    scale = config.crop_size / (config.coverage * median)
    facts = [
        *audit(pictures),
        *value_rows(pictures.ranges),
        ("left out", f"{len(notes)} labels without an image, {len(problems)} bad files"),
        ("split", count_parts(split)),
        ("scale", f"{scale:.4g} (a picture of {median:.0f} pixels becomes {scale * median:.0f})"),
    ]
    say_facts(facts)
    if config.has_data and len(split["train"]) < FEW and not (config.generated or config.classes):
        say(f"{len(split['train'])} training pictures leave much out; --generated 0.25 shows generated towns besides")
    return Data(pictures, split, scale, facts, root or config.images or Path())


def build(config: Config, data: Data) -> Experiment:
    """The network with its initial weights, its card, and the samples it is trained on."""
    coding = data.pictures.coding
    arch_args: dict[str, Any] = {"outputs": len(coding.names)}
    if config.arch == "unet_small":
        arch_args |= SMALL
    else:
        own = {"encoder": config.encoder, "output_stride": config.output_stride, "dropout": config.dropout}
        arch_args |= own
    model = TASK.build(config.arch, **arch_args)
    card = TASK.card(
        config.arch,
        arch_args,
        classes=list(coding.names),
        palette=coding.palette,
        scale=data.scale,
        normalization=NORMALIZATION | data.pictures.ranges.card(),
        loss=LossRecipe.of_config(vars(config)),
        split=data.split,
        data_root=str(data.root.resolve()),
    )
    augment = PictureAugmentation(config.rotate, config.zoom, config.color, config.blur, config.cutmix)
    windows = Windows(
        data.pictures,
        data.split["train"],
        side=config.crop_size,
        scale=data.scale,
        length=config.samples_per_epoch,
        augment=augment if config.augment else None,
    )
    TASK.initialize(model, config.weights, card, windows)
    whole = WholePictures(data.pictures, data.split["val"], scale=data.scale)
    samples = with_generated(windows, config.generated, BUILDINGS.groups, config.crop_size)
    return Experiment(model, card, samples, whole, len(data.split["test"]))


def finish(run: RunFolder, config: Config, data: Data, history: History, precision: Precision) -> None:
    """Score the best network on the test (else validation) part, and write pictures and report."""
    predictor = Predictor.load(TASK, [run.path / "best_iou.pt"], precision)
    part, predicted = "test" if data.split["test"] else "val", Predicted(predictor.classify)
    samples = {part: data.pictures.samples(ids) for part, ids in data.split.items()}
    scores = score_samples(predictor, samples[part], end_of(config), predicted.add)
    outcome = Outcome(part, predictor.card, scores.result(), scores, predicted, samples, predictor)
    finish_run(run, config, data.facts, history, precision, outcome)


def demo_scenes() -> Path:
    """The folder of the generated scenes, written at the first use."""
    return demo_data(DEMO, "aerial scenes", lambda folder: write_rooftops(folder, count=128, seed=6, size=192, gsd=0.4))


if __name__ == "__main__":
    run_command(main, several=True)
