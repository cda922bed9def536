"""Masks and probabilities as files: tiled, compressed GeoTIFFs, Cloud Optimized GeoTIFFs, or PNG pictures.

Rows are fetched from where they lie, an array or a spool on disk, so that a file may be larger than memory.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import rasterio
from affine import Affine
from PIL import Image, PngImagePlugin
from rasterio.crs import CRS
from rasterio.shutil import copy as copy_raster

from common.files import atomic_path
from common.images.gdal import CACHE, quiet
from common.images.overviews import ROWS, Overviews, halve_classes, halve_means
from common.images.rasters import Array
from common.labels import NODATA, Color

GEOTIFF = {
    "driver": "GTiff",
    "tiled": True,
    "blockxsize": 256,
    "blockysize": 256,
    "compress": "deflate",
    "bigtiff": "IF_SAFER",
}
ProbabilityType = Literal["float32", "uint16", "uint8"]
FAST = 1
"""Deflate level of probabilities."""
SMALLEST_OVERVIEW, SMALLEST_OF_COG = 256, 512
"""Pixels: overviews are halved until the longer side is no longer than this."""
PNG, SUB = b"\x89PNG\r\n\x1a\n", 1
"""How a PNG begins; its number for rows of differences to the pixel before."""
Place = tuple[CRS | None, Affine | None]
"""Coordinate system and affine map of a raster; no map = not georeferenced."""


class Rows(Protocol):
    """Results of a raster by the name of a layer and by rows, in memory or on disk."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""

    def read(self, name: str, first: int, last: int) -> Array:
        """Rows ``first`` to ``last`` (excluded) of a layer, maybe none: (C, rows, W)."""


class Arrays:
    """Rows of arrays in memory, each (C, H, W), by name."""

    def __init__(self, **layers: Array) -> None:
        self.layers = layers

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = next(iter(self.layers.values())).shape[1:]
        return height, width

    def read(self, name: str, first: int, last: int) -> Array:
        """Rows ``first`` to ``last`` (excluded) of a layer: (C, rows, W)."""
        return self.layers[name][:, first:last]


@dataclass(frozen=True)
class Layout:
    """How GeoTIFFs are laid out."""

    overviews: bool = False
    """With smaller copies, for quick display."""
    cog: bool = False
    """Cloud Optimized GeoTIFF; always with overviews."""


PLAIN = Layout()


def mask_suffix(place: Place) -> str:
    """File type of a mask: ``.tif`` where there is a georeference to keep, else ``.png``."""
    return ".png" if place[1] is None else ".tif"


def gdal_colors(palette: Mapping[int, Color]) -> dict[int, tuple[int, int, int, int]]:
    """A GeoTIFF's color table, in which nodata is transparent."""
    return {**{index: (*rgb, 255) for index, rgb in palette.items()}, NODATA: (0, 0, 0, 0)}


def write_mask(
    path: Path,
    rows: Rows,
    place: Place = (None, None),
    *,
    palette: Mapping[int, Color] | None = None,
    tags: Mapping[str, str] | None = None,
    layout: Layout = PLAIN,
) -> None:
    """Write the layer ``mask`` as PNG or GeoTIFF, whichever the suffix says (see `mask_suffix`).

    Args:
        path: ``.png`` or ``.tif`` file; replaced in one step.
        rows: class indices (1, H, W) uint8, 255 = nodata.
        place: georeference of a GeoTIFF.
        palette: display color of each class; nodata is transparent.
        tags: provenance, stored as TIFF tags or PNG text.
        layout: of a GeoTIFF.

    Raises:
        ValueError: the layer is no mask, or a PNG would lose a georeference.
    """
    sample = rows.read("mask", 0, 0)
    if sample.dtype != np.uint8 or len(sample) != 1:
        raise ValueError(f"{path}: a mask is (1, H, W) uint8, got {sample.dtype} with {len(sample)} channels")
    if path.suffix.lower() == ".png":
        if place[1] is not None:
            raise ValueError(f"{path}: would lose the georeference; write {mask_suffix(place)}")
        _write_png(path, rows, palette, tags or {})
    else:
        _write_geotiff(path, "mask", rows, place, palette, tags or {}, layout)


def write_probability(
    path: Path,
    rows: Rows,
    place: Place = (None, None),
    *,
    tags: Mapping[str, str] | None = None,
    layout: Layout = PLAIN,
    kind: ProbabilityType = "float32",
) -> None:
    """Write the layer ``probability`` as GeoTIFF: a band per class (of two, P of the second).

    Args:
        path: ``.tif`` file; replaced in one step.
        rows: probabilities float32, NaN = nodata, or whole numbers as `quantize` makes them.
        place: georeference.
        tags: provenance.
        layout: of the file.
        kind: the file's numbers. Whole ones take less of the disk; the file says by what to multiply them.
    """
    _write_geotiff(
        path, "probability", rows if kind == "float32" else _Quantized(rows, kind), place, None, tags or {}, layout
    )


def quantize(values: Array, kind: str) -> Array:
    """Probabilities as whole numbers: 1 is the largest but one of the type, NaN the largest."""
    most = np.iinfo(kind).max
    codes = np.rint(np.where(np.isnan(values), 0, values) * np.float32(most - 1))
    return np.where(np.isnan(values), most, codes).astype(kind)


