"""Pictures of any size as square tiles at several resolutions, read from the file when somebody looks at them.

Level z shows one pixel for 2^z pixels a side. Coarse levels come from overviews: those in the file (COG) or beside it,
else from a small copy that is made in the background in a folder of our own; until that is there, they are not.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.io import DatasetReader

from common.files import atomic_path
from common.images.gdal import open_dataset, open_raster, quiet
from common.images.ranges import to_channels
from common.images.write import GEOTIFF

TILE = 256
DIRECT = 2
"""Levels up to this one are cut from the file itself, whatever overviews it has."""
COARSE = 8
"""Pixels of the picture per pixel of the small copy."""
Bytes = NDArray[np.uint8]


class TileSource:
    """One picture.

    Args:
        path: anything that GDAL reads.
        cache: folder for the small copy.
        value_range: values that mean black and white; None = the number type's.

    Raises:
        ValueError: it cannot be opened.
    """

    def __init__(self, path: Path, cache: Path, value_range: tuple[float, float] | None = None) -> None:
        self.path, self.value_range = path, value_range
        with open_raster(path) as dataset:
            self.height, self.width = dataset.height, dataset.width
            self.has_overviews = bool(dataset.overviews(1))
        info = path.stat()
        key = hashlib.sha256(f"{path.resolve()} {info.st_size} {info.st_mtime_ns}".encode()).hexdigest()[:16]
        self.copy = cache / f"{path.stem[:60]}-{key}.tif"
        self.top = max(0, math.ceil(math.log2(max(self.height, self.width) / TILE)))
        self._handles: dict[Path, deque[DatasetReader]] = {}

    @property
    def needs_copy(self) -> bool:
        """Whether coarse levels wait for `make_copy`."""
        return self.top > DIRECT and not self.has_overviews and not self.copy.is_file()

    def tile(self, level: int, x: int, y: int) -> Bytes | None:
        """A tile (h, w, 3), h, w <= 256; None where there is none or none yet.

        Args:
            level: 0 = the picture's own pixels.
            x: column of tiles.
            y: row of tiles.
        """
        size = TILE << max(0, level)
        if not 0 <= level <= self.top or x < 0 or y < 0 or x * size >= self.width or y * size >= self.height:
            return None
        if level > DIRECT and self.needs_copy:
            return None
        image = self.read(y * size, x * size, size, level)
        return np.ascontiguousarray(np.moveaxis(image, 0, -1))

    def read(self, row: int, col: int, size: int, level: int = 0) -> Bytes:
        """A window as (3, h, w) bytes, cut off at the picture's edge.

        Args:
            row: first row, pixels of the picture.
            col: first column.
            size: side, pixels of the picture.
            level: the result has one pixel for 2^level.
        """
        last_row, last_col = min(row + size, self.height), min(col + size, self.width)
        step = 1 << level
        shape = (max(1, (last_row - row) // step), max(1, (last_col - col) // step))
        coarse = level > DIRECT and not self.has_overviews
        factor = COARSE if coarse else 1
        window = ((row // factor, -(-last_row // factor)), (col // factor, -(-last_col // factor)))
        with self._opened(self.copy if coarse else self.path) as dataset:
            bands = list(range(1, min(dataset.count, 3) + 1))
            data = dataset.read(bands, window=window, out_shape=(len(bands), *shape), resampling=Resampling.average)
        return np.asarray(data, np.uint8) if coarse else self._to_bytes(data)

    def _to_bytes(self, data: NDArray[Any]) -> Bytes:
        valid = np.isfinite(data).all(axis=0)
        return np.asarray(np.round(to_channels(data, valid, 3, self.value_range) * 255), np.uint8)

    @contextmanager
    def _opened(self, path: Path) -> Iterator[DatasetReader]:
        """A handle that no other thread uses at the time; opening costs more than a tile, so handles are kept."""
        try:
            dataset = self._handles[path].pop()
        except (KeyError, IndexError):
            dataset = open_dataset(path)
        yield dataset
        self._handles.setdefault(path, deque()).append(dataset)

    def make_copy(self, stop: threading.Event) -> None:
        """Make the small copy, from a pass over the whole picture in bands of rows; leave it if ``stop`` is set."""
        height, width = -(-self.height // COARSE), -(-self.width // COARSE)
        self.copy.parent.mkdir(parents=True, exist_ok=True)
        rows = TILE * COARSE
        with atomic_path(self.copy) as temporary:
            options = GEOTIFF | {"count": 3, "height": height, "width": width, "dtype": "uint8"}
            with open_raster(self.path) as dataset, quiet(), rasterio.open(temporary, "w", **options) as small:
                for row in range(0, self.height, rows):
                    if stop.is_set():
                        raise InterruptedError("stopped")
                    last = min(row + rows, self.height)
                    bands = list(range(1, min(dataset.count, 3) + 1))
                    data = dataset.read(bands, window=((row, last), (0, self.width)))
                    image = np.moveaxis(self._to_bytes(data), 0, -1)
                    part = cv2.resize(image, (width, -(-(last - row) // COARSE)), interpolation=cv2.INTER_AREA)
                    first = row // COARSE
                    small.write(np.moveaxis(part, -1, 0), window=((first, first + len(part)), (0, width)))
            with quiet(), rasterio.open(temporary, "r+") as small:
                factors = [2**n for n in range(1, 12) if max(height, width) >> n >= TILE // 2]
                if factors:
                    small.build_overviews(factors, Resampling.average)
