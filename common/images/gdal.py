"""Reading a file that GDAL has open, as a whole or in parts: bands without alpha, and which pixels are valid.

Files are opened by their content, with a short list of formats that hold their own pixels: formats that point to other
files or to web services could fetch what nobody named. What a header claims is compared with the file's size before
anything is decoded.
"""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from common.images.mosaics import MOSAIC, mosaic_sources
from common.images.pictures import PaletteReading, check_size, expand_palette

CACHE = 64 << 20
"""Bytes of GDAL's block cache; by default it is a share of the machine's memory."""
DRIVERS = ["GTiff", "PNG", "JPEG", "BMP", "WEBP", "JP2OpenJPEG"]
SETTINGS: dict[str, Any] = {"GDAL_CACHEMAX": CACHE, "CPL_VSIL_CURL_ALLOWED_FILENAME": "none"}
IN_PARTS = ("GTiff", "JP2OpenJPEG", "VRT")
"""Formats made for rasters of any size."""
LARGEST_PICTURE = 1 << 30
"""Pixels of a file in another format."""
MOST_BANDS = 1024
"""Bands of a file; the widest sensors have some hundred, and a header of a few bytes can claim 65 535."""
COMPRESSION = 1 << 17
"""No raster with content takes fewer bytes than its pixels' divided by this."""
FARTHEST = 1e30
"""No coordinate of any unit is as large."""
APPENDED = (".aux.xml", ".msk", ".ovr")
"""Files that GDAL reads beside an image whose name they lengthen."""
IN_PLACE = (".aux", ".prj", ".tab", ".rpb", ".RPB", "_rpc.txt", "_RPC.TXT", ".wld", ".WLD")
"""Those that have another suffix than the image; world files besides (.tfw, .tifw)."""
BMP_COMPRESSION = 1 << 15

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


_muting = threading.Lock()
_mute: list[warnings.catch_warnings[None]] = []


@contextmanager
def quiet() -> Iterator[None]:
    """A raster without georeference is as good as any other here; damaged EXIF or odd palettes are not news either.

    Python's filters of warnings belong to all threads: they are set by the first one that is here, reset by the last.
    """
    with _muting:
        _mute.append(warnings.catch_warnings())
        if len(_mute) == 1:
            _mute[0].__enter__()
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            warnings.simplefilter("ignore", NodataShadowWarning)
            warnings.filterwarnings("ignore", module=r"PIL\.")
            warnings.filterwarnings("ignore", "'crs' was not provided")
    try:
        yield
    finally:
        with _muting:
            if len(_mute) == 1:
                _mute[0].__exit__(None, None, None)
            del _mute[-1]


