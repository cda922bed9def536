"""Metrics that stream: integer counts over a whole split, turned into scores once at the end.

A mean of scores per batch depends on the batch size and invents numbers for empty batches. Here each metric holds one
int64 tensor of counts on the device, so the scores depend neither on how pixels are dealt into batches nor on their
order:

- `ConfusionMatrix`: class maps against the truth: IoU, F1, accuracy, kappa;
- `ThresholdCurve`: probabilities of the foreground: ROC, the best threshold, calibration;
- `BoundaryF1`: class boundaries against the truth's, with a tolerance in pixels.

Pixels of `IGNORE` are left out. What is undefined (0 / 0) is None, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from common.labels import IGNORE

CHUNK = 1 << 22
"""Pixels counted at a time, so that maps of whole rasters need little memory beside themselves."""


def ratio(numerator: float, denominator: float) -> float | None:
    """Divide, with None for something over nothing."""
    return numerator / denominator if denominator else None


def mean(values: Sequence[float]) -> float | None:
    """Average, with None for no values."""
    return ratio(math.fsum(values), len(values))


def _chunks(prediction: Tensor, target: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield flat pieces of both without the pixels that the target ignores, on the device of the counts."""
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    for some, truth in zip(
        torch.split(prediction.reshape(-1), CHUNK), torch.split(target.reshape(-1), CHUNK), strict=True
    ):
        truth = truth.to(device)
        valid = truth != IGNORE
        yield some.to(device)[valid], truth[valid]


def _checked_count(num_classes: int) -> int:
    if not 2 <= num_classes <= IGNORE:
        raise ValueError(f"{num_classes} classes given; 2 to {IGNORE} can be counted")
    return num_classes


def _check_labels(name: str, labels: Tensor, num_classes: int) -> None:
    """Raise a ValueError that names a label outside the classes."""
    if labels.is_floating_point():
        raise ValueError(f"{name} holds {labels.dtype}; class indices of an integer dtype expected")
    if labels.numel():
        low, high = (int(value) for value in labels.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{name} holds label {low if low < 0 else high}; "
                f"known are 0 to {num_classes - 1} and {IGNORE} (ignored): map labels when reading them"
            )


