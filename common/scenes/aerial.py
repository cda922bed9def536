"""Generated aerial scenes with known truth, in the layouts of the four aerial tasks.

The classes are those of ISPRS Potsdam: 0 impervious, 1 building, 2 low vegetation, 3 tree, 4 car, 5 clutter; then 6
water and 7 bare soil, which count as clutter and as impervious there; and 255 for ground without a class. The scenes
come from ``aerial_world``; here are single pictures and whole data sets. A data set appears when it is complete: it is
written under a temporary name beside its root, then renamed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import rasterio
import tifffile
from numpy.typing import NDArray

from common.files import atomic_folder
from common.scenes.aerial_world import BLOCK, AerialWorld, Image, Labels
from common.scenes.canvas import BUILDING, CAR, CLUTTER, IMPERVIOUS, LOW_VEGETATION, SOIL, TREE, UNDEFINED, WATER

__all__ = [
    "CLASSES",
    "LAND",
    "PALETTE",
    "PARTS",
    "AerialWorld",
    "render_scene",
    "write_footprints",
    "write_permeability",
    "write_potsdam",
    "write_rooftops",
]

CLASSES = ("impervious", "building", "low vegetation", "tree", "car", "clutter")
"""Names by class index, of ISPRS Potsdam."""
LAND = (*CLASSES, "water", "soil")
"""Names by class index, of the generated world."""
PALETTE: dict[int, tuple[int, int, int]] = {
    IMPERVIOUS: (255, 255, 255),
    BUILDING: (0, 0, 255),
    LOW_VEGETATION: (0, 255, 255),
    TREE: (0, 255, 0),
    CAR: (255, 255, 0),
    CLUTTER: (255, 0, 0),
    UNDEFINED: (0, 0, 0),
}
"""RGB of the classes in ISPRS Potsdam."""
PARTS = ("train", "val", "test")
APART, COLUMNS = 300.0, 16
"""The pictures of a data set lie at least so many metres apart in the town, and so many in a row."""


def render_scene(
    seed: int, height: int, width: int, gsd: float = 0.2, *, undefined: bool = True, varied: bool = False
) -> tuple[Image, Labels]:
    """Render one picture of a town of its own.

    Args:
        seed: the same seed gives the same picture.
        height: pixels.
        width: pixels.
        gsd: ground sampling distance, metres per pixel.
        undefined: leave some ground without a class, often a strip at the edge; False gives the truth everywhere.
        varied: the town may be one of any region (``Town``).

    Returns:
        image (H, W, 3) uint8 and classes (H, W) uint8.

    Raises:
        ValueError: a size is not positive, or ``gsd`` is out of range.
    """
    if min(height, width) < 1:
        raise ValueError(f"scene of {height} x {width} pixels: both must be positive")
    world, rng = AerialWorld(seed, gsd, varied=varied), random.Random(f"scene/{seed}")
    row, col = (int(rng.uniform(-1000, 1000) / gsd) for _ in range(2))
    return _view(world, row, col, height, width, rng if undefined else None)


def _view(
    world: AerialWorld, row: int, col: int, height: int, width: int, rng: random.Random | None
) -> tuple[Image, Labels]:
    """A window of a world with its classes; with ``rng`` some ground, often a strip at the edge, has none."""
    if max(height, width) > BLOCK:
        image, classes = world.render(row, col, height, width, undefined=rng is not None)
    else:
        image, full, mapped = world.paint(row, col, height, width)
        classes = full if rng is None else mapped
    if rng is not None and rng.random() < 0.25:
        breadth = rng.uniform(0.01, 0.05)
        edge = np.rot90(classes, rng.randrange(4))  # a view: one of the four edges becomes the upper one
        edge[: max(1, round(breadth * edge.shape[0]))] = UNDEFINED
    return image, classes


def _survey(seed: int, count: int, size: int, gsd: float, *, undefined: bool = False) -> Iterator[tuple[Image, Labels]]:
    """Pictures of one town on one day, as a real data set has them; no two show the same ground."""
    world, step = AerialWorld(seed, gsd), max(2 * size, round(APART / gsd))
    for number in range(count):
        rng = random.Random(f"{seed}/{number}") if undefined else None
        yield _view(world, number // COLUMNS * step, number % COLUMNS * step, size, size, rng)


def _check(counts: Sequence[int], size: int) -> None:
    """Refuse numbers of which no data set can be made."""
    if min(counts) < 0 or sum(counts) < 1 or size < 16:
        raise ValueError(f"{sum(counts)} scenes of {size} pixels: a data set needs one or more of at least 16 x 16")


def write_potsdam(root: Path, count: int, seed: int = 0, size: int = 300, gsd: float = 0.2) -> None:
    """Write patches as ISPRS Potsdam's: ``Images/Image_{id}.tif`` and ``Labels/Label_{id}.tif`` in palette colors.

    Args:
        root: folder to create; it may exist if it is empty.
        count: number of patches; the ids are 0 to ``count`` - 1.
        seed: the same seed gives the same files.
        size: side of a patch, pixels.
        gsd: metres per pixel.

    Raises:
        ValueError: ``root`` holds something already, or a number makes no sense.
    """
    _check([count], size)
    colors = np.zeros((256, 3), dtype=np.uint8)
    for label, color in PALETTE.items():
        colors[label] = color
    with atomic_folder(root) as folder:
        for name in ("Images", "Labels"):
            (folder / name).mkdir()
        for number, (image, classes) in enumerate(_survey(seed, count, size, gsd, undefined=True)):
            tifffile.imwrite(folder / "Images" / f"Image_{number}.tif", image, photometric="rgb")
            tifffile.imwrite(folder / "Labels" / f"Label_{number}.tif", colors[potsdam(classes)], photometric="rgb")


def write_rooftops(root: Path, count: int, seed: int = 0, size: int = 256, gsd: float = 0.15) -> None:
    """Write pairs ``images/images/X.tif`` and ``label/label/X_label.tif``, gray with roofs 255 and all else 0.

    Arguments and errors are those of ``write_potsdam``.
    """
    _check([count], size)
    with atomic_folder(root) as folder:
        images, labels = folder / "images" / "images", folder / "label" / "label"
        for path in (images, labels):
            path.mkdir(parents=True)
        for number, (image, classes) in enumerate(_survey(seed, count, size, gsd)):
            tifffile.imwrite(images / f"scene_{number:03d}.tif", image, photometric="rgb")
            roof = np.where(classes == BUILDING, 255, 0).astype(np.uint8)
            tifffile.imwrite(labels / f"scene_{number:03d}_label.tif", roof, photometric="minisblack")


def _write_geotiff(
    path: Path, data: NDArray[np.uint8], corner: tuple[float, float], gsd: float, epsg: int, nodata: int | None = None
) -> None:
    """Write (H, W) or (H, W, 3) as a tiled GeoTIFF whose upper left corner lies at (easting, northing) in metres."""
    bands = data[None] if data.ndim == 2 else np.moveaxis(data, -1, 0)
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": bands.shape[0],
        "height": bands.shape[1],
        "width": bands.shape[2],
        "crs": f"EPSG:{epsg}",
        "transform": rasterio.Affine(gsd, 0, corner[0], 0, -gsd, corner[1]),
        "nodata": nodata,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
    }
    with rasterio.open(path, "w", **profile) as file:
        file.write(bands)


def write_footprints(
    root: Path, counts: tuple[int, int, int] = (24, 6, 6), seed: int = 0, size: int = 384, gsd: float = 0.3
) -> None:
    """Write georeferenced crops ``{train,val,test}/{images,labels}/*.tif`` (EPSG:32633), buildings 255 and all else 0.

    Args:
        root: folder to create; it may exist if it is empty.
        counts: of crops in train, val and test.
        seed: the same seed gives the same files.
        size: side of a crop, pixels.
        gsd: metres per pixel.

    Raises:
        ValueError: ``root`` holds something already, or a number makes no sense.
    """
    _check(counts, size)
    with atomic_folder(root) as folder:
        for part in PARTS:
            for kind in ("images", "labels"):
                (folder / part / kind).mkdir(parents=True)
        part_of = [part for part, count in zip(PARTS, counts, strict=True) for _ in range(count)]
        for number, (image, classes) in enumerate(_survey(seed, len(part_of), size, gsd)):
            place, name = folder / part_of[number], f"crop_{number:03d}.tif"
            corner = (380_000 + number % 10 * (size + 64) * gsd, 5_820_000 - number // 10 * (size + 64) * gsd)
            mask = np.where(classes == BUILDING, 255, 0).astype(np.uint8)
            _write_geotiff(place / "images" / name, image, corner, gsd, 32633)
            _write_geotiff(place / "labels" / name, mask, corner, gsd, 32633)


def potsdam(classes: Labels) -> Labels:
    """The world's classes as ISPRS Potsdam has them: water is clutter, bare soil impervious."""
    table = np.arange(256, dtype=np.uint8)
    table[[WATER, SOIL]] = CLUTTER, IMPERVIOUS
    return np.asarray(table[classes])


def permeable(classes: Labels) -> Labels:
    """1 where rain can enter the ground (vegetation, soil, water), 0 where not, 255 where the class is unknown."""
    table = np.zeros(256, dtype=np.uint8)
    table[[LOW_VEGETATION, TREE, WATER, SOIL]] = 1
    table[UNDEFINED] = 255
    return np.asarray(table[classes])


def write_permeability(
    root: Path,
    sheets: tuple[int, int, int] = (3, 1, 1),
    seed: int = 0,
    height: int = 768,
    width: int = 1024,
    gsd: float = 0.25,
) -> None:
    """Write orthophoto sheets and permeability masks that only their georeference (EPSG:25830) joins.

    ``INSUMOS/ORTOFOTOS/*.tif`` are the sheets; ``DATA/OUTPUT/MASCARAS/{train,val,test}/*.tif`` has one mask for each: 1
    permeable, 0 not, 255 ignore. A mask lies on its sheet's grid but starts elsewhere: it leaves out a margin of the
    sheet on two sides and reaches beyond it on the other two.

    Args:
        root: folder to create; it may exist if it is empty.
        sheets: number of sheets whose masks are in train, val and test.
        seed: the same seed gives the same files.
        height: of a sheet, pixels.
        width: of a sheet, pixels.
        gsd: metres per pixel.

    Raises:
        ValueError: ``root`` holds something already, or a number makes no sense.
    """
    _check(sheets, min(height, width))
    rng = random.Random(f"sheets/{seed}")
    with atomic_folder(root) as folder:
        photos = folder / "INSUMOS" / "ORTOFOTOS"
        photos.mkdir(parents=True)
        parts = [part for part, count in zip(PARTS, sheets, strict=True) for _ in range(count)]
        for part in PARTS:
            (folder / "DATA" / "OUTPUT" / "MASCARAS" / part).mkdir(parents=True)
        world = AerialWorld(seed, gsd)
        for number, part in enumerate(parts):
            west, north = 440_000 + number * 2 * width * gsd, 4_474_000.0
            down, right = (max(1, int(rng.uniform(0.04, 0.1) * side)) for side in (height, width))
            down, right = rng.choice((-1, 1)) * down, rng.choice((-1, 1)) * right
            top, margin = number * 2 * (height + round(APART / gsd)), max(abs(down), abs(right))
            image, _, classes = world.paint(top - margin, -margin, height + 2 * margin, width + 2 * margin)
            sheet = image[margin : margin + height, margin : margin + width]
            _write_geotiff(photos / f"PNOA_{559 + number:04d}.tif", sheet, (west, north), gsd, 25830)
            seen = classes[margin + down :, margin + right :][:height, :width]
            corner = (west + right * gsd, north - down * gsd)
            path = folder / "DATA" / "OUTPUT" / "MASCARAS" / part / f"suelo_{chr(97 + number % 26)}{number}.tif"
            _write_geotiff(path, permeable(seen), corner, gsd, 25830, nodata=255)
