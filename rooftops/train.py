"""Train rooftops: ``python rooftops/train.py --data-root DIR`` (without flags: the demo)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.command.cli import run_command, say
from common.command.config import TrainConfig
from common.data.pairs import require_usable
from common.inference.files import Predictor
from common.inference.score import score_samples
from common.losses import SegmentationLoss, build_loss
from common.networks.checkpoint import ModelCard
from common.networks.precision import choose_precision
from common.networks.probabilities import class_probabilities, foreground_probability
from common.report.plots import History
from common.scenes.aerial import write_rooftops
from common.training.finish import Example, finish_run
from common.training.loop import fit, seed_everything
from common.training.runs import RunFolder, demo_data, load_train_config, open_run
from rooftops.data import Pictures, SplitBy, audit, find_pairs, load_pictures, split_pictures
from rooftops.labels import read_coding
from rooftops.model import DeepLabV3Plus
from rooftops.predict import TASK, default_tile, initialize, load_network, picture_loss
from rooftops.samples import NORMALIZATION, Augmentation, WholePictures, Windows, median_side

Rows = list[tuple[str, str]]
DEMO = Path("data/demo/rooftops")


@dataclass(frozen=True)
class Config(TrainConfig):
    """Train DeepLabV3+ on rooftops. Without --data-root (or --images and --labels) the demo scenes are used."""

    encoder: Literal["resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_b0"] = "resnet50"
    """Encoder of the network."""
    output_stride: Literal[16, 8] = 16
    """Stride of the encoder's last map; 8 is finer and about three times as slow."""
    dropout: float = 0.5
    """Dropout after the spatial pyramid."""
    classes: Path | None = None
    """YAML file that names each class and its value in the labels (default: rooftops, 0 and 255)."""
    image_size: int = 256
    """Side of the training samples, pixels."""
    coverage: float = 1.0
    """Share of the side of a picture of median size that a sample covers; pictures are read at the scale of that."""
    samples_per_epoch: int = 0
    """Training samples per epoch (0 = as many as pictures)."""
    split_by: SplitBy = "picture"
    """prefix: tiles of one picture (img12_3, img12_4) stay in one part."""
    label_smoothing: float = 0.0
    """Share of the cross-entropy's target that is spread over all classes."""
    zoom: float = 0.0
    """Samples are scaled at random by up to exp(zoom) either way."""
    rotate: bool = False
    """Turn samples by any angle, not only by quarter turns."""
    color: float = 0.0
    """Strength of random color changes, 0...1."""
    blur: float = 0.0
    """Share of the samples that are blurred."""
    cutmix: float = 0.0
    """Share of the samples of which a rectangle is replaced by another sample's."""

    def __post_init__(self) -> None:
        """Check what one field cannot check alone."""
        super().__post_init__()
        if self.image_size < 32 or self.image_size % 16:
            raise ValueError(f"--image-size {self.image_size} must be a multiple of 16, at least 32")
        if not 0.05 <= self.coverage <= 2:
            raise ValueError(f"--coverage {self.coverage} must lie in 0.05...2")
        for name in ("dropout", "color", "blur", "cutmix"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} {getattr(self, name)} must lie in 0...1")
        if not 0 <= self.zoom <= 2:
            raise ValueError(f"--zoom {self.zoom} must lie in 0...2")


