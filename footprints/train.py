"""Train building footprints: ``python footprints/train.py --data-root DIR`` (without flags: the demo)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from torch import nn

from common.command.cli import run_command, say
from common.command.config import TrainConfig
from common.data.pairs import require_usable
from common.images.ranges import to_unit
from common.inference.files import Predictor
from common.inference.score import CONTEXT, TILE_SIDE
from common.losses import SegmentationLoss, build_loss
from common.metrics.split_scores import SplitScores
from common.networks.checkpoint import ModelCard
from common.networks.precision import choose_precision
from common.networks.probabilities import binary_probability
from common.report.plots import History, roc
from common.scenes.aerial import write_footprints
from common.training.finish import Example, finish_run
from common.training.loop import fit, seed_everything
from common.training.runs import RunFolder, demo_data, load_train_config, open_run
from footprints.data import SceneSet, audit, find_pairs, load_scenes, plan_tiles, read_tile, split_scenes
from footprints.evaluate import score_tiles
from footprints.model import build_model
from footprints.predict import CLASSES, PALETTE, TASK, TILE, initialize, load_network
from footprints.samples import NORMALIZATIONS, Augmentation, FootprintCrops, FootprintTiles

Rows = list[tuple[str, str]]
DEMO = Path("data/demo/footprints")
LOSS_TERMS = ("bce", "dice", "jaccard", "focal")


@dataclass(frozen=True)
class Config(TrainConfig):
    """Train building footprints. Without --data-root (or --images and --labels) the demo scenes are used."""

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

    def __post_init__(self) -> None:
        """Check what one field cannot check alone."""
        super().__post_init__()
        if self.crop_size < 64:
            raise ValueError(f"--crop-size {self.crop_size} must be at least 64")
        if self.samples_per_epoch < 0:
            raise ValueError(f"--samples-per-epoch {self.samples_per_epoch} must not be negative")
        if not 0 <= self.rotate <= 180:
            raise ValueError(f"--rotate {self.rotate} is in degrees and must lie in 0...180")
        for name, most in (("balance", 1), ("color", 1), ("zoom", 2)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"--{name} {getattr(self, name)} must lie in 0...{most}")


def main() -> int:
    """Data, network, training, report."""
    config = load_train_config(Config, Path(__file__).resolve().parent)
    run = open_run(TASK, output_dir=config.output_dir, resume=config.resume, demo=not config.has_data)
    precision = choose_precision(config.device, config.amp)
    loss = build_footprint_loss(config.loss)
    seed_everything(config.seed)

    root = config.data_root if config.has_data else demo_scenes()
    found, split, facts = look(root, config)
    normalization = NORMALIZATIONS[config.normalization]
    train_data = FootprintCrops(
        found, split["train"], crop=config.crop_size, length=config.samples_per_epoch, balance=config.balance,
        normalization=normalization,
        augment=Augmentation(config.rotate, config.zoom, config.color) if config.augment else None,
    )  # fmt: skip
    tiles = {part: list(plan_tiles(found.part(ids), TILE_SIDE, CONTEXT)) for part, ids in split.items()}
    model, arch_args = new_model(config)
    card = ModelCard(
        TASK, config.arch, arch_args, CLASSES, PALETTE, normalization=normalization.card(), split=split,
        data_root=str((root or config.images or Path()).resolve()),
    )  # fmt: skip
    run.create(config)
    state = fit(
        model, train_data, FootprintTiles(tiles["val"], normalization),
        criterion=lambda logits, batch: loss(logits, batch["target"]), probabilities=binary_probability, card=card,
        config=config, run=run, precision=precision, test_images=len(tiles["test"]),
    )  # fmt: skip
    predictor = Predictor.load([run.path / "best_iou.pt"], load_network, precision, tile=TILE)
    finish(run, config, predictor, loss, state.history, facts, found)
    return 0


def build_footprint_loss(spec: str) -> SegmentationLoss:
    """The loss of a network with one logit.

    Raises:
        ValueError: a term is unknown, or is for several logits.
    """
    loss = build_loss(spec)
    strange = [term for term in ("ce", "partial_ce") if term in spec.replace("*", "+").replace(" ", "").split("+")]
    if strange:
        raise ValueError(f"--loss {spec}: {strange[0]} is for several logits; use {', '.join(LOSS_TERMS)}")
    return loss


def new_model(config: Config) -> tuple[nn.Module, dict[str, Any]]:
    """The network with its initial weights, and the arguments that build it."""
    if config.arch == "refinenet":
        arch_args: dict[str, Any] = {"encoder": config.encoder}
    else:
        arch_args = {"widths": list(config.widths), "stem": config.stem}
    model = build_model(config.arch, **arch_args)
    initialize(model, config.weights)
    return model, arch_args


def look(root: Path | None, config: Config) -> tuple[SceneSet, dict[str, list[str]], Rows]:
    """Open and split the data, and print what they are, as (name, value) rows that are returned too."""
    pairs, unpaired = find_pairs(root, images=config.images, labels=config.labels)
    for note in unpaired:
        say(f"note: {note}")
    found, problems = load_scenes(pairs)
    require_usable(len(found.scenes), problems, skip_bad=config.skip_bad)
    facts = [*audit(found), ("left out", f"{len(unpaired)} files without a partner, {len(problems)} bad pairs")]
    split, how = split_scenes(found.scenes, config.val_fraction, config.test_fraction, config.seed)
    facts.append(("split", ", ".join(f"{part} {len(ids)}" for part, ids in split.items()) + f" ({how})"))
    for name, value in facts:
        say(f"{name + ':':24}{value}")
    return found, split, facts


def finish(
    run: RunFolder, config: Config, predictor: Predictor, loss: SegmentationLoss, history: History, facts: Rows,
    found: SceneSet,
) -> None:  # fmt: skip
    """Score the best network on the test (else validation) part, and write pictures and report."""
    split = predictor.card.split
    name = "test" if split["test"] else "val"
    scenes = found.part(split[name])
    tiles = {tile.id: tile for tile in plan_tiles(scenes, TILE_SIDE, CONTEXT)}
    scores = score_tiles(predictor, list(tiles.values()), loss)

    def example(tile_id: str) -> Example:
        image, classes = read_tile(tiles[tile_id])
        return image, classes, predictor.classify(predictor(to_unit(image)))

    result = {**scores.result(), "n_images": len(scenes)}
    finish_run(
        run, card=predictor.card, config=config, audit=facts, history=history, scores=result, detail=scores, part=name,
        example=example,
    )  # fmt: skip
    draw_roc(run, scores, result)
    numbers = ", ".join(f"{key} {result[key]:.4f}" for key in ("iou", "miou", "f1", "precision", "recall", "auc")
                        if result[key] is not None)  # fmt: skip
    say(f"{name}: {numbers} at threshold {predictor.threshold:.3f}")


def draw_roc(run: RunFolder, scores: SplitScores, result: dict[str, Any]) -> None:
    """Write roc.png, if the part has buildings and background."""
    curve = scores.curve.roc()
    if curve is not None:
        roc(list(zip(*curve, strict=True)), run.path / "roc.png", result["auc"])


def demo_scenes() -> Path:
    """The folder of the generated scenes, written at the first use."""
    return demo_data(
        DEMO, "aerial scenes", lambda folder: write_footprints(folder, counts=(96, 12, 12), seed=0, size=256, gsd=0.6)
    )


if __name__ == "__main__":
    run_command(main)
