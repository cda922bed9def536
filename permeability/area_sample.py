"""A probability sample of a class map: strata counted, points drawn, files of them, and the check that they are ours.

A stratum is a class of the map, within a zone where there are zones. The points of a stratum are a simple random sample
of its pixels, in random order, so that the first of them are one too: whoever stops early still has a valid sample.
`design.json` keeps what was drawn from what; the draw is repeated from it before anything is estimated.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from common.command.progress import progress
from common.files import read_json
from common.images.gdal import open_raster
from common.images.grids import Grid, apply
from common.labels import NODATA
from common.vectors.burn import Outlines, PolygonLayer
from common.vectors.formats import require_shapes
from common.vectors.write import areas
from permeability.area import Floats, Ints, Points, Strata

ROWS = 512
"""Rows of a map in memory at once."""
FORMAT = 1
DESIGN, TABLE, LAYER = "design.json", "sample.csv", "sample.gpkg"
COLUMNS = ("id", "map", "row", "col", "x", "y", "zone", "map_class", "reference")
UNJUDGED = ("", "null", "none", "nan")


@dataclass(frozen=True)
class Design:
    """What was drawn, from what."""

    maps: list[str]
    """Names of the files, in order."""
    classes: list[str]
    zones: list[str]
    """One empty name where there are none."""
    counts: list[list[int]]
    """Pixels of every stratum in every map."""
    drawn: list[int]
    """Points of every stratum."""
    seed: int
    format: int = FORMAT

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Design:
        """Read it.

        Raises:
            FileNotFoundError, ValueError: it is missing, or no design of ours.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: it was written beside the sample when that was drawn, and says how; without "
                "it nothing is known of the points' chances, so no interval would be honest"
            )
        try:
            design = cls(**read_json(path))
            if design.format != FORMAT or len(design.drawn) != len(design.zones) * len(design.classes):
                raise ValueError("of another version")
            whole = [design.seed, *design.drawn]
            if not all(isinstance(number, int) and number >= 0 for number in whole) or not any(design.drawn):
                raise ValueError("its seed and its numbers of points are no whole numbers")
            if any(n > sum(column) for n, column in zip(design.drawn, zip(*design.counts, strict=True), strict=True)):
                raise ValueError("it has more points than pixels")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is no design of a sample ({error}); draw the sample anew") from error
        return design


