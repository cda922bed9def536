"""Sheets that are predicted as one raster: results of each sheet, and polygons of all of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from common.files import Workplace
from common.images.gdal import open_raster, place_of, read_bands
from common.images.mosaics import allow
from common.images.ranges import Range
from common.images.sheets import offset
from common.inference.job import Job
from common.inference.products import (
    SAFE_STEM,
    Complete,
    Prediction,
    Products,
    give_names,
    overlay_step,
    write_products,
    write_vectors,
)
from common.inference.strips import Thumbnail
from common.labels import NODATA
from common.outputs import relative_source

STEM = "mosaic"
"""Of the polygons of all sheets."""


class Cut(Complete):
    """A sheet's part of a predicted mosaic; where the sheet has no data, its results have none either."""

    streamed = True

    def __init__(self, rows: Prediction, dataset: DatasetReader, value_range: Range | None) -> None:
        grid, place = rows.place[1], place_of(dataset)
        assert grid is not None and place is not None
        self._rows, self._dataset = rows, dataset
        self._col, self._row = map(round, offset(grid, place))
        self.size, self.place = dataset.shape, (dataset.crs, place)
        self._thumbnail = Thumbnail(self.size, overlay_step(self.size), value_range)
        self._reading = threading.Lock()  # masks and the overlay are made side by side

    def read(self, name: str, first: int, last: int) -> NDArray[Any]:
        """Rows ``first`` to ``last`` (excluded) of a layer: (C, rows, W)."""
        with self._reading:
            _, valid = read_bands(self._dataset, (first, last))
        cols = slice(self._col, self._col + self.size[1])
        values = self._rows.read(name, self._row + first, self._row + last)[..., cols]
        nothing = NODATA if name == "mask" else np.iinfo(values.dtype).max if values.dtype.kind == "u" else np.nan
        return np.where(valid, values, np.array(nothing, values.dtype))

    def picture(self, step: int, first: int, last: int) -> NDArray[np.uint8]:
        """Every n-th pixel of every n-th row from ``first`` on, (3, h, w)."""
        with self._reading:
            return self._thumbnail.rows(self._dataset, first, last)


@dataclass(frozen=True)
class MosaicJob(Job):
    """What is done with a mosaic of sheets."""

    mosaic: Path = Path()
    sheets: Mapping[Path, str] = field(default_factory=dict)
    """Stems of their results."""

    def __post_init__(self) -> None:
        """The mosaic is ours: its sheets may lie anywhere."""
        allow(self.mosaic)

    def origin(self, path: Path) -> Path:
        """The folder in which all sheets lie."""
        return Path(os.path.commonpath([sheet.resolve().parent for sheet in self.sheets]))

    def inputs(self, paths: Sequence[Path]) -> list[Path]:
        """The sheets."""
        return list(self.sheets)

    def names(self, path: Path, stem: str) -> list[str]:
        """Files that are written."""
        ours = set(self.products.names(stem, True)) - set(self._of_sheets(self.products).names(stem, True))
        return [*sorted(ours), *(name for each in self.sheets.values() for name in self._names_of(each))]

    def _names_of(self, stem: str) -> list[str]:
        return self._of_sheets(self.products).names(stem, True)

    def check(self, path: Path, stem: str) -> None:
        """Make sure that nothing of the user's would be replaced; see `OutputFolder.check`."""
        for sheet, name in self.sheets.items():
            self.outputs.check(self._names_of(name), sheet)
        self.outputs.check([name for name in self.names(path, stem) if name.startswith(f"{stem}.")], self.origin(path))

    def deliver(self, rows: Prediction, path: Path, stem: str, products: Products, here: Workplace) -> None:
        """Write the products of every sheet, then the polygons of the mosaic."""
        rows.complete()
        card = self.predictor.card
        for sheet, name in self.sheets.items():
            tags = {**products.tags, "source": relative_source(sheet, self.outputs.path)}
            with open_raster(sheet) as dataset, self.outputs.delivery(sheet, workplace=here) as temporary:
                value_range = self.predictor.ranges(self.input_range).of(dataset.dtypes[0])
                cut = Cut(rows, dataset, value_range)
                write_products(cut, sheet, temporary, name, card, replace(self._of_sheets(products), tags=tags))
        if products.vector != "none":
            with self.outputs.delivery(self.origin(path), workplace=here) as temporary:
                write_vectors(temporary / f"{SAFE_STEM}.{products.vector}", rows, stem, card, products)
                give_names(temporary, stem)

    def _of_sheets(self, products: Products) -> Products:
        return replace(products, vector="none", min_area=0.0, simplify=0.0, refine=None)