def unreadable(path: Path | str, error: Exception) -> ValueError:
    """What to say of a file at which a decoder failed."""
    reason = str(error.__cause__ or error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    return ValueError(f"{path}: cannot be read as an image: {reason}; remove or replace it")


@contextmanager
def decoding(path: Path | str) -> Iterator[None]:
    """Turn whatever a decoder raises, of any kind, into a ValueError that names the file."""
    try:
        with quiet():
            yield
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged files make the decoders raise nearly anything
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        raise unreadable(path, error) from error


def require_file(path: Path) -> None:
    """Refuse what is no regular file: to read a pipe or a device would wait for ever.

    Raises:
        FileNotFoundError: there is nothing, or a folder.
        ValueError: it is something else.
    """
    if path.is_dir() or not path.exists():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    if not path.is_file():
        raise ValueError(f"{path}: is no regular file; name an image file")


def require_sides(path: Path) -> None:
    """Refuse a raster beside which a pipe or a device has the name of a file that belongs to it, for the same reason.

    Raises:
        ValueError: there is one; names it.
    """
    worlds = [f".{path.suffix[1:2]}{path.suffix[-1:]}w", f"{path.suffix}w"]
    endings = (*IN_PLACE, *worlds, *map(str.upper, worlds))
    for name in (*(path.name + ending for ending in APPENDED), *(path.stem + ending for ending in endings)):
        side = path.with_name(name)
        if side.exists() and not side.is_file() and not side.is_dir():
            raise ValueError(f"{path}: {name} beside it is no regular file; remove it")


def open_dataset(path: Path, *, pages: bool = False) -> DatasetReader:
    """Open a raster file for reading; the caller closes it.

    Args:
        path: the file; a mosaic (``.vrt``) must have its sources beside it.
        pages: also open a file of several pictures, whose first one is then read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no raster of a known format, is damaged, claims more pixels than it can hold, has several
            pages or complex numbers.
    """
    require_file(path)
    require_sides(path)
    name = os.fspath(path) if path.is_absolute() else os.path.join(".", path)  # never a prefix such as GTIFF_DIR:
    mosaic = path.suffix.lower() == MOSAIC
    files = [path, *mosaic_sources(path)] if mosaic else [path]
    for source in files[1:]:
        open_dataset(source).close()
    with decoding(path), rasterio.Env(**SETTINGS):
        dataset = DatasetReader(name, driver=["VRT"] if mosaic else DRIVERS)
        try:
            _check_claim(path, dataset, sum(file.stat().st_size for file in files))
            _check_content(path, dataset, pages=pages)
        except BaseException:
            dataset.close()
            raise
    return dataset


@contextmanager
def open_raster(path: Path, *, pages: bool = False) -> Iterator[DatasetReader]:
    """Open a file as `open_dataset` does, and close it; meanwhile GDAL's cache is bounded and it makes no remarks."""
    with rasterio.Env(**SETTINGS), quiet(), open_dataset(path, pages=pages) as dataset:
        yield dataset


def _check_claim(path: Path, dataset: DatasetReader, size: int) -> None:
    """Compare the pixels that the header claims with the bytes of the file."""
    pixels, driver = dataset.width * dataset.height, dataset.driver
    if dataset.count > MOST_BANDS:
        raise ValueError(f"{path}: claims {dataset.count} bands, at most {MOST_BANDS} are read; the file is damaged")
    claimed = pixels * sum(np.dtype(kind.removeprefix("complex_")).itemsize for kind in dataset.dtypes)
    most = size * (BMP_COMPRESSION if driver == "BMP" else COMPRESSION)
    shape = f"{dataset.width} x {dataset.height} pixels"
    if claimed > most and driver != "WEBP":
        raise ValueError(f"{path}: claims {shape} in {size} bytes, more than they can hold; the file is damaged")
    if pixels > LARGEST_PICTURE and driver not in IN_PARTS:
        raise ValueError(
            f"{path}: {shape} are too many for {driver} (at most {LARGEST_PICTURE}); save it as a tiled GeoTIFF"
        )


def _check_content(path: Path, dataset: DatasetReader, *, pages: bool) -> None:
    """Ask for all that is used later, while what goes wrong is known to be this file's fault."""
    Bands.of(dataset)
    place_of(dataset)
    overviews = dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE", ":::BASE:::")
    if os.path.basename(overviews) != overviews:
        raise ValueError(f"{path}: has its overviews elsewhere ({overviews}); remove that entry from its metadata")
    strange = [kind for kind in dataset.dtypes if kind.startswith("complex")]
    if strange:
        raise ValueError(f"{path}: has {strange[0]} values; save it with whole or real numbers")
    if dataset.subdatasets and not pages:
        raise ValueError(
            f"{path}: holds {len(dataset.subdatasets)} pages, one picture is expected; save each as a file of its own"
        )


def pixel_count(path: Path) -> int:
    """Pixels of an image by its header; 0 for what cannot be opened or claims more than it can hold."""
    try:
        with open_raster(path, pages=True) as dataset:
            return int(dataset.width * dataset.height)
    except (ValueError, OSError):
        return 0


@dataclass(frozen=True)
class Bands:
    """What the bands of an open file mean.

    It is asked once, when the file is opened: later rasterio would take the error of another file for an answer.
    """

    colors: tuple[int, ...]
    """Numbers of the bands without alpha."""
    alpha: tuple[int, ...]
    masked: tuple[int, ...]
    """Bands whose masks say which pixels are valid: where any of them is (declared nodata, mask bands)."""
    colormap: dict[int, tuple[int, int, int, int]] | None = None
    decorated: bool = False
    """Whether the colors only decorate class indices, as those of a TIFF do in a label."""
    white_is_zero: int | None = None
    """Largest value of a file in which 0 is white."""

    @classmethod
    def of(cls, dataset: DatasetReader | WarpedVRT) -> Bands:
        """The bands of an open file.

        Raises:
            ValueError: it has nothing but alpha.
        """
        meanings, flags = dataset.colorinterp, dataset.mask_flag_enums
        colors = tuple(i for i, meaning in enumerate(meanings, start=1) if meaning != ColorInterp.alpha)
        alpha = tuple(i for i, meaning in enumerate(meanings, start=1) if meaning == ColorInterp.alpha)
        if not colors:
            raise ValueError("it has an alpha band only")
        nodata = all(MaskFlags.nodata in flags[i - 1] for i in colors)
        shared = MaskFlags.per_dataset in flags[colors[0] - 1] and MaskFlags.alpha not in flags[colors[0] - 1]
        masked = colors if nodata else colors[:1] if shared else ()
        if dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES":
            bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * np.dtype(dataset.dtypes[0]).itemsize))
            return cls(colors, alpha, masked, white_is_zero=2**bits - 1)
        painted = len(colors) == 1 and meanings[colors[0] - 1] == ColorInterp.palette
        colormap = dataset.colormap(colors[0]) if painted else None
        return cls(colors, alpha, masked, colormap, dataset.driver not in ("PNG", "BMP"))


