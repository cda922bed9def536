"""Linking nuclei from frame to frame, so that one nucleus keeps one id and daughters know their mother.

The Cell Tracking Challenge wants, beside one label image per frame, a list of tracks ``label begin end parent``. A
track lives in consecutive frames; whatever interrupts it (a division, a missing frame) ends it, and what follows are
new tracks with the old one as parent.

Three steps per frame, all from the label images alone:

1. *Assignment.* Objects of two frames may be the same nucleus if they overlap or if their centers are at most one
   diameter apart. Among those pairs the one-to-one assignment with the largest total of IoU plus closeness is taken.
2. *Division.* A nucleus left over in the new frame may be a daughter. Its sister is another left-over, or the object
   its mother was assigned to. The pair is believed if the sisters are of similar size, neither is much larger than the
   mother, and the mother lay between them: a nucleus that merely turns up beside another fails that, for the supposed
   mother is then where one "sister" is.
3. *Naming.* Assigned objects take the old id, sisters get new ids with a parent, everything else a new id without one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from common.files import write_text

Labels = NDArray[np.integer]
Track = tuple[int, int, int, int]

LARGEST_LABEL = 65535
REACH = 1.0
"""Objects without overlap may be linked up to this many diameters of the earlier one."""
SISTER_AREA_RATIO = 2.0
"""The larger sister has at most this many times the area of the smaller."""
DAUGHTER_AREA_RATIO = 1.5
"""A daughter has at most this many times the area of its mother, who is condensed just before she divides."""
SISTER_DISTANCE = 2.0
"""Sisters are at most this many diameters of their mother apart."""
MOTHER_OFFSET = 0.35
"""The mother lay at most this fraction of the sisters' distance from the middle between them."""


@dataclass(frozen=True)
class _Objects:
    """The objects of one frame, ordered by the id they had in its label image."""

    ids: NDArray[np.int64]
    areas: NDArray[np.float64]
    """Pixels."""
    centers: NDArray[np.float64]
    """(K, 2) row and column."""
    index: NDArray[np.int64]
    """(H, W) position of each pixel's object in these arrays, -1 in the background."""

    @property
    def diameters(self) -> NDArray[np.float64]:
        """Diameter of the circle of the same area, pixels."""
        return np.sqrt(4 / np.pi * self.areas)

    @classmethod
    def of(cls, labels: Labels) -> _Objects:
        rows, columns = np.nonzero(labels)
        ids, inverse = np.unique(labels[rows, columns], return_inverse=True)
        areas = np.bincount(inverse, minlength=len(ids)).astype(np.float64)
        sums = [np.bincount(inverse, weights=axis, minlength=len(ids)) for axis in (rows, columns)]
        index = np.full(labels.shape, -1, dtype=np.int64)
        index[rows, columns] = inverse
        return cls(ids.astype(np.int64), areas, np.stack(sums, axis=1) / np.maximum(areas, 1)[:, None], index)


class Linker:
    """Give nuclei ids that last, one frame at a time.

    Example:
        >>> linker = Linker()
        >>> _ = linker.update(0, np.array([[5, 5, 0, 0]]))
        >>> linker.update(1, np.array([[0, 9, 9, 0]]))
        array([[0, 1, 1, 0]], dtype=uint16)
        >>> linker.tracks()
        [(1, 0, 1, 0)]
    """

    def __init__(self) -> None:
        self._tracks: dict[int, list[int]] = {}
        self._frame: int | None = None
        self._objects: _Objects | None = None
        self._ids: NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # track of each object of the last frame

    def update(self, frame_number: int, labels: Labels) -> NDArray[np.uint16]:
        """Name the objects of the next frame.

        Args:
            frame_number: number of the frame in its sequence, larger than the last one. Where numbers are left out
                every track ends, and its continuation is a new track with the old one as parent.
            labels: (H, W) integer, 0 = background; the values of different frames need not have anything to do with
                each other.

        Returns:
            (H, W) uint16, the same objects under the ids of their tracks.

        Raises:
            ValueError: frames come out of order, ``labels`` is no label image or changes its size, or there are more
                than 65535 tracks.
        """
        self._check(frame_number, labels)
        objects = _Objects.of(labels)
        ids = np.zeros(len(objects.ids), dtype=np.int64)
        parents = np.zeros(len(objects.ids), dtype=np.int64)
        if self._frame is not None and self._objects is not None:
            gap = frame_number - self._frame
            links = _assign(self._objects, objects, gap)
            divisions = _divisions(self._objects, objects, links)
            for mother, sisters in divisions.items():
                links.pop(mother, None)
                parents[list(sisters)] = self._ids[mother]
            for old, new in links.items():
                (ids if gap == 1 else parents)[new] = self._ids[old]

        for position, name in enumerate(ids):
            if name:
                self._tracks[int(name)][1] = frame_number
            else:
                ids[position] = self._begin(frame_number, int(parents[position]))
        self._frame, self._objects, self._ids = frame_number, objects, ids
        return np.append(ids, 0).astype(np.uint16)[objects.index]  # index -1 is the background, the appended 0

    def tracks(self) -> list[Track]:
        """All tracks so far as (label, first frame, last frame, parent or 0), by label."""
        return [(name, begin, end, parent) for name, (begin, end, parent) in self._tracks.items()]

    def _begin(self, frame_number: int, parent: int) -> int:
        """Open a track and return its id."""
        name = len(self._tracks) + 1
        if name > LARGEST_LABEL:
            raise ValueError(
                f"frame {frame_number}: more than {LARGEST_LABEL} tracks, which 16-bit masks cannot hold; "
                "track fewer frames at a time, or raise the threshold if noise was segmented"
            )
        self._tracks[name] = [frame_number, frame_number, parent]
        return name

    def _check(self, frame_number: int, labels: Labels) -> None:
        if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"frame {frame_number}: labels are {labels.dtype} of shape {labels.shape}; give integers (H, W)"
            )
        if labels.size and labels.min() < 0:
            raise ValueError(
                f"frame {frame_number}: label {labels.min()} is negative; 0 is the background, objects are positive"
            )
        if self._frame is not None and frame_number <= self._frame:
            raise ValueError(
                f"frame {frame_number} comes after frame {self._frame}; give the frames in ascending order"
            )
        if self._objects is not None and labels.shape != self._objects.index.shape:
            raise ValueError(
                f"frame {frame_number} has shape {labels.shape}, the one before {self._objects.index.shape}; "
                "the frames of a sequence have one size"
            )


