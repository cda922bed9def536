"""SEG and DET of the Cell Tracking Challenge: how well each nucleus is covered, how many corrections the count needs.

A result object S matches a reference object R iff it covers more than half of it, ``|R & S| > |R| / 2``. So a
reference object has one match at most, while a result object that swallowed several nuclei matches all of them. From
the matches come

- SEG, the mean Jaccard index ``|R & S| / |R | S|`` over all reference objects, 0 for those without a match;
- DET, ``1 - min(A, A0) / A0``, where ``A = 5 * splits + 10 * misses + 1 * extras`` is the price of correcting the
  result and ``A0 = 10 * |R|`` the price of drawing every nucleus anew. A result object that matches n > 1 references
  needs n - 1 splits, a reference without a match is a miss, a result object that matches nothing is an extra.

Both are taken over all objects of all frames, not averaged by frame. Definitions: Maska et al., *A benchmark for
comparison of cell tracking algorithms* (2014) for SEG; Matula et al., *Cell tracking accuracy measurement based on
comparison of acyclic oriented graphs* (2015) for DET.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SPLIT_PRICE, MISS_PRICE, EXTRA_PRICE = 5, 10, 1

Labels = NDArray[np.integer]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Match:
    """Which result object covers which reference object in one frame.

    The last three arrays have one entry per matched pair.
    """

    reference_labels: Ids
    """All object ids of the reference, ascending."""
    result_labels: Ids
    """All object ids of the result, ascending."""
    matched_reference: Ids
    """Reference id of each pair, ascending, each at most once."""
    matched_result: Ids
    """Result id of each pair; an id that occurs n times joins n nuclei."""
    jaccard: NDArray[np.float64]
    """Intersection over union of each pair, in (0, 1]."""


def match(reference: Labels, result: Labels) -> Match:
    """Pair the objects of two label images of one frame.

    Args:
        reference: (H, W) integer, 0 = background, every other value one object.
        result: (H, W) integer of the same shape.

    Raises:
        ValueError: the images differ in shape.
    """
    if reference.shape != result.shape:
        raise ValueError(
            f"reference has shape {reference.shape} and result {result.shape}; compare label images of the same frame"
        )
    reference_labels, reference_areas = _objects(reference)
    result_labels, result_areas = _objects(result)

    # Joint histogram of the pixels that are inside an object on both sides.
    both = (reference > 0) & (result > 0)
    row = np.searchsorted(reference_labels, reference[both])
    column = np.searchsorted(result_labels, result[both])
    pairs, intersection = np.unique(row * len(result_labels) + column, return_counts=True)
    row, column = np.divmod(pairs, max(len(result_labels), 1))

    covered = 2 * intersection > reference_areas[row]
    row, column, intersection = row[covered], column[covered], intersection[covered]
    union = reference_areas[row] + result_areas[column] - intersection
    return Match(reference_labels, result_labels, reference_labels[row], result_labels[column], intersection / union)


def _objects(labels: Labels) -> tuple[Ids, Ids]:
    """Ids and areas (px) of the objects of a label image, by ascending id."""
    ids, areas = np.unique(labels[labels > 0], return_counts=True)
    return ids.astype(np.int64), areas.astype(np.int64)


@dataclass(frozen=True)
class FrameScores:
    """The sums SEG and DET are made of; those of several frames add up."""

    references: int = 0
    """Number of reference objects."""
    jaccard_sum: float = 0.0
    """Sum of the Jaccard index over the matched reference objects."""
    splits: int = 0
    misses: int = 0
    extras: int = 0

    @classmethod
    def of(cls, reference: Labels, result: Labels) -> FrameScores:
        """Compare two label images (H, W) of one frame."""
        pairs = match(reference, result)
        distinct = len(np.unique(pairs.matched_result))
        return cls(
            references=len(pairs.reference_labels),
            jaccard_sum=float(pairs.jaccard.sum()),
            splits=len(pairs.matched_result) - distinct,
            misses=len(pairs.reference_labels) - len(pairs.matched_reference),
            extras=len(pairs.result_labels) - distinct,
        )

    def __add__(self, other: FrameScores) -> FrameScores:
        """Return the scores of both sets of frames together."""
        return FrameScores(
            self.references + other.references,
            self.jaccard_sum + other.jaccard_sum,
            self.splits + other.splits,
            self.misses + other.misses,
            self.extras + other.extras,
        )

    def seg(self) -> float | None:
        """Mean Jaccard index over the reference objects, 0-1; None without any."""
        return self.jaccard_sum / self.references if self.references else None

    def det(self) -> float | None:
        """One minus the price of correcting the result over that of starting anew, 0-1; None without references."""
        if not self.references:
            return None
        price = SPLIT_PRICE * self.splits + MISS_PRICE * self.misses + EXTRA_PRICE * self.extras
        anew = MISS_PRICE * self.references
        return 1.0 - min(price, anew) / anew


class CtcScore:
    """SEG and DET over any number of frames, one at a time.

    Example:
        >>> score = CtcScore()
        >>> score.update(np.array([[1, 1, 0]]), np.array([[7, 7, 7]]))
        >>> round(score.seg(), 3), score.det()
        (0.667, 1.0)
    """

    def __init__(self) -> None:
        self.totals = FrameScores()
        self.frames = 0

    def update(self, reference_labels: Labels, result_labels: Labels) -> None:
        """Add one frame: two label images (H, W) integer, 0 = background."""
        self.totals += FrameScores.of(reference_labels, result_labels)
        self.frames += 1

    def merge(self, other: CtcScore) -> None:
        """Add the frames of another score, such as that of a second sequence."""
        self.totals += other.totals
        self.frames += other.frames

    def seg(self) -> float | None:
        """SEG over all objects so far, 0-1; None if the reference had none."""
        return self.totals.seg()

    def det(self) -> float | None:
        """DET over all objects so far, 0-1; None if the reference had none."""
        return self.totals.det()


def drop_border_objects(labels: Labels, border: int = 25) -> Labels:
    """Remove the objects wholly within ``border`` pixels of the image border, outside the field of interest.

    The challenge's truth does not contain them, so a result must lose them too before it is scored. An object with at
    least one pixel that has ``border`` or more pixels between itself and every side stays whole.

    Args:
        labels: (H, W) integer, 0 = background.
        border: width of the band in pixels; 0 keeps everything.

    Returns:
        A copy of the same dtype.

    Raises:
        ValueError: ``labels`` is not two-dimensional or ``border`` is negative.
    """
    if labels.ndim != 2:
        raise ValueError(f"labels have shape {labels.shape}; give one frame (H, W) at a time")
    if border < 0:
        raise ValueError(f"border is {border}; give the width of the band in pixels, 0 or more")
    height, width = labels.shape
    inside = labels[border : max(height - border, 0), border : max(width - border, 0)]
    return np.where(np.isin(labels, np.unique(inside)), labels, 0).astype(labels.dtype)
