"""Decoding of what GDAL does not read, or not as people see it: PNG, JPEG and the like, and TIFFs with other codecs.

Every decoder gives bands (C, H, W) without alpha, in the file's own numbers, and which pixels (H, W) are opaque.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, ImageOps

Array = npt.NDArray[Any]
Pixels = tuple[Array, npt.NDArray[np.bool_]]
PaletteReading = Literal["rgb", "label", "index"]

Image.MAX_IMAGE_PIXELS = None  # a sheet of half a gigapixel is a normal input here, not an attack


def expand_palette(indices: Array, colors: Mapping[int, Sequence[int]]) -> tuple[Array, npt.NDArray[np.bool_]]:
    """RGB bands and opacity of palette indices; indices without a color are black."""
    table = np.zeros((1 << (8 * indices.dtype.itemsize), 4), np.uint8)
    for index, color in colors.items():
        table[index] = color
    rgba = table[indices]
    return np.moveaxis(rgba[..., :3], -1, 0).copy(), rgba[..., 3] > 0


def read_tiff_pages(path: Path) -> Pixels:
    """Read a TIFF that GDAL cannot decode, or whose pages may be bands."""
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        axes, data = series.axes, series.asarray()
        extra = series.keyframe.extrasamples
    if axes not in ("YX", "YXS", "SYX", "CYX"):
        raise ValueError(f"it is a stack with axes {axes} of {data.shape}, one picture is expected; save single frames")
    data = data[None] if axes == "YX" else np.moveaxis(data, -1, 0) if axes == "YXS" else data
    valid = np.ones(data.shape[1:], bool)
    if extra and "S" in axes and extra[-1] in (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA):
        data, valid = data[:-1], data[-1] > 0
    return np.ascontiguousarray(data), valid


def _has_16_bit_colors(path: Path) -> bool:
    """Whether a PNG has more than one 16-bit channel; Pillow would cut them to 8 bits without a word."""
    with path.open("rb") as file:
        head = file.read(26)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and head[24] == 16 and head[25] in (2, 4, 6)


def _plain_mode(image: Image.Image, palette: PaletteReading) -> Image.Image:
    """The picture as grey or RGB, with alpha if it has any transparency."""
    transparent = image.mode == "PA" or "transparency" in image.info
    mode = image.mode
    if mode in ("P", "PA"):
        colors = np.reshape(image.getpalette() or [], (-1, 3))
        grey = bool((colors == colors[:, :1]).all())
        if palette == "index":
            return image
        mode = "L" if palette == "label" and grey else "RGBA" if transparent else "RGB"
    elif transparent and mode in ("1", "L", "RGB"):
        mode = "RGBA" if mode == "RGB" else "LA"
    elif mode == "1":
        mode = "L"
    elif mode not in ("L", "LA", "RGB", "RGBA", "F") and not mode.startswith("I"):
        mode = "RGB"
    return image if mode == image.mode else image.convert(mode)


def read_picture(path: Path, palette: PaletteReading) -> Pixels:
    """Read a picture without georeference, turned as its EXIF orientation says."""
    if _has_16_bit_colors(path):
        array = np.asarray(imagecodecs.png_decode(path.read_bytes()))
    else:
        with Image.open(path) as opened:
            opened.load()
            array = np.asarray(_plain_mode(ImageOps.exif_transpose(opened), palette))
    bands = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    valid = np.ones(bands.shape[1:], bool)
    if len(bands) in (2, 4):
        bands, valid = bands[:-1], bands[-1] > 0
    return np.array(bands, dtype=bands.dtype.newbyteorder("="), order="C"), valid
