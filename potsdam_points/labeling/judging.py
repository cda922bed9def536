"""Judging a drawn sample in the page: its points one after the other, each answer on the disk before the next is asked.

The sample is that of an area estimate (``sample.csv`` beside its ``design.json``). Its order must be kept, so nothing
can be skipped; and nobody who judges sees the map, since an answer that follows the map proves nothing.
"""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from common.files import write_text
from common.images.gdal import open_raster
from common.images.grids import apply
from common.labels import Color
from potsdam_points.labeling.session import Copies, picture_states, whole
from potsdam_points.labeling.store import Point
from potsdam_points.labeling.tiles import TileSource

COLUMNS = ("id", "map", "x", "y", "reference")
DESIGN = "design.json"


def classes_of(sample: Path) -> list[str]:
    """The classes that a sample was drawn for, from the design beside it.

    Raises:
        FileNotFoundError, ValueError: there is no sample, or no design.
    """
    if not sample.is_file():
        raise FileNotFoundError(f"--sample {sample} does not exist; permeability/estimate.py draws one")
    path = sample.with_name(DESIGN)
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["classes"]
        return [str(name) for name in names]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: cannot be read as the design of {sample} ({error}); draw the sample anew") from error


class Sample:
    """The table of a sample; every answer is written before it is acknowledged, all other columns stay.

    Args:
        path: ``sample.csv``.
        classes: names by index.
        sources: pictures by id: that of the map ``S_mask.tif`` is S; a single picture holds all maps.

    Raises:
        ValueError: it is no sample, or a point lies on none of the pictures.
    """

    def __init__(self, path: Path, classes: Sequence[str], sources: Mapping[str, TileSource]) -> None:
        self.path, self.classes = path, list(classes)
        self._lock = threading.Lock()
        self._read()
        self._on_disk = self._fingerprint()
        grids = {name: _grid(source.path) for name, source in sources.items()}
        self.points = [self._place(row, sources, grids) for row in self._rows]

    def _read(self) -> None:
        text = self.path.read_bytes().decode("utf-8-sig")
        self._delimiter = ";" if text.partition("\n")[0].count(";") > text.partition("\n")[0].count(",") else ","
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=self._delimiter)
        self._rows = list(reader)
        self._columns = list(reader.fieldnames or [])
        if missing := [name for name in COLUMNS if name not in self._columns]:
            raise ValueError(f"{self.path}: column {', '.join(missing)} is missing; it is no sample of an estimate")
        if not self._rows or any(None in row or None in row.values() for row in self._rows):
            raise ValueError(f"{self.path}: has no points, or a line of another length; draw the sample anew")

    def _place(self, row: Mapping[str, str], sources: Mapping[str, TileSource], grids: Mapping[str, Affine]) -> Point:
        stem = Path(row["map"]).stem.removesuffix("_mask")
        name = stem if stem in sources else next(iter(sources))
        if name != stem and len(sources) > 1:
            raise ValueError(f"{self.path}: the map {row['map']} needs its picture {stem}; name that too")
        try:
            x, y = apply(~grids[name], np.array([[float(row["x"]), float(row["y"])]]))[0].tolist()
            label = self._label(row["reference"])
        except ValueError as error:
            raise ValueError(f"{self.path}: point {row['id']}: {error}") from error
        if not (0 <= x < sources[name].width and 0 <= y < sources[name].height):
            raise ValueError(
                f"{self.path}: point {row['id']} at {row['x']}, {row['y']} lies outside of {sources[name].path}; "
                "open the picture that the map was made from"
            )
        return Point(name, int(x), int(y), label)

    def _label(self, text: str) -> int:
        plain = text.strip().casefold()
        if plain in ("", "null", "none", "nan"):
            return -1
        known = {str(i): i for i in range(len(self.classes))} | {n.casefold(): i for i, n in enumerate(self.classes)}
        if plain.removesuffix(".0") not in known and plain not in known:
            raise ValueError(f"reference '{text}' is no class; use {', '.join(self.classes)}")
        return known[plain] if plain in known else known[plain.removesuffix(".0")]

    @property
    def next(self) -> int:
        """Number of the first point without an answer; their count if all have one."""
        return next((i for i, point in enumerate(self.points) if point.label < 0), len(self.points))

    def of(self, image: str) -> dict[int, Point]:
        """The judged points of a picture by number."""
        return {i: point for i, point in enumerate(self.points) if point.image == image and point.label >= 0}

    def counts(self) -> list[int]:
        """Answers of each class."""
        return [sum(point.label == index for point in self.points) for index in range(len(self.classes))]

    def judge(self, number: int, label: int) -> None:
        """Give the next point its class, or (-1) take back the last answer.

        Raises:
            ValueError: it is another point's turn, or there is no such class.
            OSError: it cannot be saved; then nothing changed.
        """
        with self._lock:
            turn = self.next if label >= 0 else self.next - 1
            if not -1 <= label < len(self.classes):
                raise ValueError(f"class {label} is none of {', '.join(self.classes)}")
            if number != turn or not 0 <= number < len(self.points):
                raise ValueError(f"point {number + 1} is not to be judged now; they are judged in their order")
            if self._fingerprint() != self._on_disk:
                raise OSError(f"{self.path} was changed by another program; restart to read it anew")
            answer = self.classes[label] if label >= 0 else ""
            rows = [*self._rows]
            rows[number] = {**rows[number], "reference": answer}
            text = io.StringIO()
            table = csv.DictWriter(text, self._columns, delimiter=self._delimiter, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
            write_text(self.path, text.getvalue())
            old = self.points[number]
            self._rows, self._on_disk = rows, self._fingerprint()
            self.points[number] = Point(old.image, old.x, old.y, label)

    def _fingerprint(self) -> tuple[int, int]:
        info = self.path.stat()
        return info.st_mtime_ns, info.st_size


def _grid(path: Path) -> Affine:
    """From pixels to the coordinates of a sample's points."""
    with open_raster(path) as dataset:
        grid: Affine = dataset.transform
    return grid


class Judging:
    """What the server knows of a sample that is judged; asked like a `Session`.

    Args:
        sources: pictures by id.
        sample: the points.
        palette: color of each class.
    """

    def __init__(self, sources: Mapping[str, TileSource], sample: Sample, palette: Sequence[Color]) -> None:
        self.sources, self.store = dict(sources), sample
        self.palette = [list(color) for color in palette]
        self._copies = Copies(self.sources.values())

    def close(self) -> None:
        """End what goes on in the background."""
        self._copies.close()

    def state(self) -> dict[str, Any]:
        """All that the page shows besides tiles and points."""
        named = zip(self.store.classes, self.palette, self.store.counts(), strict=True)
        return {
            "images": picture_states(self.sources),
            "classes": [{"name": name, "color": color, "points": count} for name, color, count in named],
            "file": str(self.store.path),
            "judge": self._turn(),
            "version": 0,
            "busy": False,
            "progress": 0.0,
            "message": "",
            "finest": -1,
        }

    def _turn(self) -> dict[str, Any]:
        """Which point is next: its place, how many are done, how many there are."""
        number, total = self.store.next, len(self.store.points)
        turn: dict[str, Any] = {"number": number, "total": total}
        if number < total:
            point = self.store.points[number]
            turn |= {"image": point.image, "x": point.x, "y": point.y}
        return turn

    def tile(self, layer: str, image: str, level: int, x: int, y: int) -> NDArray[np.uint8] | None:
        """A tile of the picture; there are no other layers."""
        if layer != "picture":
            raise ValueError(f"no layer {layer!r}: who judges does not see the map")
        return self.sources[image].tile(level, x, y)

    def click(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Save an answer (``do`` = judge, ``number, label``), or take the last one back (``do`` = take_back).

        Raises:
            KeyError, ValueError, TypeError: it makes no sense.
        """
        number = whole(content, "number")
        match content["do"]:
            case "judge":
                self.store.judge(number, whole(content, "label"))
            case "take_back":
                self.store.judge(number, -1)
            case other:
                raise ValueError(f"cannot do {other!r} with a drawn sample: its points stay where they are")
        return {"number": number, "counts": self.store.counts(), "judge": self._turn()}

    def learn(self, seconds: float) -> dict[str, Any]:
        """Refused."""
        raise ValueError("nothing is learned from a sample: it measures the map")

    def suggest(self, image: str, view: tuple[int, int, int, int]) -> list[dict[str, int]]:
        """Refused."""
        raise ValueError("a sample's points are drawn by chance, none is suggested")
