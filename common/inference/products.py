"""What inference leaves behind for an input: mask, probabilities, overlay, polygons, and their provenance."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from common.command.cli import VERSION
from common.command.progress import Work
from common.files import file_hash
from common.images.display import boundary_width, overlay, stretch
from common.images.write import (
    Layout,
    Place,
    ProbabilityType,
    Rows,
    mask_suffix,
    write_bands,
    write_mask,
    write_probability,
)
from common.networks.checkpoint import ModelCard
from common.vectors.formats import SIDECARS, VectorFormat

BACKGROUND = "background"
FULL_OVERLAY, LARGEST_OVERLAY = 4096**2, 2048
"""Pixels up to which an overlay is as large as its raster; that of a larger one is thinned out to this side."""
OVERLAY_ROWS = 512
"""Of the raster, painted at once, about."""
SAFE_STEM = "result"
"""What files are called while they are made: writers read a meaning into ``!``, ``;`` and the like."""

FULL = 65535
"""A confidence of 1 where that is a whole number."""

Refine = Callable[[NDArray[Any], Affine, CRS | None], NDArray[np.object_]]
"""Reshapes the outlines of a raster with this grid and coordinate system; gives as many."""


class Prediction(Rows, Protocol):
    """A predicted image: the layers ``mask`` (255 = no data), ``probability`` and ``confidence``.

    Confidence is the probability of the most probable class, of two classes that of the second: a float, or of `FULL`.
    """

    @property
    def place(self) -> Place:
        """Georeference."""

    def picture(self, step: int, first: int, last: int) -> NDArray[np.uint8]:
        """The image as 8-bit RGB, (3, h, w): every n-th pixel of every n-th row from ``first`` on, a multiple of n."""

    @property
    def streamed(self) -> bool:
        """Whether it is large or placed: GeoTIFFs get overviews, overlays of more than `FULL_OVERLAY` are thinned."""

    def complete(self) -> None:
        """Predict what is not there yet; meanwhile other threads `read` what is, and wait for the rest."""

    def stop(self, error: BaseException) -> None:
        """End the prediction, and all `read` that wait, with an error."""


class Complete:
    """A prediction all of which is there."""

    def complete(self) -> None:
        """Nothing is left to predict."""

    def stop(self, error: BaseException) -> None:
        """Nobody waits."""


@dataclass(frozen=True)
class Extra:
    """A task's own product, made of the input and its mask."""

    ending: str
    """Of its name, such as ``_figure.png``."""
    write: Callable[[Path, Path, Path], None]
    """Called with the input, the mask file and the file to write."""


@dataclass(frozen=True)
class Products:
    """What to write, and how.

    Raises:
        ValueError: an area or a tolerance is negative.
    """

    vector: Literal["none"] | VectorFormat = "none"
    min_area: float = 0.0
    simplify: float = 0.0
    cog: bool = False
    prob: bool = True
    prob_type: ProbabilityType = "float32"
    overlay: bool = True
    refine: Refine | None = None
    """A task's own treatment of the polygons, after small ones were left out."""
    extra: Extra | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    """Provenance."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for flag, value in (("--min-area", self.min_area), ("--simplify", self.simplify)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{flag} {value:g} must be 0 or more")

    def names(self, stem: str, placed: bool) -> list[str]:
        """Files that an input's products are written to; ``placed`` = it is georeferenced."""
        endings = [f"_mask{'.tif' if placed else '.png'}", *["_prob.tif"] * self.prob, *["_overlay.png"] * self.overlay]
        if self.vector != "none":
            endings += [f".{ending}" for ending in (self.vector, *SIDECARS.get(self.vector, ()))]
        if self.extra is not None and self.extra.ending not in endings:
            endings.append(self.extra.ending)
        return [stem + ending for ending in endings]


# What results say of themselves, and where they go


def provenance(checkpoints: Sequence[Path], threshold: float | None) -> dict[str, str]:
    """Tags that say how a result came about: checkpoint hashes, threshold, version, date."""
    tags = {
        "checkpoint_sha256": ",".join(file_hash(path) for path in checkpoints),
        "version": VERSION,
        "date": time.strftime("%Y-%m-%d"),
    }
    return tags if threshold is None else {**tags, "threshold": f"{threshold:.6g}"}


def check_disk(folder: Path, needed: int) -> None:
    """Compare ``needed`` bytes with the free space where ``folder`` is (to be), and see that one may write there.

    Raises:
        ValueError: too little is free, naming both figures; or nothing can be written there.
    """
    free = free_bytes(folder)
    if needed > free:
        raise ValueError(
            f"--output-dir {folder}: about {needed / 1e9:.3g} GB needed, {free / 1e9:.3g} GB free; "
            "free some space or choose another disk"
        )


