"""Points on disk: every change is in the file before it is acknowledged."""

from __future__ import annotations

import csv
import io
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.files import write_text
from potsdam_points.points import HEADER, read_points


@dataclass(frozen=True)
class Point:
    """One labeled pixel."""

    image: str
    """The image's id in the table."""
    x: int
    y: int
    label: int


class PointStore:
    """The table ``id,x,y,class`` that ``train.py --points-file`` reads, kept in memory and rewritten at every change.

    A change is written under a temporary name, flushed and renamed before the method returns, so that whoever was told
    that a point is saved finds it again, whatever happens to the process. Rows of images that are not open stay.

    Args:
        path: the table; made at the first change.
        classes: names by index.
        sizes: (height, width) of each open image by id.

    Raises:
        ValueError: the table cannot be read, or has a point outside its image or of another class.
    """

    def __init__(self, path: Path, classes: Sequence[str], sizes: Mapping[str, tuple[int, int]]) -> None:
        self.path, self.classes, self.sizes = path, list(classes), dict(sizes)
        self._lock = threading.Lock()
        self._points: dict[int, Point] = dict(enumerate(self._read()))
        self._next = len(self._points)
        self._on_disk = self._fingerprint()

    def _read(self) -> list[Point]:
        if not self.path.exists():
            return []
        rows = [
            (row[3], name, row)
            for name, found in read_points(self.path, self.classes).items()
            for row in found.tolist()
        ]
        points = []
        for line, name, (x, y, label, _) in sorted(rows):
            points.append(Point(name, x, y, label))
            try:
                self._check(points[-1])
            except ValueError as error:
                raise ValueError(f"{self.path}, line {line}: {error}") from error
        return points

    def _check(self, point: Point) -> None:
        if not 0 <= point.label < len(self.classes):
            raise ValueError(f"class {point.label} is none of {', '.join(self.classes)}")
        if point.image in self.sizes:
            height, width = self.sizes[point.image]
            if not (0 <= point.x < width and 0 <= point.y < height):
                raise ValueError(
                    f"point {point.x}, {point.y} lies outside of {point.image} ({width} x {height} pixels)"
                )

    def of(self, image: str) -> dict[int, Point]:
        """Points of an image by number."""
        with self._lock:
            return {number: point for number, point in self._points.items() if point.image == image}

    def counts(self) -> list[int]:
        """Points of each class."""
        with self._lock:
            found = Counter(point.label for point in self._points.values())
        return [found[index] for index in range(len(self.classes))]

    def add(self, point: Point) -> int:
        """Save a new point and return its number.

        Raises:
            ValueError: it lies outside its image or its class is unknown.
            OSError: it could not be saved; then it is not in the store either.
        """
        if point.image not in self.sizes:
            raise ValueError(f"no image {point.image!r} is open")
        self._check(point)
        with self._lock:
            self._save({**self._points, self._next: point})
            self._next += 1
            return self._next - 1

    def change(self, number: int, *, x: int | None = None, y: int | None = None, label: int | None = None) -> Point:
        """Move a point or give it another class.

        Raises:
            KeyError: there is no such point (any more).
            ValueError, OSError: see `add`.
        """
        with self._lock:
            old = self._points[number]
            new = replace(
                old,
                x=old.x if x is None else x,
                y=old.y if y is None else y,
                label=old.label if label is None else label,
            )
            self._check(new)
            self._save({**self._points, number: new})
            return new

    def remove(self, number: int) -> Point:
        """Delete a point.

        Raises:
            KeyError: there is no such point (any more).
            OSError: see `add`.
        """
        with self._lock:
            point = self._points[number]
            self._save({key: value for key, value in self._points.items() if key != number})
            return point

    def _save(self, points: dict[int, Point]) -> None:
        """Write the table, then take it for what is known.

        Raises:
            OSError: it cannot be written, or somebody else changed it since.
        """
        if self._fingerprint() != self._on_disk:
            raise OSError(f"{self.path} was changed by another program; restart to read it anew")
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(HEADER)
        table.writerows([point.image, point.x, point.y, self.classes[point.label]] for point in points.values())
        write_text(self.path, text.getvalue())
        self._points, self._on_disk = points, self._fingerprint()

    def _fingerprint(self) -> tuple[int, int] | None:
        if not self.path.exists():
            return None
        info = self.path.stat()
        return info.st_mtime_ns, info.st_size