class ClassMap:
    """One class raster, with the zones that lie on it; read band by band.

    Args:
        path: single-band uint8 raster of class indices, 255 = no data.
        classes: number of classes.
        zones: polygons, and the name of each zone.

    Raises:
        ValueError: it is no class raster, or has no place on the ground.
    """

    def __init__(self, path: Path, classes: int, zones: tuple[PolygonLayer, Sequence[str]] | None) -> None:
        self.path, self.classes, self.grid = path, classes, Grid.of(path)
        with open_raster(path) as dataset:
            if dataset.count != 1 or dataset.dtypes[0] != "uint8":
                raise ValueError(
                    f"{path}: {dataset.count} band(s) of {dataset.dtypes[0]}; a map of classes is one band of uint8, "
                    "as infer.py writes it (S_mask.tif)"
                )
        self.zone_names = list(zones[1]) if zones else [""]
        self._outlines: Outlines | None = None
        if zones is not None:
            self._outlines = zones[0].over(self.grid)
            index = {name: number for number, name in enumerate(self.zone_names)}
            self._zone_of = np.array([index[value] for value in self._outlines.values], np.uint8)

    def bands(self, what: str) -> Iterator[tuple[int, NDArray[np.int16]]]:
        """The first row of each band of rows, and the stratum of its pixels, -1 = none; ``what`` is shown."""
        with open_raster(self.path) as dataset:
            for first in progress(range(0, self.grid.height, ROWS), f"{what} {self.path.name}", "band"):
                yield first, self._strata(dataset, first, min(ROWS, self.grid.height - first))

    def rows(self, wanted: Sequence[int]) -> Iterator[NDArray[np.int16]]:
        """The stratum of the pixels of single rows."""
        with open_raster(self.path) as dataset:
            for row in progress(wanted, f"drawing points in {self.path.name}", "row"):
                yield self._strata(dataset, row, 1)[0]

    def _strata(self, dataset: DatasetReader, first: int, rows: int) -> NDArray[np.int16]:
        window = ((first, first + rows), (0, self.grid.width))
        classes = dataset.read(1, window=window)
        known = (classes != NODATA) & (dataset.dataset_mask(window=window) != 0)
        if (classes[known] >= self.classes).any():
            raise ValueError(
                f"{self.path}: has the class {int(classes[known].max())}, --classes names {self.classes} (0 to "
                f"{self.classes - 1}); name all of them"
            )
        strata = classes.astype(np.int16)
        if self._outlines is not None:
            zone = self._outlines.burn((first, 0, rows, self.grid.width), self._zone_of, NODATA)
            strata += zone.astype(np.int16) * self.classes
            known &= zone != NODATA
        strata[~known] = -1
        return np.asarray(strata, np.int16)

    def pixel_areas(self) -> Floats:
        """Area of a pixel of each row, m2 (in the coordinates' unit without a coordinate system)."""
        rows = np.arange(self.grid.height if self.grid.crs and self.grid.crs.is_geographic else 1)
        middle = self.grid.width // 2
        corners = (
            np.array([[0, 0], [1, 0], [1, 1], [0, 1]])[None] + np.stack([np.full(len(rows), middle), rows], 1)[:, None]
        )
        outlines = shapely.polygons(apply(self.grid.transform, corners.reshape(-1, 2)).reshape(-1, 4, 2))
        return np.broadcast_to(areas(outlines, self.grid.crs or None), self.grid.height)


@dataclass(frozen=True)
class Census:
    """All pixels of the maps by stratum."""

    maps: Sequence[ClassMap]
    counts: list[Ints]
    """Per map: (rows, H) pixels."""

    @classmethod
    def of(cls, maps: Sequence[ClassMap]) -> Census:
        """Count.

        Raises:
            ValueError: no pixel belongs to any stratum.
        """
        counts = []
        for one in maps:
            size = one.classes * len(one.zone_names)
            rows = np.zeros((one.grid.height, size), np.int64)
            for first, band in one.bands("counting"):
                keys = (np.arange(len(band))[:, None] * (size + 1) + band + 1).ravel()
                rows[first : first + len(band)] = np.bincount(keys, minlength=len(band) * (size + 1)).reshape(
                    len(band), size + 1
                )[:, 1:]
            counts.append(rows)
        if not sum(int(rows.sum()) for rows in counts):
            raise ValueError(f"{maps[0].path}: no pixel has a class (within the zones, if there are any)")
        return cls(maps, counts)

    @property
    def per_map(self) -> list[list[int]]:
        """Pixels of every stratum in every map."""
        return [rows.sum(axis=0).tolist() for rows in self.counts]

    def strata(self) -> Strata:
        """Area and pixels of all strata, empty ones too."""
        area = sum(one.pixel_areas() @ rows for one, rows in zip(self.maps, self.counts, strict=True))
        return Strata(np.asarray(area, np.float64), np.sum([rows.sum(axis=0) for rows in self.counts], axis=0))

    def draw(self, drawn: Sequence[int], seed: int) -> Drawn:
        """Draw points: a simple random sample of each stratum's pixels, in an order that mixes the strata evenly."""
        lengths = [len(rows) for rows in self.counts]
        running = np.cumsum(np.concatenate(self.counts), axis=0)
        found = []
        for stratum in np.flatnonzero(drawn).tolist():
            generator = np.random.default_rng([seed, stratum])
            ranks = generator.choice(int(running[-1, stratum]), drawn[stratum], replace=False)
            rows = np.searchsorted(running[:, stratum], ranks, side="right")
            before = np.where(rows > 0, running[rows - 1, stratum], 0)
            order = (np.arange(len(ranks)) + generator.random()) / len(ranks)
            found.append(np.stack([np.full(len(ranks), stratum), rows, ranks - before, order], axis=1))
        table = np.concatenate(found)
        table = table[np.argsort(table[:, 3], kind="stable")]
        kind, below, offset = table[:, :3].astype(np.int64).T
        ends = np.cumsum(lengths)
        number = np.searchsorted(ends, below, side="right").astype(np.int64)
        row = below - (ends - lengths)[number]
        return Drawn(kind, number, row, self._columns(number, row, kind, offset))

    def _columns(self, number: Ints, row: Ints, stratum: Ints, offset: Ints) -> Ints:
        """The column of the ``offset``-th pixel of a stratum in a row."""
        result = np.zeros(len(row), np.int64)
        for index, one in enumerate(self.maps):
            wanted = np.unique(row[number == index])
            for at, line in zip(wanted, one.rows(wanted.tolist()), strict=True):
                for point in np.flatnonzero((number == index) & (row == at)):
                    result[point] = np.flatnonzero(line == stratum[point])[offset[point]]
        return result


