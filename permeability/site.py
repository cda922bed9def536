"""A site: ground that an orthophoto and a mask show both, read window by window straight from the two files.

Windows count in pixels of the orthophoto, or of a coarser or finer grid over it (``--resolution``). A mask on the same
grid is read with an offset; any other one is warped to it while it is read (``--reproject``), by nearest neighbor. What
lies beyond either file is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.images.grids import Grid
from common.images.ranges import ValueRanges, to_pixels
from common.images.windows import Window, WindowFile, ignore
from common.labels import IGNORE
from permeability.labels import to_classes


@dataclass(frozen=True)
class Site:
    """An orthophoto and a mask where they show the same ground."""

    id: str
    grid: Grid
    """In whose pixels windows count: the orthophoto's, or a coarser or finer one over it."""
    image: WindowFile
    mask: WindowFile
    window: Window
    """Rectangle of the grid that both reach."""
    offset: tuple[int, int] | None
    """Row and column of the mask's first pixel in the grid; None = the mask is warped to the grid."""
    excluded: tuple[Window, ...] = ()
    """Parts of the grid whose ground belongs to another orthophoto of the same mask: ignored here."""
    scale: float = 1.0
    """Side of the orthophoto's own pixels, in pixels of the grid."""
    ranges: ValueRanges = field(default_factory=ValueRanges, compare=False)
    """What the orthophoto's values mean."""

    def look(self, window: Window, channels: int = 3) -> None:
        """Take note of the values of the orthophoto in a window that lies inside.

        Raises:
            ValueError: it is damaged, or has too few bands.
        """
        self.ranges.see(*self.image.read(window, channels))
        self.read(window, channels)

    def read(self, window: Window, channels: int = 3) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Image and classes of any window, also beyond the edge.

        Args:
            window: in pixels of the grid.
            channels: bands that the network reads; for three of them a grey image is repeated.

        Returns:
            (channels, height, width) uint8, or float32 in 0...1 for other number types, 0 where there is nothing; and
            (height, width) uint8: 0 non-permeable, 1 permeable, 255 ignored.

        Raises:
            ValueError: a file is damaged, or has too few bands, or a mask's value is no class.
        """
        data, valid = self.image.read(window, channels)
        try:
            image = to_pixels(data, valid, channels, self.ranges.of(data.dtype))
        except ValueError as error:
            raise ValueError(f"{self.image.path}: {error}") from error
        return image, _ignored(self.read_classes(window), valid)

    def read_classes(self, window: Window) -> NDArray[np.uint8]:
        """Classes (height, width) of any window by the mask alone.

        Raises:
            ValueError: it is damaged, or holds a value that is no class.
        """
        row, col = self.offset or (0, 0)
        values, valid = self.mask.read(Window(window.row - row, window.col - col, window.height, window.width), 1)
        try:
            classes = to_classes(values[0], self.mask.nodata)
        except ValueError as error:
            raise ValueError(f"{self.mask.path}: {error}") from error
        classes = _ignored(classes, valid)
        for other in self.excluded:
            classes = ignore(classes, other, window)
        return classes


def _ignored(classes: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return classes if valid.all() else np.where(valid, classes, np.uint8(IGNORE))