def pair_counts(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Count (true class, predicted class) of class maps as ``ConfusionMatrix`` does, on their device.

    Nothing waits for an accelerator, so there labels are not checked.

    Args:
        prediction: class indices of any shape.
        target: truth of the same shape, 255 = left out.
        num_classes: number of classes.

    Returns:
        (num_classes, num_classes) int64, rows = truth.
    """
    if target.device.type != "cpu":
        return _counts_of_cells(prediction, target, num_classes)
    matrix = ConfusionMatrix(num_classes)
    matrix.update(prediction, target)
    return matrix.counts


def _counts_of_cells(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """The same by as many passes as there are cells: how many pixels are left is nowhere asked."""
    cells = torch.where(target == IGNORE, -1, target * num_classes + prediction).to(torch.int16)
    counts = [(cells == cell).sum() for cell in range(num_classes**2)]
    return torch.stack(counts).reshape(num_classes, num_classes)


class ConfusionMatrix:
    """Counts of (true class, predicted class) over a split.

    Args:
        num_classes: number of classes, at least 2 and at most 255.
        device: where the counts live; updates are moved there.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = _checked_count(num_classes)
        self.counts = torch.zeros((num_classes, num_classes), dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count class maps of equal, arbitrary shape and integer dtype.

        A pixel is left out where the target or the prediction is 255 (a predicted map is 255 where the image has no
        data).

        Raises:
            ValueError: when the shapes differ or a counted pixel holds a label that is no class.
        """
        for predicted, truth in _chunks(prediction, target, self.counts.device):
            known = predicted != IGNORE
            predicted, truth = predicted[known], truth[known]
            _check_labels("target", truth, self.num_classes)
            _check_labels("prediction", predicted, self.num_classes)
            cells = torch.bincount(truth.long() * self.num_classes + predicted, minlength=self.counts.numel())
            self.counts += cells.reshape(self.counts.shape)

    def scores(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return every score as plain Python values, None where undefined.

        Args:
            class_names: a name per class, in the order of the labels.

        Returns:
            ``n_pixels``; ``iou`` of the foreground (class 1 of two, else None); ``miou``, the mean over the classes
            with a truth pixel; ``pixel_accuracy``; ``f1``, ``precision`` and ``recall`` of the foreground, or with more
            classes their means over the classes with a truth pixel (a class that is never predicted has precision 0
            there, lest not predicting it pay off); Cohen's ``kappa``; ``per_class_iou`` by name, false positives on
            any truth included; ``absent_classes``, those without a truth pixel; ``confusion_matrix``, rows = truth.

        Raises:
            ValueError: when the number of names is not the number of classes.
        """
        if len(class_names) != self.num_classes or len(set(class_names)) != self.num_classes:
            raise ValueError(f"{self.num_classes} different class names expected, got {list(class_names)}")
        rows: list[list[int]] = self.counts.tolist()  # Python integers: the products below can pass 2^63
        hits = [row[label] for label, row in enumerate(rows)]
        truth = [sum(row) for row in rows]
        predicted = [sum(column) for column in zip(*rows, strict=True)]
        table = list(zip(hits, truth, predicted, strict=True))
        iou = [ratio(hit, true + guess - hit) for hit, true, guess in table]
        f1 = [ratio(2 * hit, true + guess) for hit, true, guess in table]
        precision = [ratio(hit, guess) for hit, _, guess in table]
        recall = [ratio(hit, true) for hit, true, _ in table]
        present = [label for label, count in enumerate(truth) if count]
        binary = self.num_classes == 2

        def summary(values: Sequence[float | None]) -> float | None:
            return values[1] if binary else mean([values[label] or 0.0 for label in present])

        total, agreed = sum(truth), sum(hits)
        chance = sum(true * guess for _, true, guess in table)
        return {
            "n_pixels": total,
            "iou": iou[1] if binary else None,
            "miou": mean([iou[label] or 0.0 for label in present]),
            "pixel_accuracy": ratio(agreed, total),
            "f1": summary(f1),
            "precision": summary(precision),
            "recall": summary(recall),
            "kappa": ratio(agreed * total - chance, total * total - chance),
            "per_class_iou": dict(zip(class_names, iou, strict=True)),
            "absent_classes": [name for name, count in zip(class_names, truth, strict=True) if not count],
            "confusion_matrix": rows,
        }


class ThresholdCurve:
    """Histograms of P(foreground) over the true background and the true foreground.

    Cell ``k`` holds the pixels with ``k / bins <= P < (k + 1) / bins``, the last one those with ``P = 1``, compared in
    fp32 as ``probability >= threshold`` is. So the mask at any threshold ``k / bins`` is counted exactly, and scores
    over all thresholds are those of probabilities rounded down to a multiple of ``1 / bins``.

    Args:
        bins: number of steps between 0 and 1; even, so that 0.5 is one of them.
        device: where the counts live; updates are moved there.
    """

    def __init__(self, bins: int = 1000, device: torch.device | str = "cpu") -> None:
        if bins < 2 or bins % 2 or bins > 1 << 20:
            raise ValueError(f"{bins} bins given; an even number from 2 to {1 << 20} expected")
        self.counts = torch.zeros((2, bins + 1), dtype=torch.int64, device=device)
        self.bins = bins
        edges = torch.arange(bins + 2, dtype=torch.float64) / bins
        edges[-1] = math.inf
        self._edges = edges.float().to(device)

    def update(self, probability: Tensor, target: Tensor) -> None:
        """Count probabilities of the foreground against a target of 0, 1 and 255, both of the same arbitrary shape.

        Raises:
            ValueError: when the shapes differ, a counted probability is outside [0, 1] or not a number, or a label is
                neither 0 nor 1.
        """
        for some, truth in _chunks(probability, target, self.counts.device):
            _check_labels("target", truth, 2)
            chance = some.float()
            if chance.numel():
                low, high = (float(value) for value in chance.aminmax())
                if not (low >= 0.0 and high <= 1.0):  # written so that NaN fails, too
                    raise ValueError(f"probabilities {low:g} to {high:g} are not within [0, 1]; apply sigmoid first")
            cell = (chance * self.bins).long()  # off by one where the product is rounded; the edges decide
            cell += (chance >= self._edges[cell + 1]).long() - (chance < self._edges[cell]).long()
            cells = torch.bincount(truth.long() * (self.bins + 1) + cell, minlength=self.counts.numel())
            self.counts += cells.reshape(self.counts.shape)

    def confusion_at(self, threshold: float) -> ConfusionMatrix:
        """Return the confusion matrix of ``P >= threshold``, exactly, as if the masks had been counted.

        Raises:
            ValueError: when the threshold is not a multiple of ``1 / bins`` in [0, 1].
        """
        cell = round(threshold * self.bins)
        if not 0 <= cell <= self.bins or abs(cell / self.bins - threshold) > 1e-9:
            raise ValueError(f"threshold {threshold:g} is not a multiple of 1/{self.bins} from 0 to 1")
        confusion = ConfusionMatrix(2, self.counts.device)
        confusion.counts[:, 0] = self.counts[:, :cell].sum(dim=1)
        confusion.counts[:, 1] = self.counts[:, cell:].sum(dim=1)
        return confusion

    def _above(self) -> Tensor:
        """Return (2, bins + 2) int64 counts of pixels with ``P >= k / bins``; the last column is 0."""
        above = self.counts.cpu().flip(1).cumsum(1).flip(1)
        return torch.cat([above, above.new_zeros(2, 1)], dim=1)

    def roc(self) -> tuple[list[float], list[float]] | None:
        """Return false and true positive rates, a point per threshold, (0, 0) to (1, 1); None without both classes."""
        negative, positive = self._above().flip(1).double()
        if not negative[-1] or not positive[-1]:
            return None
        return (negative / negative[-1]).tolist(), (positive / positive[-1]).tolist()

    def roc_auc(self) -> float | None:
        """Return the area under the ROC curve (ties count half); None if a class is absent."""
        negative, positive = (row.tolist() for row in self.counts)
        below = area = 0
        for lower, upper in zip(negative, positive, strict=True):
            area += upper * (2 * below + lower)
            below += lower
        return ratio(area, 2 * sum(negative) * sum(positive))

    def best_threshold(self, tolerance: float = 0.0) -> float:
        """Return the threshold ``k / bins`` of the highest mIoU; of equals the one closest to 0.5, then the lower.

        The mean is over the classes that have a truth pixel; scores ``tolerance`` below the highest count as equal to
        it. Without a pixel that could be judged by, 0.5.
        """
        false, true = self._above()[:, :-1].double()
        negatives, positives = false[0], true[0]
        scores = []
        if positives:
            scores.append(true / (positives + false))
        if negatives:
            scores.append((negatives - false) / (negatives + positives - true))
        if not scores:
            return 0.5
        score = torch.stack(scores).mean(dim=0)
        best: list[int] = (score >= score.max() - tolerance).nonzero()[:, 0].tolist()
        return min(best, key=lambda k: (abs(2 * k - self.bins), k)) / self.bins

    def calibration(self, bins: int = 10) -> list[dict[str, float | int | None]]:
        """Return the reliability table: do pixels predicted at 0.8 turn out foreground eight times in ten?

        Args:
            bins: number of rows, a divisor of the curve's own bins.

        Returns:
            A row per interval of probability: ``lower``, ``upper``, ``count`` pixels, ``mean_predicted`` probability
            (each pixel at the center of its fine bin) and ``observed`` share of foreground; the last two None without
            pixels.
        """
        if bins < 1 or self.bins % bins:
            raise ValueError(f"{bins} rows do not divide {self.bins} bins evenly")
        center = (torch.arange(self.bins + 1, dtype=torch.float64) + 0.5) / self.bins
        center[-1] = 1.0
        counts = self.counts.cpu()
        rows: list[dict[str, float | int | None]] = []
        step = self.bins // bins
        for row in range(bins):
            cells = slice(row * step, (row + 1) * step + (row == bins - 1))  # P = 1 belongs to the last row
            both = counts[:, cells].sum(dim=0)
            count = int(both.sum())
            predicted, observed = float((both * center[cells]).sum()), int(counts[1, cells].sum())
            share = {"mean_predicted": ratio(predicted, count), "observed": ratio(observed, count)}
            rows.append({"lower": row / bins, "upper": (row + 1) / bins, "count": count, **share})
        return rows


class BoundaryF1:
    """Agreement of class boundaries within a tolerance, counted over a split.

    A pixel is on the boundary of its class when one of its four neighbors is of another class; neither the image's edge
    nor an ignored neighbor makes a boundary. Pixels ignored in the truth (or 255 in the prediction) are ignored in both
    maps. A boundary pixel is matched when the other map has a boundary pixel of the same class at a Euclidean distance
    of at most ``tolerance`` between pixel centers. Over the whole split, precision = matched / all predicted boundary
    pixels, recall = matched / all true boundary pixels, F1 their harmonic mean (Csurka et al., What is a good
    evaluation measure for semantic segmentation?, 2013, there per image).

    Args:
        num_classes: number of classes; of two, only the foreground (class 1) is scored.
        tolerance: distance in pixels at which boundaries still match.
        device: where the counts live; updates are moved there.
    """

    def __init__(self, num_classes: int, tolerance: float = 2, device: torch.device | str = "cpu") -> None:
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance {tolerance} is not a distance in pixels")
        self.num_classes = _checked_count(num_classes)
        # Matched and all predicted, matched and all true.
        self.counts = torch.zeros((num_classes, 4), dtype=torch.int64, device=device)
        self.tolerance = tolerance

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count the boundaries of class maps ``(H, W)`` or ``(N, H, W)`` of an integer dtype.

        Raises:
            ValueError: when the shapes differ or a counted pixel holds a label that is no class.
        """
        if prediction.shape != target.shape or target.ndim not in (2, 3):
            raise ValueError(f"(H, W) or (N, H, W) maps expected, got {tuple(prediction.shape)}, {tuple(target.shape)}")
        prediction, target = prediction.to(self.counts.device), target.to(self.counts.device)
        valid = (target != IGNORE) & (prediction != IGNORE)
        _check_labels("target", target.masked_fill(~valid, 0), self.num_classes)
        _check_labels("prediction", prediction.masked_fill(~valid, 0), self.num_classes)
        predicted_edge, true_edge = _edges(prediction, valid), _edges(target, valid)
        for label in range(int(self.num_classes == 2), self.num_classes):
            predicted, true = predicted_edge & (prediction == label), true_edge & (target == label)
            matched = predicted & _dilate(true, self.tolerance), true & _dilate(predicted, self.tolerance)
            self.counts[label] += torch.stack([matched[0].sum(), predicted.sum(), matched[1].sum(), true.sum()])

    def score(self) -> float | None:
        """Return the F1 of the foreground, or with more classes the mean over those with a true boundary.

        None without such a class; for two classes None only when neither map has a boundary.
        """
        rows: list[list[int]] = self.counts.tolist()
        if self.num_classes == 2:
            return _harmonic(*rows[1]) if rows[1][1] or rows[1][3] else None
        return mean([_harmonic(*row) for row in rows if row[3]])


def _harmonic(matched_predicted: int, predicted: int, matched_true: int, true: int) -> float:
    """Return F1 of precision and recall given as counts; 0 when either is 0 or has nothing to count."""
    precision, recall = matched_predicted / max(predicted, 1), matched_true / max(true, 1)
    return 2 * precision * recall / (precision + recall) if precision and recall else 0.0


def _edges(labels: Tensor, valid: Tensor) -> Tensor:
    """Return the valid pixels of ``(…, H, W)`` that touch a valid pixel of another label by a side."""
    edge = torch.zeros_like(valid)
    for axis in (-2, -1):
        length = labels.shape[axis] - 1
        differ = labels.narrow(axis, 0, length) != labels.narrow(axis, 1, length)
        differ &= valid.narrow(axis, 0, length) & valid.narrow(axis, 1, length)
        edge.narrow(axis, 0, length).logical_or_(differ)
        edge.narrow(axis, 1, length).logical_or_(differ)
    return edge


def _dilate(mask: Tensor, radius: float) -> Tensor:
    """Grow a bool mask ``(…, H, W)`` by a disk: every pixel within ``radius`` of a set one is set."""
    height, width = mask.shape[-2:]
    reach = int(radius)
    grown = mask.clone()
    for down in range(-min(reach, height - 1), min(reach, height - 1) + 1):
        half = min(math.isqrt(int(radius * radius - down * down)), width - 1)
        for right in range(-half, half + 1):
            source = mask[..., max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
            grown[..., max(down, 0) : height - max(-down, 0), max(right, 0) : width - max(-right, 0)] |= source
    return grown
