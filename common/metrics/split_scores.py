"""Scores of a network over a split: everything that `evaluate.py` prints, from one confusion matrix."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.metrics.counts import BoundaryF1, ConfusionMatrix, ThresholdCurve

SCORE_KEYS = (
    *("n_images", "n_pixels", "iou", "miou", "pixel_accuracy", "f1", "precision", "recall", "kappa", "boundary_f1"),
    *("per_class_iou", "absent_classes", "confusion_matrix", "threshold", "auc", "loss"),
)


FLAT = 1e-3
"""The optimum of mIoU over the threshold is flat. What lies this close to the highest is chosen for being near 0.5,
which keeps faint objects and does not follow the noise of a few validation images."""


MIXED = 0.01
"""Share of an image's valid pixels that a class needs for it to be there to be seen."""


class ImageScore(NamedTuple):
    """How one image was segmented."""

    name: str
    miou: float
    is_mixed: bool
    """Whether two classes or more can be seen in its truth."""


class SplitScores:
    """Streaming scores over a split.

    Args:
        class_names: by index; two names = binary.
        threshold: binary: foreground iff P >= threshold. None = the threshold of the split's own best mIoU, in which
            case boundaries and single images, which need it beforehand, are not scored.
        device: where the counts are kept.
        quick: leave out boundaries and single images, as validation between epochs does.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        threshold: float | None = None,
        device: torch.device | str = "cpu",
        quick: bool = False,
    ) -> None:
        self.class_names, self.threshold = list(class_names), threshold
        self.binary, self.quick = len(self.class_names) == 2, quick
        self.confusion = ConfusionMatrix(len(self.class_names), device=device)
        self.curve = ThresholdCurve(device=device)
        self.boundary = BoundaryF1(len(self.class_names), device=device)
        self.per_image: list[ImageScore] = []
        self.losses: list[float] = []
        self.n_images = 0

    def update(self, probability: Tensor, target: Tensor, loss: float, ids: Sequence[str]) -> None:
        """Add a batch.

        Args:
            probability: (N, 1 or C, H, W).
            target: truth (N, H, W), 255 = ignored.
            loss: mean over the batch.
            ids: a name per image.
        """
        self.n_images += len(target)
        self.losses += [loss] * len(target)
        if self.binary:
            self.curve.update(probability[:, 0], target)
            if self.threshold is None:
                return
            prediction = (probability[:, 0] >= self.threshold).long()
        else:
            prediction = probability.argmax(1)
        self.confusion.update(prediction, target)
        if self.quick:
            return
        self.boundary.update(prediction, target)
        for name, truth, guess in zip(ids, target, prediction, strict=True):
            single = ConfusionMatrix(len(self.class_names), device=target.device)
            single.update(guess, truth)
            score = single.scores(self.class_names)["miou"]
            if score is not None:
                areas = single.counts.sum(1)
                mixed = int((areas >= MIXED * areas.sum()).sum()) > 1
                self.per_image.append(ImageScore(name, score, mixed))

    def result(self) -> dict[str, Any]:
        """The scores under the keys of ``SCORE_KEYS``; undefined = None."""
        threshold, confusion = self.threshold, self.confusion
        if self.binary and threshold is None:
            threshold = self.curve.best_threshold(FLAT)
            confusion = self.curve.confusion_at(threshold)
        loss = math.fsum(self.losses) / len(self.losses) if self.losses else math.nan
        values = {
            **confusion.scores(self.class_names),
            "n_images": self.n_images,
            "boundary_f1": self.boundary.score(),
            "threshold": threshold if self.binary else None,
            "auc": self.curve.roc_auc() if self.binary else None,
            "loss": loss if math.isfinite(loss) else None,
        }
        return {key: values[key] for key in SCORE_KEYS}


def check_root(data_root: str, trained_on: str, split: str) -> None:
    """Refuse to score a named part of the split on data that the checkpoint was not trained on.

    Raises:
        ValueError: another root, and ``split`` is not ``all``.
    """
    if data_root != trained_on and split != "all":
        raise ValueError(
            f"--data-root {data_root} is not the root of the training ({trained_on or 'unknown'}), "
            f"so its '{split}' part is not known; use --split all to score every pair under it"
        )


def print_scores(task: str, split: str, scores: Mapping[str, Any]) -> None:
    """Print the scores as one JSON object, the last line of stdout."""
    print(json.dumps({"task": task, "split": split, **scores}, allow_nan=False), flush=True)
