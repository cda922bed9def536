"""Strips of rows: how a raster is read from top to bottom, every block once, and its small picture on the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from torch import Tensor

from common.images.gdal import read_bands
from common.images.ranges import Range, to_pixels
from common.images.windows import Window

Mask = NDArray[np.bool_]

TALLEST_BLOCK = 1024
"""Rows: strips are aligned to the file's blocks up to this height."""
NOTHING = np.empty(0)


class Thumbnail:
    """Every n-th pixel of every n-th row of a raster's picture, collected while it is read.

    Args:
        size: of the raster.
        step: n.
        value_range: values that mean black and white.
    """

    def __init__(self, size: tuple[int, int], step: int, value_range: Range | None) -> None:
        self.step, self._range = step, value_range
        height, width = (-(-side // step) for side in size)
        self.picture = np.zeros((3, height, width), np.uint8)
        self._seen = np.zeros(height, np.bool_)

    def add(self, first: int, data: NDArray[Any], valid: Mask) -> None:
        """Take what is wanted of rows from ``first`` on: bands (C, rows, W) and validity (rows, W)."""
        begin = -first % self.step
        some = (slice(begin, None, self.step), slice(None, None, self.step))
        rows = slice((first + begin) // self.step, (first + begin) // self.step + len(valid[some]))
        pixels = to_pixels(data[(slice(3), *some)], valid[some], 3, self._range)
        self.picture[:, rows] = pixels if pixels.dtype == np.uint8 else np.round(pixels * 255)
        self._seen[rows] = True

    def rows(self, dataset: DatasetReader, first: int, last: int) -> NDArray[np.uint8]:
        """The picture (3, h, w) of some of the raster's rows; those that were not seen are read from its file."""
        some = slice(-(-first // self.step), -(-last // self.step))
        if not self._seen[some].all():
            self.add(first, *read_bands(dataset, (first, last)))
        return self.picture[:, some]


class _Strip(NamedTuple):
    """Rows of a file that were read at once."""

    first: int
    data: NDArray[Any]
    """(C, rows, W)."""
    valid: Mask
    """(rows, W)."""

    @property
    def last(self) -> int:
        """The row after the last one."""
        return self.first + len(self.valid)

    def rows(self, first: int, last: int) -> slice:
        """Those of the strip that lie in a range of rows of the file."""
        return slice(max(0, first - self.first), max(0, last - self.first))


class StripReader:
    """Pixels of windows that come row by row, from strips of rows that are read on the way down the file.

    Every block is decoded once. `read` belongs to one thread, `take_valid` to another that is behind it.

    Args:
        dataset: the open file; used by the reading thread alone.
        convert: makes of bands and validity what is handed to the network, (C, H, W).
        thumbnail: is shown all rows, once.
    """

    def __init__(
        self,
        dataset: DatasetReader,
        convert: Callable[[NDArray[Any], Mask], NDArray[Any]],
        thumbnail: Thumbnail | None = None,
    ) -> None:
        self._dataset, self._convert, self._thumbnail = dataset, convert, thumbnail
        block = max(shape[0] for shape in dataset.block_shapes)
        self._align = block if block <= TALLEST_BLOCK else 1
        self._strips: list[_Strip] = []
        self._finished: deque[_Strip] = deque()

    def read(self, window: Window) -> Tensor | None:
        """Pixels of a window; None if none of them is valid."""
        self._move(window.row, window.row + window.height)
        (first, last), cols = window.spans[0], window.slices[1]
        valid = _join([strip.valid[strip.rows(first, last), cols] for strip in self._strips])
        if not valid.any():
            return None
        data = _join([strip.data.transpose(1, 2, 0)[strip.rows(first, last), cols] for strip in self._strips])
        return torch.from_numpy(self._convert(data.transpose(2, 0, 1), valid))

    def _move(self, first: int, last: int) -> None:
        """Forget strips above ``first`` and read on to ``last``, and to the end of the file's blocks there."""
        end = self._strips[-1].last if self._strips else 0
        self._strips = [strip for strip in self._strips if strip.last > first]
        if last <= end:
            return
        start = end if self._strips else first - first % self._align
        end = min(-(-last // self._align) * self._align, self._dataset.height)
        strip = _Strip(start, *read_bands(self._dataset, (start, end), interleaved=True))
        self._strips.append(strip)
        self._finished.append(strip._replace(data=NOTHING))
        if self._thumbnail is not None:
            self._thumbnail.add(start, strip.data, strip.valid)

    def take_valid(self, first: int, last: int) -> Mask:
        """Which pixels of rows ``first`` to ``last`` (excluded) are valid; rows before them are forgotten."""
        found = []
        for strip in list(self._finished):
            found.append(strip.valid[strip.rows(first, last)])
            if strip.last <= last:
                self._finished.popleft()
        return _join(found)


def _join(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Rows below each other."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
