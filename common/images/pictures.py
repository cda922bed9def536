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
Decoded = tuple[Array, npt.NDArray[np.bool_]]
PaletteReading = Literal["rgb", "label", "index"]

Image.MAX_IMAGE_PIXELS = None  # `check_size` decides, by a figure of our own
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "JPEG2000")
"""Pillow's decoders; others start programs (PostScript) or read what no one needs."""
LARGEST = 200_000_000
"""Pixels that are read at once; larger rasters are read in parts."""


def open_picture(path: Path) -> Image.Image:
    """Open a picture with Pillow, by its content; nothing is decoded yet."""
    return Image.open(path, formats=FORMATS)


def check_size(path: Path, width: int, height: int, bands: int = 1) -> None:
    """Refuse, by the header alone, a picture that is too large to be kept in memory.

    Raises:
        ValueError: it is; names its size and the limit.
    """
    if width * height * max(1, bands / 4) > LARGEST:
        raise ValueError(
            f"{path}: {width} x {height} pixels with {bands} band(s) are too many to be read at once (at most "
            f"{LARGEST} with up to 4); save it as a tiled GeoTIFF, or cut it into smaller ones"
        )


def expand_palette(indices: Array, colors: Mapping[int, Sequence[int]]) -> tuple[Array, npt.NDArray[np.bool_]]:
    """RGB bands and opacity of palette indices; indices without a color are black."""
    table = np.zeros((1 << (8 * indices.dtype.itemsize), 4), np.uint8)
    for index, color in colors.items():
        table[index] = color
    rgba = table[indices]
    return np.moveaxis(rgba[..., :3], -1, 0).copy(), rgba[..., 3] > 0


def read_tiff_pages(path: Path) -> Decoded:
    """Read a TIFF that GDAL cannot decode, or whose pages may be bands."""
    with tifffile.TiffFile(path, _multifile=False) as file:
        series, *others = [one for one in file.series if not (one.keyframe.is_reduced or one.keyframe.is_mask)]
        if others:
            shapes = " and ".join(str(one.shape) for one in (series, *others[:3]))
            raise ValueError(f"it holds {1 + len(others)} pictures of different kinds, {shapes}; save each as a file")
        axes, shape = series.axes, series.shape
        if axes not in ("YX", "YXS", "SYX", "CYX"):
            raise ValueError(f"it is a stack with axes {axes} of {shape}, one picture is expected; save single frames")
        sizes = dict(zip(axes, shape, strict=True))
        check_size(path, sizes["X"], sizes["Y"], series.size // (sizes["X"] * sizes["Y"]))
        data, extra = series.asarray(), series.keyframe.extrasamples
    data = data[None] if axes == "YX" else np.moveaxis(data, -1, 0) if axes == "YXS" else data
    valid = np.ones(data.shape[1:], bool)
    if extra and "S" in axes and extra[-1] in (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA):
        data, valid = data[:-1], data[-1] > 0
    return np.ascontiguousarray(data), valid


def _has_16_bit_colors(path: Path) -> bool:
    """Whether a PNG has more than one 16-bit channel; Pillow would cut them to 8 bits without a word."""
    with path.open("rb") as file:
        head = file.read(26).ljust(26)
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


def read_picture(path: Path, palette: PaletteReading) -> Decoded:
    """Read a picture without georeference, turned as its EXIF orientation says."""
    with open_picture(path) as opened:
        check_size(path, opened.width, opened.height, len(opened.getbands()))
        if _has_16_bit_colors(path):
            array = np.asarray(imagecodecs.png_decode(path.read_bytes()))
        else:
            opened.load()
            array = np.asarray(_plain_mode(ImageOps.exif_transpose(opened), palette))
    bands = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    valid = np.ones(bands.shape[1:], bool)
    if len(bands) in (2, 4):
        bands, valid = bands[:-1], bands[-1] > 0
    return np.array(bands, dtype=bands.dtype.newbyteorder("="), order="C"), valid
