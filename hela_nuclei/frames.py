"""Reading microscope frames: single images and stacks of 8 or 16 bit, one channel, scaled to 0..1.

What the dimensions of a TIFF mean is taken from its metadata (ImageJ, OME, tifffile) or from ``axes``; it is never
guessed where two readings are possible.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from common.images.gdal import COMPRESSION, pixel_count, require_file
from common.images.ranges import Range, scale_to_unit
from common.images.rasters import read_raster

TIFF_SUFFIXES = (".tif", ".tiff")
AXES = "TYXC"
GREEN = 1
MOST_CHANNELS = 4
"""A dimension without a name that is longer than this can only be time."""
LARGEST_STACK = 1 << 30
"""Values of all frames together; masks and probabilities take seven times their number in bytes."""
ALPHA = (1, 2)
"""TIFF codes of extra samples that are transparency."""


@dataclass(frozen=True)
class Stack:
    """Frames of one file.

    Attributes:
        frames: (T, H, W) in the file's own number type.
        has_time: tells a stack of one frame from a single frame.
        channels: how many the file has.
        value_range: values that mean black and white; None = each frame's own extremes.
    """

    frames: NDArray[np.generic]
    has_time: bool
    channels: int = 1
    value_range: Range | None = None


def read_stack(path: Path, axes: str | None = None, channel: int | None = None) -> Stack:
    """Read the frames of a file as one channel; transparency is left out.

    Args:
        path: TIFF of any number type, or a PNG or JPEG picture.
        axes: what the dimensions are, such as ``TYXC``; default: the file's metadata.
        channel: index of the channel; default: the only one, or green of three; required for two.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or it is ambiguous which dimension or channel is meant; names the remedy.
    """
    require_file(path)
    if path.suffix.lower() in TIFF_SUFFIXES:
        array, found = _read_tiff(path)
        order = _given_axes(path, array.shape, axes) if axes else _named(path, array.shape, found)
    else:
        array, order = np.moveaxis(read_raster(path).data, 0, -1), "YXC"
    array, order = _drop_single(array, order)
    unknown = [letter for letter in order if letter not in AXES]
    if unknown:
        raise ValueError(
            f"{path}: dimension '{unknown[0]}' of {order} {array.shape} is neither time nor channel; "
            f"reduce it first, or name it T or C with --axes"
        )
    channels = array.shape[order.index("C")] if "C" in order else 1
    index = _channel(path, channels, channel)
    if "C" in order:
        array = np.take(array, index, axis=order.index("C"))
        order = order.replace("C", "")
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if array.size == 0 or array.dtype.kind not in "uif":
        raise ValueError(f"{path}: {array.dtype} array of shape {array.shape} is no image")
    has_time = "T" in order
    letters = "TYX" if has_time else "YX"
    array = np.moveaxis(array, [order.index(letter) for letter in letters], range(array.ndim))
    return Stack(array if has_time else array[None], has_time, channels)


def _read_tiff(path: Path) -> tuple[NDArray[Any], str]:
    """The array of a TIFF in native byte order and tifffile's letters for its dimensions."""
    try:
        with _complaints() as complaints, tifffile.TiffFile(path, _multifile=False) as tiff:
            series, page = tiff.series[0], tiff.pages[0]
            check_claim(path, series)
            array, axes = series.asarray(), series.axes.upper()
            count, shaped = len(tiff.series), tiff.is_shaped
    except Exception as error:  # tifffile and its codecs raise many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: cannot be read as TIFF ({reason}); replace or remove it") from error
    if complaints:  # pages are missing: without this a stack cut short would pass as a single frame
        raise ValueError(f"{path}: damaged TIFF ({complaints[0]}); replace or remove it")
    if count > 1:
        raise ValueError(f"{path}: holds {count} image series of different kinds; split it into one file each")
    transparent = sum(int(kind) in ALPHA for kind in page.extrasamples)
    if transparent and axes[-1] == "S":
        array = array[..., :-transparent]
    if shaped and axes == "SYX":  # tifffile's own writer takes any 3 x H x W for color planes, three frames too
        axes = "QYX"
    return array.astype(array.dtype.newbyteorder("="), copy=False), axes