def _assign(old: _Objects, new: _Objects, gap: int) -> dict[int, int]:
    """Match objects of two frames one to one: position in ``old`` -> position in ``new``.

    The gate is one diameter per frame, times the square root of the gap, as a random walk spreads.
    """
    if not len(old.ids) or not len(new.ids):
        return {}
    both = (old.index >= 0) & (new.index >= 0)
    pairs = old.index[both] * len(new.ids) + new.index[both]
    overlap = np.bincount(pairs, minlength=len(old.ids) * len(new.ids)).reshape(len(old.ids), len(new.ids))
    iou = overlap / (old.areas[:, None] + new.areas[None, :] - overlap)
    gate = REACH * gap**0.5 * old.diameters[:, None]
    closeness = 1 - np.linalg.norm(old.centers[:, None] - new.centers[None, :], axis=2) / gate
    allowed = (overlap > 0) | (closeness >= 0)
    gain = np.where(
        allowed, iou + np.clip(closeness, 0, 1) + 1e-6, 0.0
    )  # forbidden pairs gain nothing and are dropped below
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return {int(row): int(column) for row, column in zip(rows, columns, strict=True) if allowed[row, column]}


def _divisions(old: _Objects, new: _Objects, links: dict[int, int]) -> dict[int, tuple[int, int]]:
    """Find mothers and their two daughters, the most centered first; no object takes part in two divisions."""
    left_over = sorted(set(range(len(new.ids))) - set(links.values()))
    found: list[tuple[float, int, int, int]] = []
    for daughter in left_over:
        distance = np.linalg.norm(old.centers - new.centers[daughter], axis=1)
        for mother in np.flatnonzero(distance <= SISTER_DISTANCE * old.diameters).tolist():
            sisters = [links[mother]] if mother in links else [other for other in left_over if other > daughter]
            for sister in sisters:
                offset = _offset(old, new, mother, daughter, sister)
                if offset is not None:
                    found.append((offset, mother, daughter, sister))

    divisions: dict[int, tuple[int, int]] = {}
    taken: set[int] = set()
    for _, mother, daughter, sister in sorted(found):
        if mother not in divisions and not taken & {daughter, sister}:
            divisions[mother] = (daughter, sister)
            taken |= {daughter, sister}
    return divisions


def _offset(old: _Objects, new: _Objects, mother: int, daughter: int, sister: int) -> float | None:
    """Distance of the mother from the middle of two objects over theirs; None if they cannot be her daughters."""
    small, large = sorted((new.areas[daughter], new.areas[sister]))
    apart = float(np.linalg.norm(new.centers[daughter] - new.centers[sister]))
    if large > SISTER_AREA_RATIO * small or large > DAUGHTER_AREA_RATIO * old.areas[mother]:
        return None
    if apart > SISTER_DISTANCE * old.diameters[mother]:
        return None
    middle = (new.centers[daughter] + new.centers[sister]) / 2
    offset = float(np.linalg.norm(middle - old.centers[mother])) / max(apart, 1e-6)
    return offset if offset <= MOTHER_OFFSET else None


def write_tracks(path: Path, tracks: Iterable[Track]) -> None:
    """Write the challenge's track file (``res_track.txt``): a line ``label begin end parent`` per track, atomically."""
    write_text(path, "".join(f"{label} {begin} {end} {parent}\n" for label, begin, end, parent in tracks))
