"""What inference leaves behind for an input: mask, probabilities, overlay, polygons; from memory or from a spool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from PIL import Image
from rasterio.crs import CRS

from common.command.cli import say
from common.files import atomic_path
from common.images.display import overlay, stretch
from common.images.gdal import open_raster, read_bands
from common.images.ranges import Range, to_channels
from common.inference.geotiff import Frame, publish, write_mask_raster, write_probability_raster
from common.inference.spool import Spool
from common.networks.checkpoint import ModelCard
from common.vectors.polygonize import ReadRows, polygonize
from common.vectors.write import VectorFormat, select, write_polygons

BACKGROUND = "background"
FULL_OVERLAY, LARGEST_OVERLAY = 4096**2, 2048
"""Pixels up to which an overlay is as large as its raster; that of a larger one is thinned out to this side."""
ROWS = 128
"""Read at once for an overlay, about."""

Refine = Callable[[NDArray[Any], Affine, CRS | None], NDArray[np.object_]]
"""Reshapes the outlines of a raster with this grid and coordinate system; gives as many."""


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
    overlay: bool = True
    refine: Refine | None = None
    """A task's own treatment of the polygons, after small ones were left out."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Provenance."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for flag, value in (("--min-area", self.min_area), ("--simplify", self.simplify)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{flag} {value:g} must be 0 or more")


def polygon_classes(card: ModelCard) -> list[int]:
    """Classes that become polygons: all but one called background."""
    return [index for index, name in enumerate(card.classes) if name != BACKGROUND]


def targets(folder: Path, stem: str, products: Products, mask: str) -> list[Path]:
    """Files that an input's products are written to."""
    names = [f"{stem}_mask{mask}", *[f"{stem}_prob.tif"] * products.prob, *[f"{stem}_overlay.png"] * products.overlay]
    return [folder / name for name in (names if products.vector == "none" else [*names, f"{stem}.{products.vector}"])]


def protect_input(target: Path, source: Path) -> None:
    """Refuse to replace an input by an output.

    Raises:
        ValueError: both are one file.
    """
    if target.exists() and target.resolve() == source.resolve():
        raise ValueError(f"{source}: the result would replace it; choose another --output-dir")


def warn_of_range(path: Path, warning: str | None) -> None:
    """Say that values look as if they were read with the wrong range."""
    if warning:
        say(f"warning: {path}: {warning}")


def write_vectors(
    path: Path,
    read: ReadRows,
    size: tuple[int, int],
    card: ModelCard,
    products: Products,
    place: tuple[CRS | None, Affine | None],
    workshop: Path | None = None,
) -> None:
    """Outline the classes of a raster and write the polygons.

    A picture without georeference gives polygons in its pixels' columns and rows, with areas in pixels.

    Args:
        path: file to write; its suffix says the format.
        read: class indices and the probability of each pixel's class, by bands of rows.
        size: height and width.
        card: class names.
        products: smallest area, simplification, provenance.
        place: coordinate system and transform of the raster.
        workshop: folder in which the file is made; None = that of ``path``.
    """
    crs, transform = place
    polygons = polygonize(read, size, polygon_classes(card), transform or Affine.identity())
    polygons = select(polygons, crs, min_area=products.min_area, simplify=products.simplify)
    if products.refine is not None:
        outlines = products.refine(polygons.geometry, transform or Affine.identity(), crs)
        polygons = replace(polygons, geometry=outlines)
    write_polygons(path, polygons, card.classes, crs, products.tags, workshop)


def write_from_spool(
    spool: Spool, source: Path, folder: Path, stem: str, card: ModelCard, products: Products, value_range: Range | None
) -> None:
    """Make all products of a raster whose rows are all in the spool.

    They are made in the spool's folder, so what a killed run began goes when its successor removes the spool.

    Args:
        spool: complete.
        source: the raster.
        folder: where results go.
        stem: of their names.
        card: classes and palette.
        products: what to write.
        value_range: values that mean black and white, for the overlay.
    """
    frame = Frame.of(source, card.palette, products.tags)
    placed = frame.transform is not None
    write_mask_raster(spool, folder / f"{stem}_mask{'.tif' if placed else '.png'}", frame, cog=products.cog)
    if products.prob:
        write_probability_raster(spool, folder / f"{stem}_prob.tif", frame, cog=products.cog)
    if products.overlay:
        picture, mask = _thinned(spool, source, value_range)
        made = spool.folder / "overlay.png"
        write_picture(made, overlay(stretch(picture), mask, card.palette))
        publish(made, folder / f"{stem}_overlay.png")
    if products.vector != "none":

        def read(first: int, last: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
            return spool.read("mask", first, last)[0], spool.confidence(first, last)

        path, size = folder / f"{stem}.{products.vector}", (spool.height, spool.width)
        write_vectors(path, read, size, card, products, (frame.crs, frame.transform), spool.folder)


def _thinned(spool: Spool, source: Path, value_range: Range | None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Picture (3, h, w) and mask (h, w): every n-th pixel of every n-th row."""
    large = spool.height * spool.width > FULL_OVERLAY
    step = -(-max(spool.height, spool.width) // LARGEST_OVERLAY) if large else 1
    rows = max(1, ROWS // step) * step
    pictures, masks = [], []
    with open_raster(source) as dataset:
        for first in range(0, spool.height, rows):
            last = min(first + rows, spool.height)
            data, valid = read_bands(dataset, (first, last))
            data, valid = data[:3, ::step, ::step], valid[::step, ::step]
            pictures.append(np.round(to_channels(data, valid, 3, value_range) * 255).astype(np.uint8))
            masks.append(spool.read("mask", first, last)[0, ::step, ::step].copy())  # a view would keep all rows
    return np.concatenate(pictures, axis=1), np.concatenate(masks)


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write an RGB picture atomically; a PNG with little compression, which takes a quarter of the time."""
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, **{"compress_level": 1} if path.suffix.lower() == ".png" else {})