def check_claim(path: Path, series: tifffile.TiffPageSeries) -> None:
    """Compare what a TIFF claims to hold with its size, and with what is read at once.

    Raises:
        ValueError: it is more than the file can hold, or than the memory should.
    """
    size = path.stat().st_size
    if series.nbytes > size * COMPRESSION:
        raise ValueError(f"claims {series.shape} of {series.dtype} in {size} bytes, more than they can hold")
    if series.size > LARGEST_STACK:
        raise ValueError(f"{series.shape} are too many pixels to be read at once (at most {LARGEST_STACK}); divide it")


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Keep tifffile's log and warnings off the screen; collects its errors about pages and series."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = " ".join(record.getMessage().split())
            if record.levelno >= logging.ERROR and text.startswith(("<tifffile.TiffPages", "<tifffile.TiffFile")):
                found.append(text.split("> ", 1)[-1][:120])

    logger, collector = logging.getLogger("tifffile"), Collector()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(collector)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield found
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagate


def check_axes(axes: str | None) -> None:
    """Refuse ``--axes`` that no file could have.

    Raises:
        ValueError: a letter is unknown or twice there, or Y or X is missing.
    """
    if axes is None:
        return
    letters = axes.upper()
    if len(set(letters)) != len(letters) or not {"Y", "X"} <= set(letters) <= set(AXES):
        raise ValueError(f"--axes {axes}: give one letter of T, Y, X, C per dimension, such as {AXES}")


def _given_axes(path: Path, shape: tuple[int, ...], axes: str) -> str:
    check_axes(axes)
    if len(axes) != len(shape):
        raise ValueError(f"{path}: --axes {axes} does not fit the shape {shape}; give one letter per dimension")
    return axes.upper()


def _named(path: Path, shape: tuple[int, ...], axes: str) -> str:
    """Our letters for tifffile's; pages without a meaning (``Q``, ``I``) become time where nothing else is possible."""
    order = axes.replace("S", "C").replace("I", "Q")
    if "Q" not in order and len(set(order)) == len(order):
        return order
    if order == "QYX" and min(shape[:2]) > MOST_CHANNELS >= shape[2]:
        return "YXC"  # pages of a few columns each are an image with a few channels, written the wrong way
    if order[0] == "Q" and order.count("Q") == 1 and shape[-1] > MOST_CHANNELS and shape[0] > MOST_CHANNELS:
        return order.replace("Q", "T")
    if order == "QYXC":
        return "TYXC"
    example = {2: "YX", 3: "TYX or CYX"}.get(len(shape), "TYXC or TCYX")
    raise ValueError(f"{path}: the file does not say what the dimensions of {shape} are; say it with --axes {example}")


def _drop_single(array: NDArray[Any], order: str) -> tuple[NDArray[Any], str]:
    """Remove dimensions of size 1 that are neither image nor time."""
    single = [i for i, letter in enumerate(order) if array.shape[i] == 1 and letter not in "TYX"]
    return np.squeeze(array, tuple(single)), "".join(letter for i, letter in enumerate(order) if i not in single)


def _channel(path: Path, count: int, channel: int | None) -> int:
    if channel is None:
        if count in (1, 3):
            return GREEN if count == 3 else 0
        raise ValueError(f"{path}: has {count} channels; say which shows the nuclei with --channel 0...{count - 1}")
    if not 0 <= channel < count:
        remedy = f"use 0...{count - 1}" if count > 1 else "leave it out"
        raise ValueError(f"{path}: --channel {channel}, but the file has {count} channel(s); {remedy}")
    return channel


def count_pixels(path: Path, axes: str | None = None) -> int:
    """Pixels of all frames of one channel, from the file's header alone; 0 where that cannot be read."""
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return pixel_count(path)
    try:
        require_file(path)
        with _complaints(), tifffile.TiffFile(path, _multifile=False) as tiff:
            series = tiff.series[0]
            check_claim(path, series)
            order = axes.upper() if axes else _named(path, series.shape, series.axes.upper())
            counted = [size for size, letter in zip(series.shape, order, strict=True) if letter != "C"]
            return int(math.prod(counted))
    except Exception:  # damaged files are reported when they are read
        return 0


def frame_range(frame: NDArray[np.generic]) -> Range:
    """Smallest and largest finite value; (0, 0) without any."""
    values = frame[np.isfinite(frame)] if frame.dtype.kind == "f" else frame
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


def scale_frame(frame: NDArray[np.generic], value_range: Range | None = None) -> NDArray[np.float32]:
    """(H, W) of any number type -> float32 in 0..1; a constant frame becomes 0 everywhere.

    Args:
        frame: intensities; NaN becomes 0.
        value_range: values that become 0 and 1, beyond it they are clipped; default: the frame's own extremes.
    """
    low, high = value_range or frame_range(frame)
    if not high > low:
        return np.zeros(frame.shape, np.float32)
    known = np.ones(frame.shape, bool) if frame.dtype.kind != "f" else ~np.isnan(frame)
    scaled: NDArray[np.float32] = scale_to_unit(frame[None], known, (low, high))[0]
    return scaled
