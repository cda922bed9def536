"""Scores of a network over a split: everything that `evaluate.py` prints, from one confusion matrix."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
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


PARTS = 20
"""Groups of images, dealt in turn; how a score moves without each of them tells how sure it is."""


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
        self.parts = torch.zeros((PARTS, *self._judged.counts.shape), dtype=torch.int64, device=device)
        """What the score is found from, of each group of images."""
        self.per_image: list[ImageScore] = []
        self.losses: list[float] = []
        self.ids: list[str] = []
        self.n_images = 0
        self.left_out = 0
        """Images that should have been added, had there been time."""

    @property
    def _judged(self) -> ThresholdCurve | ConfusionMatrix:
        """What the score is found from."""
        return self.curve if self.binary and self.threshold is None else self.confusion

    def update(self, probability: Tensor, target: Tensor, loss: float, ids: Sequence[str]) -> None:
        """Add a batch.

        Args:
            probability: (N, 1 or C, H, W).
            target: truth (N, H, W), 255 = ignored.
            loss: mean over the batch.
            ids: a name per image.
        """
        part, before = self.parts[self.n_images % PARTS], self._judged.counts.clone()
        self.n_images += len(target)
        self.ids += ids
        self.losses += [loss] * len(target)
        self._count(probability, target, ids)
        part += self._judged.counts - before

    def _count(self, probability: Tensor, target: Tensor, ids: Sequence[str]) -> None:
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

    def join(self, gathered: Callable[[Any], list[Any]], add_up: Callable[[Tensor], Tensor]) -> None:
        """Take in the scores of the other processes, to which the images were dealt in turn (with ``quick`` alone).

        Args:
            gathered: a value -> those of all processes.
            add_up: sums a tensor over the processes in place.
        """
        add_up(self.confusion.counts)
        add_up(self.curve.counts)
        add_up(self.parts)
        dealt = zip_longest(*gathered(list(zip(self.ids, self.losses, strict=True))))
        images = [image for turn in dealt for image in turn if image is not None]
        self.ids, self.losses, self.n_images = [name for name, _ in images], [loss for _, loss in images], len(images)

    def _confusion(self, counts: Tensor, threshold: float | None) -> ConfusionMatrix:
        """The confusion matrix of counts such as ``_judged`` holds."""
        if self._judged is self.curve:
            assert threshold is not None
            curve = ThresholdCurve(device=counts.device)
            curve.counts = counts
            return curve.confusion_at(threshold)
        confusion = ConfusionMatrix(len(self.class_names), counts.device)
        confusion.counts = counts
        return confusion

    def _threshold(self) -> float | None:
        return self.curve.best_threshold(FLAT) if self._judged is self.curve else self.threshold

    def without_parts(self) -> list[float]:
        """The mIoU of the split without one of its groups of images each (the delete-a-group jackknife)."""
        counts, threshold = self._judged.counts, self._threshold()
        rests = (self._confusion(counts - part, threshold) for part in self.parts if part.any())
        return [rest.scores(self.class_names)["miou"] or 0.0 for rest in rests]

    def result(self) -> dict[str, Any]:
        """The scores under the keys of ``SCORE_KEYS``; undefined = None."""
        threshold = self._threshold()
        confusion = self._confusion(self._judged.counts, threshold)
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


def standard_error(first: Sequence[float], second: Sequence[float]) -> float:
    """Standard error of the difference of two scores of the same images, by the jackknife (Efron and Stein 1981).

    Args:
        first: ``SplitScores.without_parts`` of one network.
        second: that of another, of the same split.

    Returns:
        0 where fewer than two groups, or not the same number, tell nothing.
    """
    if len(first) != len(second) or len(first) < 2:
        return 0.0
    differences = torch.tensor(first, dtype=torch.float64) - torch.tensor(second, dtype=torch.float64)
    return math.sqrt((len(first) - 1) * float(differences.var(correction=0)))


SHOWN = {
    "iou_foi": "IoU in the field of interest", "seg": "SEG", "det": "DET", "miou": "mean IoU", "iou": "foreground IoU",
    "pixel_accuracy": "pixel accuracy", "f1": "F1", "precision": "precision", "recall": "recall",
    "boundary_f1": "boundary F1 (2 px)", "kappa": "Cohen's kappa", "auc": "ROC area", "threshold": "threshold",
    "loss": "loss",
}  # fmt: skip
"""Scores in the table, those by which a task is judged first."""
PLAIN_IOU = "mean and foreground IoU count unannotated nuclei near the border as errors; the first three do not"


def score_table(split: str, scores: Mapping[str, Any]) -> str:
    """The scores for people: a line each, then the IoU of each class; undefined = n/a."""
    lines = [f"{split}: {scores['n_images']} image(s), {scores['n_pixels'] / 1e6:.2f} million valid pixels"]
    named = {SHOWN[key]: scores[key] for key in SHOWN if key in scores}
    named |= {f"IoU of {name}": value for name, value in scores["per_class_iou"].items()}
    lines += [f"  {name:30}{'n/a' if value is None else format(value, '.4f')}" for name, value in named.items()]
    return "\n".join([*lines, *([f"  ({PLAIN_IOU})"] if "iou_foi" in scores else [])])


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
    """Print the scores as a table for people to stderr, and as one JSON object, the last line of stdout."""
    print(score_table(split, scores), file=sys.stderr, flush=True)
    print(json.dumps({"task": task, "split": split, **scores}, allow_nan=False), flush=True)