def free_bytes(folder: Path) -> int:
    """Free space where ``folder`` is (to be).

    Raises:
        ValueError: nothing can be written there.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(parent))
    if not existing.exists():
        raise ValueError(f"--output-dir {folder}: {existing} is a link to nothing; choose another folder")
    if not existing.is_dir():
        raise ValueError(f"--output-dir {folder}: {existing} is a file, not a folder; choose another")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"--output-dir {folder}: {existing} may not be written to; choose another folder")
    return shutil.disk_usage(existing).free


# Files


def write_products(
    rows: Prediction, source: Path, folder: Path, stem: str, card: ModelCard, products: Products
) -> None:
    """Write all products of an input, while it is predicted.

    Args:
        rows: what is predicted.
        source: the input, for a task's own product.
        folder: where the files go.
        stem: of their names.
        card: classes and palette.
        products: what to write.
    """
    place, tags = rows.place, products.tags
    layout = Layout(overviews=rows.streamed, cog=products.cog and rows.streamed)
    mask = folder / f"{SAFE_STEM}_mask{mask_suffix(place)}"
    writers = [partial(write_mask, mask, rows, place, palette=card.palette, tags=tags, layout=layout)]
    if products.overlay:
        writers.append(partial(_write_overlay, folder / f"{SAFE_STEM}_overlay.png", rows, card, tags))
    if products.prob:
        path, kind = folder / f"{SAFE_STEM}_prob.tif", products.prob_type
        writers.append(partial(write_probability, path, rows, place, tags=tags, layout=layout, kind=kind))
    if products.vector != "none":
        path = folder / f"{SAFE_STEM}.{products.vector}"
        writers.append(partial(write_vectors, path, rows, stem, card, products))
    _follow(rows, writers, stem)
    if products.extra is not None:
        products.extra.write(source, mask, folder / f"{SAFE_STEM}{products.extra.ending}")
    give_names(folder, stem)


def _follow(rows: Prediction, writers: Sequence[Callable[[], None]], stem: str) -> None:
    """Let writers take rows as they are finished, each in a thread; the first error ends all."""

    def run(writer: Callable[[], None]) -> None:
        try:
            writer()
        except BaseException as error:
            rows.stop(error)
            raise

    with ThreadPoolExecutor(len(writers)) as threads:
        running = [threads.submit(run, writer) for writer in writers]
        try:
            rows.complete()
            with Work(f"files of {stem}"):
                for each in running:
                    each.result()
        except BaseException as error:
            rows.stop(error)
            raise


def give_names(folder: Path, stem: str) -> None:
    """Call files and folders that begin with `SAFE_STEM` by the stem of an input."""
    for path in list(folder.glob(f"{SAFE_STEM}*")):
        path.rename(folder / f"{stem}{path.name.removeprefix(SAFE_STEM)}")


def polygon_classes(card: ModelCard) -> list[int]:
    """Classes that become polygons: all but one called background."""
    return [index for index, name in enumerate(card.classes) if name != BACKGROUND]


def write_vectors(path: Path, rows: Prediction, layer: str, card: ModelCard, products: Products) -> None:
    """Outline the classes of an image and write the polygons.

    A picture without georeference gives polygons in its pixels' columns and rows, with areas in pixels.

    Args:
        path: file to write; its suffix says the format.
        rows: what was predicted.
        layer: name of the layer.
        card: class names.
        products: smallest area, simplification, provenance.
    """
    import pyogrio  # noqa: F401 - with pandas; these take a second or two, meanwhile rows are predicted

    from common.vectors.polygonize import polygonize
    from common.vectors.write import select, write_polygons

    def read(first: int, last: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        return rows.read("mask", first, last)[0], rows.read("confidence", first, last)[0]

    crs, transform = rows.place
    polygons = polygonize(read, rows.size, polygon_classes(card), transform or Affine.identity())
    probability = polygons.mean_prob / (FULL if read(0, 0)[1].dtype.kind == "u" else 1)
    if len(card.classes) == 2:
        probability = np.where(polygons.class_val == 1, probability, 1 - probability)
    polygons = replace(polygons, mean_prob=probability)
    polygons = select(polygons, crs, min_area=products.min_area, simplify=products.simplify)
    if products.refine is not None:
        outlines = products.refine(polygons.geometry, transform or Affine.identity(), crs)
        polygons = replace(polygons, geometry=outlines)
    write_polygons(path, polygons, card.classes, crs, products.tags, layer=layer)


def overlay_step(size: tuple[int, int]) -> int:
    """Every how many pixels a streamed raster's overlay shows one."""
    return -(-max(size) // LARGEST_OVERLAY) if math.prod(size) > FULL_OVERLAY else 1


def _write_overlay(path: Path, rows: Prediction, card: ModelCard, tags: Mapping[str, str]) -> None:
    height, width = rows.size
    step = overlay_step(rows.size) if rows.streamed else 1
    size = (-(-height // step), -(-width // step))
    boundary = boundary_width(size)
    count, around = max(1, OVERLAY_ROWS // step) * step, boundary * step

    def painted(first: int) -> NDArray[np.uint8]:
        above, below = max(0, first - around), min(height, first + count + around)
        mask = rows.read("mask", above, below)[0, ::step, ::step]
        picture = stretch(rows.picture(step, above, below))
        inner = slice((first - above) // step, (first - above + count) // step)
        return overlay(picture, mask, card.palette, boundary)[inner]

    write_bands(path, size, map(painted, range(0, height, count)), tags)