def read_bands(
    dataset: DatasetReader | WarpedVRT,
    rows: tuple[int, int] | None = None,
    cols: tuple[int, int] | None = None,
    palette: PaletteReading = "rgb",
    *,
    bands: Bands | None = None,
    count: int | None = None,
    interleaved: bool = False,
) -> tuple[Array, Mask]:
    """Bands (C, H, W) without alpha, and which pixels are valid (H, W), of a part of an open file or all of it.

    A pixel is valid where it is not transparent, a mask band shows it, any band differs from its declared nodata, and
    all that was read is finite.

    Args:
        dataset: Open file.
        rows: First row, and the row after the last; None = all.
        cols: First column, and the column after the last; None = all.
        palette: ``rgb``: colors as people see them; ``label``: so too, but the table of a TIFF only decorates class
            indices; ``index``: the file's own numbers.
        bands: What the bands mean; None = it is asked now.
        count: How many bands to read, from the first on; None = all.
        interleaved: Lay the values of a pixel side by side in memory, as networks on a CPU and most files do.

    Raises:
        ValueError: The file is damaged, or has nothing but alpha.
    """
    window = (rows or (0, dataset.height), cols or (0, dataset.width))
    with decoding(dataset.name):
        bands = bands or Bands.of(dataset)
        numbers = list(bands.colors[:count])
        (top, bottom), (left, right) = window
        layout = np.empty((bottom - top, right - left, len(numbers)), _type_of(dataset)) if interleaved else None
        out = None if layout is None else layout.transpose(2, 0, 1)
        data: Array = dataset.read(numbers, window=window, out=out)
        valid: Mask = np.ones(data.shape[1:], np.bool_)
        for number in bands.alpha:
            valid &= dataset.read(number, window=window) > 0
        if bands.masked:
            valid &= (dataset.read_masks(list(bands.masked), window=window) > 0).any(axis=0)
    if bands.white_is_zero is not None and palette != "index":
        data = (bands.white_is_zero - data).astype(data.dtype)
    if bands.colormap is not None and (palette == "rgb" or (palette == "label" and not bands.decorated)):
        data, opaque = expand_palette(data[0], bands.colormap)
        valid &= opaque
        if palette == "label" and all(len(set(color[:3])) == 1 for color in bands.colormap.values()):
            data = data[:1]
    if data.dtype.kind == "f":
        valid &= np.isfinite(data).all(axis=0)
    return data, valid


def _type_of(dataset: DatasetReader | WarpedVRT) -> np.dtype[Any]:
    """The number type that holds all bands, as rasterio's own choice."""
    return np.result_type(*dataset.dtypes)


def read_whole(dataset: DatasetReader, path: Path, palette: PaletteReading) -> tuple[Array, Mask]:
    """All of an open file, if it is small enough to be kept in memory.

    Raises:
        ValueError: it is too large, or damaged.
    """
    check_size(path, dataset.width, dataset.height, dataset.count)
    return read_bands(dataset, palette=palette)


def sample_bands(
    dataset: DatasetReader, side: int = 256, count: int = 4, *, bands: Bands | None = None
) -> tuple[Array, Mask]:
    """Bands (C, n, side) and validity of some small windows spread over an open file: a look at its values."""
    height, width = min(side, dataset.height), min(side, dataset.width)
    rows = np.unique(np.linspace(0, dataset.height - height, count).astype(int))
    cols = np.unique(np.linspace(0, dataset.width - width, count).astype(int))
    spots = [((row, row + height), (col, col + width)) for row in rows for col in cols]
    parts = [read_bands(dataset, *spot, bands=bands) for spot in spots]
    return np.concatenate([data for data, _ in parts], axis=1), np.concatenate([valid for _, valid in parts])


def place_of(dataset: DatasetReader) -> Affine | None:
    """The affine map of an open file to coordinates; None where it has no georeference."""
    sound = all(math.isfinite(number) and abs(number) < FARTHEST for number in dataset.transform)
    if not sound or dataset.transform.determinant == 0:
        raise ValueError(f"its georeference is no affine map: {tuple(dataset.transform)[:6]}")
    return dataset.transform if dataset.crs is not None or not dataset.transform.is_identity else None


def control_points(dataset: DatasetReader) -> int:
    """How many ground control points an open file has in place of an affine map; 0 where it needs none."""
    return 0 if place_of(dataset) is not None else len(dataset.gcps[0])


def place_note(path: Path) -> str | None:
    """A line on a file that is read as a picture without a place although it has control points, else None."""
    try:
        with open_raster(path, pages=True) as dataset:
            points = control_points(dataset)
    except (ValueError, OSError):  # reading it will say what is wrong
        return None
    return (
        f"{path}: has {points} control points and no affine map, so it is read as a picture without a place; "
        "warp it with gdalwarp to keep its place"
        if points
        else None
    )
