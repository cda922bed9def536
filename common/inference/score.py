"""Evaluation of ordinary color images: the flags of ``evaluate.py`` and the loop behind it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from common.command.cli import PARTIAL
from common.command.config import Amp, Device, check_pair, parse_flags
from common.command.progress import progress
from common.data.labeled import Sample
from common.data.pairs import require_usable, value_rows
from common.images.ranges import ValueRanges
from common.inference.predictor import Cut, Predictor
from common.inference.resolution import fitted
from common.metrics.split_scores import SplitScores, check_root, print_scores
from common.networks.checkpoint import ModelCard
from common.networks.precision import choose_precision
from common.networks.task import Task

Seen = Callable[[str, NDArray[np.float32], NDArray[np.uint8]], None]
"""Takes in what was predicted of a sample: its id, probabilities (1 or K, H, W), truth (H, W) with 255 = ignored."""
TILE_SIDE, CONTEXT = 1024, 64
"""Scenes larger than memory are scored in tiles of this side, predicted with so much of their surroundings."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Flags that every task's evaluation understands."""

    # Data
    data_root: Path | None = None
    """Folder with the data in the task's layout."""
    images: Path | None = None
    """Folder of images, in place of --data-root; needs --labels."""
    labels: Path | None = None
    """Folder of labels."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Part of the training's split; all = every pair."""
    input_range: tuple[float, float] | None = None
    """Values that mean black and white; default: those of the training, or the number type's."""
    # Network
    checkpoint: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Checkpoint, or shipped; several are averaged."""
    threshold: float | None = None
    """Two classes: foreground where P is at least this; default: the checkpoint's."""
    tta: bool = False
    """Average over flips."""
    # Machine
    device: Device = "auto"
    """Where to compute."""
    amp: Amp = "auto"
    """Mixed precision."""

    def __post_init__(self) -> None:
        """Check that there is something to score."""
        if not self.checkpoint:
            raise ValueError("no checkpoint given; pass --checkpoint FILE")
        check_pair(self.images, self.labels)
        if self.data_root is None and self.images is None:
            raise ValueError("no data given; pass --data-root, or --images and --labels")

    @property
    def root(self) -> str:
        """Where the data lie, as checkpoints store it."""
        return str((self.data_root or self.images or Path()).resolve())


@dataclass(frozen=True)
class AerialEvaluateConfig(EvaluateConfig):
    """Flags that every aerial task's evaluation understands."""

    # Data
    scale: float | None = None
    """Read images at this multiple of their size; default: the scale the network was trained at."""
    gsd: float = 0.0
    """Metres per pixel of pictures without georeference (0 = unknown); networks read at what they were trained at."""


Config = TypeVar("Config", bound=AerialEvaluateConfig)


@dataclass(frozen=True)
class LabeledData:
    """What a task found to score."""

    samples: Sequence[Sample]
    """Read one by one."""
    images: int
    """How many can be used."""
    problems: Sequence[str]
    """A line for each pair that cannot."""
    ranges: ValueRanges
    """What the images' values mean, and which there are."""
    files: Mapping[str, Path]
    """Of the images, by their ids."""


def evaluate_command(
    config_type: type[Config], task: Task, load: Callable[[Config, Predictor, set[str] | None], LabeledData]
) -> int:
    """Load, predict, score, print: the ``main`` of every aerial task's ``evaluate.py``.

    Args:
        config_type: its flags.
        task: whose networks they are.
        load: opens the data of these ids (None = all) for a predictor, as the flags say.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError, ValueError: a checkpoint or the data are missing or damaged, or the flags do not fit them.
    """
    config = parse_flags(config_type)
    checkpoints, precision = task.checkpoints(config.checkpoint), choose_precision(config.device, config.amp)
    options: dict[str, float | None] = {"scale": config.scale, "threshold": config.threshold}
    predictor = Predictor.load(task, checkpoints, precision, Cut(tta=config.tta), **options)
    found = load(config, predictor, ids_of_split(predictor.card, config))
    require_usable(found.images, found.problems, skip_bad=True)
    value_rows(found.ranges)

    @cache
    def reading(image_id: str) -> Predictor:
        return fitted(predictor, found.files[image_id], config.gsd)

    scores = score_samples(predictor, found.samples, at=reading)
    print_scores(task.name, config.split, {**scores.result(), "n_images": found.images})
    return PARTIAL if found.problems else 0


def ids_of_split(card: ModelCard, config: EvaluateConfig) -> set[str] | None:
    """Ids to score; None = all.

    Raises:
        ValueError: the data are not those of the training, or the part is empty.
    """
    check_root(config.root, card.data_root, config.split)
    if config.split == "all":
        return None
    ids = set(card.split.get(config.split, []))
    if not ids:
        there = [f"{part} ({len(names)})" for part, names in card.split.items() if names]
        raise ValueError(
            f"the checkpoint has no {config.split} part; it has {', '.join(there) or 'none at all'}: "
            "choose with --split, or --split all"
        )
    return ids


def score_samples(
    predictor: Predictor,
    samples: Sequence[Sample],
    until: float = math.inf,
    seen: Seen | None = None,
    at: Callable[[str], Predictor] | None = None,
) -> SplitScores:
    """Predict and score images one by one, at the labels' own resolution.

    The loss is the one that each network was trained with, of its own logits; of several networks their mean.

    Args:
        predictor: the network(s).
        samples: the images.
        until: on the monotonic clock; after it no further image is begun, but one is always scored.
        seen: who else looks at the predictions.
        at: gives the predictor that reads the image of an id, where each is read in its own way.
    """
    scores = SplitScores(predictor.card.classes, threshold=predictor.threshold)
    for sample in progress(samples, "scoring", "image"):
        pair, own = sample.read(), at(sample.image_id) if at else predictor
        probability, logits = own.scored(pair.unit())
        target = torch.from_numpy(pair.classes.astype(np.int64))[None]
        pairs = zip(own.cards, logits, strict=True)
        values = [float(card.loss.build()(torch.from_numpy(each)[None], target)) for card, each in pairs]
        scores.update(torch.from_numpy(probability)[None], target, sum(values) / len(values), [sample.id])
        if seen is not None:
            seen(sample.id, probability, pair.classes)
        if time.monotonic() >= until:
            break
    scores.left_out = len(samples) - len(scores.ids)
    return scores