def main() -> int:
    """Data, network, training, report."""
    config = load_train_config(Config, Path(__file__).resolve().parent)
    run = open_run(TASK, output_dir=config.output_dir, resume=config.resume, demo=not config.has_data)
    precision = choose_precision(config.device, config.amp)
    loss = build_loss(config.loss, label_smoothing=config.label_smoothing)
    seed_everything(config.seed)

    root = config.data_root if config.has_data else demo_scenes()
    pictures, facts = look(root, config)
    split = split_pictures(
        list(pictures.pairs), config.val_fraction, config.test_fraction, config.seed, config.split_by
    )
    median = median_side([one.size for one in pictures.facts.values()])
    scale = config.image_size / (config.coverage * median)
    for name, value in (
        ("split", counted(split)),
        ("scale", f"{scale:.4g} (a picture of {median:.0f} pixels becomes {scale * median:.0f})"),
    ):
        facts.append((name, value))
        say(f"{name + ':':24}{value}")

    coding = pictures.coding
    arch_args: dict[str, Any] = {
        "encoder": config.encoder, "outputs": len(coding.names), "output_stride": config.output_stride,
        "dropout": config.dropout,
    }  # fmt: skip
    model = DeepLabV3Plus(**arch_args)
    initialize(model, config.encoder, config.weights)
    augment = Augmentation(config.zoom, config.rotate, config.color, config.blur, config.cutmix)
    train_data = Windows(
        pictures, split["train"], side=config.image_size, scale=scale, length=config.samples_per_epoch,
        augment=augment if config.augment else None,
    )  # fmt: skip
    card = ModelCard(
        TASK, "deeplabv3plus", arch_args, list(coding.names), coding.palette, normalization=NORMALIZATION, scale=scale,
        split=split, data_root=str((root or config.images or Path()).resolve()),
    )  # fmt: skip
    run.create(config)
    state = fit(
        model, train_data, WholePictures(pictures, split["val"], scale=scale),
        criterion=lambda logits, batch: loss(logits, batch["target"]),
        probabilities=foreground_probability if len(coding.names) == 2 else class_probabilities, card=card,
        config=config, run=run, precision=precision, test_images=len(split["test"]),
    )  # fmt: skip
    predictor = Predictor.load([run.path / "best_iou.pt"], load_network, precision, tile=default_tile(card))
    finish(run, config, predictor, loss, state.history, facts, pictures)
    return 0


def look(root: Path | None, config: Config) -> tuple[Pictures, Rows]:
    """Read the pictures and print what they are, as (name, value) rows that are returned too."""
    coding = read_coding(config.classes)
    pairs, missing, notes = find_pairs(root, images=config.images, labels=config.labels)
    for note in notes:
        say(f"note: {note}")
    pictures, problems = load_pictures(pairs, coding)
    problems = missing + problems
    require_usable(len(pictures), problems, skip_bad=config.skip_bad)
    facts = [*audit(pictures), ("left out", f"{len(notes)} labels without an image, {len(problems)} bad files")]
    for name, value in facts:
        say(f"{name + ':':24}{value}")
    return pictures, facts


def counted(split: dict[str, list[str]]) -> str:
    """``train 60, val 10, test 10``."""
    return ", ".join(f"{part} {len(ids)}" for part, ids in split.items())


def finish(
    run: RunFolder, config: Config, predictor: Predictor, loss: SegmentationLoss, history: History, facts: Rows,
    pictures: Pictures,
) -> None:  # fmt: skip
    """Score the best network on the test (else validation) part, and write pictures and report."""
    split = predictor.card.split
    name = "test" if split["test"] else "val"
    chosen = (pictures[picture_id] for picture_id in split[name])
    samples = ((picture.id, picture.unit(), picture.classes) for picture in chosen)
    scores = score_samples(predictor, samples, lambda logits, target: picture_loss(predictor, loss, logits, target))

    def example(picture_id: str) -> Example:
        picture = pictures[picture_id]
        return picture.image, picture.classes, predictor.classify(predictor(picture.unit()))

    result = scores.result()
    finish_run(
        run, card=predictor.card, config=config, audit=facts, history=history, scores=result, detail=scores, part=name,
        example=example,
    )  # fmt: skip
    classes = ", ".join(f"{key} {value:.3f}" for key, value in result["per_class_iou"].items() if value is not None)
    say(f"{name}: mIoU {result['miou'] or 0:.4f}, pixel accuracy {result['pixel_accuracy'] or 0:.4f}, {classes}")


def demo_scenes() -> Path:
    """The folder of the generated scenes, written at the first use."""
    return demo_data(DEMO, "aerial scenes", lambda folder: write_rooftops(folder, count=128, seed=0, size=192, gsd=0.4))


if __name__ == "__main__":
    run_command(main)