@dataclass(frozen=True)
class Drawn:
    """Points, in the order in which they are to be judged; arrays of length n."""

    stratum: Ints
    map: Ints
    row: Ints
    col: Ints

    def __len__(self) -> int:
        """Number of points."""
        return len(self.stratum)

    def points(self, census: Census) -> Points:
        """Strata and pixel areas, as the estimators take them."""
        pixel = [one.pixel_areas() for one in census.maps]
        return Points(self.stratum, np.array([pixel[m][r] for m, r in zip(self.map, self.row, strict=True)]))

    def places(self, census: Census) -> Floats:
        """Coordinates (n, 2) of the pixels' middles, in their own map's system."""
        result = np.zeros((len(self), 2))
        for index, one in enumerate(census.maps):
            here = self.map == index
            result[here] = apply(one.grid.transform, np.stack([self.col[here] + 0.5, self.row[here] + 0.5], 1))
        return result


def table_rows(drawn: Drawn, census: Census, design: Design) -> list[list[Any]]:
    """The sample's table, under `COLUMNS`."""
    zone, kind = np.divmod(drawn.stratum, len(design.classes))
    places = drawn.places(census)
    return [
        [
            i + 1,
            design.maps[drawn.map[i]],
            int(drawn.row[i]),
            int(drawn.col[i]),
            float(places[i, 0]),
            float(places[i, 1]),
            design.zones[zone[i]],
            design.classes[kind[i]],
            "",
        ]
        for i in range(len(drawn))
    ]


def write_sample(folder: Path, drawn: Drawn, census: Census, design: Design) -> None:
    """Write design.json, sample.csv and sample.gpkg (points, for a GIS) into a folder."""
    rows = table_rows(drawn, census, design)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(rows)
    (folder / TABLE).write_text(text.getvalue(), encoding="utf-8")
    columns = [np.array([row[i] for row in rows], kind) for i, kind in enumerate("iOiiffOOO")]
    crs = census.maps[0].grid.crs
    pyogrio.raw.write(
        folder / LAYER,
        shapely.to_wkb(shapely.points(drawn.places(census))),
        columns,
        COLUMNS,
        layer="sample",
        driver="GPKG",
        geometry_type="Point",
        crs=crs.to_wkt() if crs else None,
        encoding="UTF-8",
    )
    design.write(folder / DESIGN)


