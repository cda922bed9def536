"""One session of labeling: pictures, points, network, and what the page may ask of them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.command.cli import say
from common.labels import Color
from potsdam_points.labeling.learner import FINEST, Learner
from potsdam_points.labeling.store import Point, PointStore
from potsdam_points.labeling.suggest import PATCH, Strategy, choose, uncertainty, values
from potsdam_points.labeling.tiles import DIRECT, TILE, TileSource

SUGGESTED = 10
"""Points in one answer."""
SAMPLED = 12
"""Tiles of the picture, besides the view, among which suggestions are sought."""
VIEW = 4
"""Side of the part of the view, in tiles, that is looked at."""
APART = 32
"""Pixels between two suggestions, about."""
STEP = 2
"""Every n-th pixel of a tile is a candidate."""


class Copies:
    """Small copies of large pictures without overviews, made in the background one after the other."""

    def __init__(self, sources: Iterable[TileSource]) -> None:
        self._sources, self._stop = list(sources), threading.Event()
        self._thread = threading.Thread(target=self._make, name="overviews")
        self._thread.start()

    def close(self) -> None:
        """Stop; what is half made is not kept."""
        self._stop.set()
        self._thread.join()

    def _make(self) -> None:
        for source in self._sources:
            if source.needs_copy:
                try:
                    source.make_copy(self._stop)
                except (OSError, ValueError) as error:
                    say(f"{source.path}: no overviews: {' '.join(str(error).split())}; zoom in to see it")


def picture_states(sources: Mapping[str, TileSource]) -> list[dict[str, Any]]:
    """What the page knows of each picture."""
    return [
        {
            "id": name,
            "width": one.width,
            "height": one.height,
            "top": one.top,
            "coarse": not one.needs_copy,
            "direct": DIRECT,
        }
        for name, one in sources.items()
    ]


class Session:
    """What the server knows.

    Args:
        sources: pictures by id.
        store: points.
        learner: network.
        palette: color of each class.
    """

    def __init__(
        self, sources: Mapping[str, TileSource], store: PointStore, learner: Learner, palette: Sequence[Color]
    ) -> None:
        self.sources, self.store, self.learner = dict(sources), store, learner
        self.palette = np.array(palette, np.uint8)
        self._generator = np.random.default_rng()
        self._copies = Copies(self.sources.values())

    def close(self) -> None:
        """End what goes on in the background."""
        self._copies.close()
        self.learner.close()

    def state(self) -> dict[str, Any]:
        """All that the page shows besides tiles and points."""
        return {
            "images": picture_states(self.sources),
            "classes": [
                {"name": name, "color": color.tolist(), "points": count}
                for name, color, count in zip(self.store.classes, self.palette, self.store.counts(), strict=True)
            ],
            "file": str(self.store.path),
            "version": self.learner.version,
            "busy": self.learner.busy,
            "progress": self.learner.progress,
            "message": self.learner.message,
            "finest": FINEST,
        }

    def tile(self, layer: str, image: str, level: int, x: int, y: int) -> NDArray[np.uint8] | None:
        """A tile of a layer: ``picture`` (h, w, 3), ``map`` or ``doubt`` (h, w, 4).

        Raises:
            KeyError, ValueError: there is no such picture or layer.
        """
        if layer == "picture":
            return self.sources[image].tile(level, x, y)
        if layer not in ("map", "doubt"):
            raise ValueError(f"no layer {layer!r}")
        found = self.learner.tile(image, level, x, y)
        if found is None:
            return None
        if layer == "map":
            colors = self.palette[found.argmax(axis=0)]
            return np.concatenate([colors, np.full((*colors.shape[:2], 1), 255, np.uint8)], axis=2)
        doubt = (255 * uncertainty(found)).astype(np.uint8)
        return np.stack([np.full_like(doubt, 255), np.zeros_like(doubt), np.full_like(doubt, 255), doubt], axis=2)

    def click(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Do one change and acknowledge it: it is on the disk then.

        Args:
            content: ``do`` (add, move, label or remove) and what that needs: ``image, x, y, label, number``.

        Raises:
            KeyError, ValueError, TypeError: it makes no sense.
        """
        match content["do"]:
            case "add":
                point = Point(str(content["image"]), *(whole(content, name) for name in ("x", "y", "label")))
                number = self.store.add(point)
            case "move":
                number = whole(content, "number")
                self.store.change(number, x=whole(content, "x"), y=whole(content, "y"))
            case "label":
                number = whole(content, "number")
                self.store.change(number, label=whole(content, "label"))
            case "remove":
                number = whole(content, "number")
                self.store.remove(number)
            case other:
                raise ValueError(f"cannot do {other!r}")
        return {"number": number, "counts": self.store.counts()}

    def learn(self, seconds: float) -> dict[str, Any]:
        """Begin a training of some seconds.

        Raises:
            ValueError: fewer than two classes have points, or the time makes no sense.
        """
        if not 0 < seconds <= 600:
            raise ValueError(f"{seconds} seconds cannot be trained; use up to 600")
        if np.count_nonzero(self.store.counts()) < 2:
            raise ValueError("points of at least two classes are needed; click some more")
        return {"started": self.learner.learn(seconds)}

    def suggest(self, image: str, view: tuple[int, int, int, int]) -> list[dict[str, int]]:
        """Points to click next, the most valuable first: in the view and elsewhere in the picture.

        Args:
            image: the picture's id.
            view: row, column, height, width that the page shows, pixels of the picture.
        """
        source, parts = self.sources[image], []
        known = np.array([(one.y, one.x) for one in self.store.of(image).values()], np.int64).reshape(-1, 2)
        for row, col in self._places(source, view):
            found = self.learner.probabilities(image, row, col, TILE)
            strategy: Strategy = "random" if found is None else "patch"
            if found is None:
                shape = min(TILE, source.height - row), min(TILE, source.width - col)
                found = np.zeros((len(self.palette), *shape))
            found = found[:, ::STEP, ::STEP]
            worth = values(found, self.store.counts(), strategy, PATCH // STEP)
            points = choose(worth, found, (known - (row, col)) // STEP, 3, self._generator, APART / STEP)
            parts += [(float(worth[r, c]), row + int(r) * STEP, col + int(c) * STEP) for r, c in points]
        best: list[tuple[int, int]] = []
        for _, row, col in sorted(parts, reverse=True):  # neighbors come from tiles that overlap
            if len(best) < SUGGESTED and all(abs(row - r) + abs(col - c) > APART for r, c in best):
                best.append((row, col))
        return [{"x": col, "y": row} for row, col in best]

    def _places(self, source: TileSource, view: tuple[int, int, int, int]) -> list[tuple[int, int]]:
        """First rows and columns of the tiles to look at."""
        row, col, height, width = view
        seen = [
            (max(0, row) + r * TILE, max(0, col) + c * TILE)
            for r in range(min(VIEW, -(-height // TILE)))
            for c in range(min(VIEW, -(-width // TILE)))
        ]
        rows = self._generator.integers(0, max(1, source.height - TILE + 1), SAMPLED)
        cols = self._generator.integers(0, max(1, source.width - TILE + 1), SAMPLED)
        elsewhere = list(zip(rows.tolist(), cols.tolist(), strict=True))
        return [(r, c) for r, c in (*seen, *elsewhere) if r < source.height and c < source.width]


def whole(content: Mapping[str, Any], name: str) -> int:
    """A whole number of a request.

    Raises:
        KeyError, ValueError: it is missing, or something else.
    """
    value = content[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} {value!r} is no whole number")
    return value