class _Quantized:
    """Rows whose probabilities become whole numbers, unless they are."""

    def __init__(self, rows: Rows, kind: str) -> None:
        self._rows, self._kind, self.size = rows, kind, rows.size

    def read(self, name: str, first: int, last: int) -> Array:
        """Rows ``first`` to ``last`` (excluded) of a layer: (C, rows, W)."""
        values = self._rows.read(name, first, last)
        return quantize(values, self._kind) if values.dtype.kind == "f" else values


def _write_geotiff(
    path: Path,
    name: str,
    rows: Rows,
    place: Place,
    palette: Mapping[int, Color] | None,
    tags: Mapping[str, str],
    layout: Layout,
) -> None:
    (height, width), sample, soft = rows.size, rows.read(name, 0, 0), name == "probability"
    options: dict[str, Any] = GEOTIFF | {"count": len(sample), "height": height, "width": width}
    options |= _soft_options(sample.dtype) if soft else {"dtype": "uint8", "nodata": NODATA}
    options["num_threads"] = "all_cpus"
    if place[1] is not None:
        options |= {"crs": place[0], "transform": place[1]}
    if palette:
        options["photometric"] = "palette"
    if layout.cog:
        options |= {"compress": "none", "predictor": 1, "sparse_ok": True}
    packed = "NONE" if layout.cog else "LZW" if soft else "DEFLATE"  # of overviews; their deflate level is the usual
    smallest = SMALLEST_OF_COG if layout.cog else SMALLEST_OVERVIEW if layout.overviews else max(rows.size)
    halve = partial(halve_means if soft else halve_classes, nodata=options["nodata"])
    with (
        atomic_path(path) as made,
        tempfile.TemporaryDirectory(dir=made.parent, prefix=".plain-") as folder,
        rasterio.Env(GDAL_CACHEMAX=CACHE, GDAL_NUM_THREADS="ALL_CPUS"),
        quiet(),
    ):
        plain = Path(folder) / "plain.tif" if layout.cog else made
        with (
            rasterio.Env(COMPRESS_OVERVIEW=packed),  # not for the copy below: it would not pack its overviews either
            Overviews(Path(folder), rows.size, sample, smallest, halve) as overviews,
        ):
            with rasterio.open(plain, "w", **options) as dataset:
                if palette:
                    dataset.write_colormap(1, gdal_colors(palette))
                if soft and sample.dtype.kind == "u":
                    dataset.scales = [1 / (np.iinfo(sample.dtype).max - 1)] * len(sample)
                dataset.update_tags(**tags)
                overviews.prepare(dataset)
                for row in range(0, height, ROWS):
                    last = min(row + ROWS, height)
                    part = rows.read(name, row, last)
                    dataset.write(part, window=((row, last), (0, width)))
                    overviews.add(part)
            overviews.write(plain)
        if layout.cog:
            _optimize(plain, made, FAST if soft else None)


def _soft_options(kind: np.dtype[Any]) -> dict[str, Any]:
    """How probabilities are packed: they are noise in the last digits, so little is gained by looking for more."""
    real = kind.kind == "f"
    nodata = float("nan") if real else np.iinfo(kind).max
    return {"dtype": kind.name, "nodata": nodata, "predictor": 3 if real else 2, "zlevel": FAST}


def _optimize(plain: Path, target: Path, level: int | None) -> None:
    """Copy a GeoTIFF with GDAL's COG driver, which orders header, overviews and pixels as the format wants."""
    effort = {} if level is None else {"level": level}
    copy_raster(
        plain,
        target,
        driver="COG",
        compress="deflate",
        predictor="yes",
        bigtiff="if_safer",
        num_threads="all_cpus",
        **effort,
    )


def _write_png(path: Path, rows: Rows, palette: Mapping[int, Color] | None, tags: Mapping[str, str]) -> None:
    image, options = Image.fromarray(rows.read("mask", 0, rows.size[0])[0]), {}
    if palette is not None:
        table = np.zeros((256, 3), np.uint8)
        for index, rgb in palette.items():
            table[index] = rgb
        image.putpalette(table.tobytes())
        if NODATA not in palette:
            options["transparency"] = NODATA
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=_png_text(tags), **options)


def write_picture(path: Path, picture: Array, tags: Mapping[str, str] | None = None) -> None:
    """Write an RGB picture (H, W, 3) uint8 as PNG."""
    height, width, _ = picture.shape
    write_bands(path, (height, width), (picture[row : row + ROWS] for row in range(0, height, ROWS)), tags)


def write_bands(
    path: Path, size: tuple[int, int], bands: Iterable[Array], tags: Mapping[str, str] | None = None
) -> None:
    """Write an RGB picture that comes in bands of rows (n, W, 3) uint8 as PNG.

    Differences along the rows are packed by run lengths alone. Pillow would try five kinds of differences for every
    row, which takes three times as long for a few bytes less.
    """
    height, width = size
    packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(PNG)
        PngImagePlugin.putchunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        for name, text, _ in _png_text(tags or {}).chunks:
            PngImagePlugin.putchunk(file, name, text)
        for band in bands:
            pixels = band.reshape(-1, 3 * width)
            lines = np.full((len(pixels), 1 + 3 * width), SUB, np.uint8)
            lines[:, 1:4] = pixels[:, :3]
            np.subtract(pixels[:, 3:], pixels[:, :-3], out=lines[:, 4:])
            PngImagePlugin.putchunk(file, b"IDAT", packer.compress(lines.data))
        PngImagePlugin.putchunk(file, b"IDAT", packer.flush())
        PngImagePlugin.putchunk(file, b"IEND", b"")


def _png_text(tags: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    for key, value in tags.items():
        text.add_text(key, value)
    return text