def read_judgements(path: Path, drawn: Drawn, design: Design) -> Ints:
    """The reference class of each drawn point, -1 = not judged (yet).

    Args:
        path: ``sample.csv`` or ``sample.gpkg`` with the column ``reference`` filled: a class's name or its index.
        drawn: what the design drew.
        design: the design.

    Raises:
        ValueError: points were moved, added, removed or left out by choice, or a reference is no class.
    """
    records = _records(path)
    reference = np.full(len(drawn), -1, np.int64)
    names = {name.casefold(): index for index, name in enumerate(design.classes)}
    seen: set[int] = set()
    for record in records:
        number = _whole(path, record, "id")
        if not 1 <= number <= len(drawn):
            raise ValueError(
                f"{path}: point {number} was not drawn (the design has {len(drawn)}); added points are no sample"
            )
        if number in seen:
            raise ValueError(f"{path}: point {number} occurs twice; every point counts once")
        seen.add(number)
        i = number - 1
        place = (str(record["map"]), _whole(path, record, "row"), _whole(path, record, "col"))
        own = (design.maps[drawn.map[i]], int(drawn.row[i]), int(drawn.col[i]))
        if place != own:
            raise ValueError(
                f"{path}: point {number} lies at {place[0]}, row {place[1]}, column {place[2]}; it was drawn at "
                f"{own[0]}, row {own[1]}, column {own[2]}: a moved point is no random one, put it back"
            )
        text = str(record["reference"] if record["reference"] is not None else "").strip()
        if text.casefold() in UNJUDGED:
            continue
        text = text.removesuffix(".0")
        found = names.get(text.casefold(), int(text) if text.isdigit() else len(names))
        if found >= len(names):
            raise ValueError(f"{path}: point {number}: reference '{text}' is no class; use {', '.join(design.classes)}")
        reference[i] = found
    missing = set(range(1, len(drawn) + 1)) - seen
    if missing:
        raise ValueError(
            f"{path}: point {min(missing)} and {len(missing) - 1} more were removed; all {len(drawn)} must be there"
        )
    _check_order(path, reference >= 0, drawn)
    return reference


def _check_order(path: Path, judged: NDArray[np.bool_], drawn: Drawn) -> None:
    """The judged points of a stratum must be its first ones: leaving some out would be a choice, not chance."""
    for stratum in np.unique(drawn.stratum):
        here = np.flatnonzero(drawn.stratum == stratum)
        skipped = here[: int(np.flatnonzero(judged[here]).max(initial=-1)) + 1]
        left_out = skipped[~judged[skipped]]
        if len(left_out):
            raise ValueError(
                f"{path}: point {left_out[0] + 1} has no reference, but later ones of its stratum do; judge them in "
                "their order (stopping early is fine, leaving out is not: what is hard to judge is no random part)"
            )


def _records(path: Path) -> list[dict[str, Any]]:
    """Rows of a sample's file as mappings."""
    if not path.is_file():
        raise FileNotFoundError(f"--sample {path} does not exist")
    try:
        if path.suffix.lower() == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                head = file.readline()
                file.seek(0)
                records = list(csv.DictReader(file, delimiter=";" if head.count(";") > head.count(",") else ","))
        else:
            require_shapes(path)
            meta, _, _, fields = pyogrio.raw.read(path, read_geometry=False)
            records = [dict(zip(meta["fields"], row, strict=True)) for row in zip(*fields, strict=True)]
    except (
        OSError,
        UnicodeDecodeError,
        csv.Error,
        pyogrio.errors.DataSourceError,
        pyogrio.errors.DataLayerError,
    ) as error:
        raise ValueError(f"{path}: cannot be read as a sample: {' '.join(str(error).split())}") from error
    needed = {"id", "map", "row", "col", "reference"}
    if not records or not needed <= set(records[0]):
        lacking = ", ".join(sorted(needed - set(records[0] if records else ())))
        raise ValueError(f"{path}: has no points, or lacks the column(s) {lacking}; a sample is drawn by this command")
    return records


def _whole(path: Path, record: dict[str, Any], name: str) -> int:
    try:
        value = float(record[name])
        if value != int(value):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: '{record[name]}' is no {name} of a point, which is a whole number") from error
    return int(value)
