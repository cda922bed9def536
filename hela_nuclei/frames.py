"""Reading microscope frames: single images and stacks of 8 or 16 bit, one channel, scaled to 0..1.

What the dimensions of a TIFF mean is taken from its metadata (ImageJ, OME, tifffile) or from ``axes``; it is never guessed where two readings
are possible.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from common.rasters import read_raster

TIFF_SUFFIXES = (".tif", ".tiff")
AXES = "TYXC"
GREEN = 1


@dataclass(frozen=True)
class Stack:
    """Frames of one file: ``frames`` (T, H, W) in the file's own dtype; ``has_time`` tells a stack of one from a single frame."""

    frames: NDArray[np.generic]
    has_time: bool


def read_stack(path: Path, axes: str | None = None, channel: int | None = None) -> Stack:
    """Read the frames of a file as one channel.

    Args:
        path: TIFF of any dtype, or a PNG or JPEG picture.
        axes: what the dimensions are, such as ``TYXC``; default: the file's metadata.
        channel: index of the channel; default: the only one, or green of three (or of four, with alpha); required for two.

    Raises:
        ValueError: the file cannot be read, or it is ambiguous which dimension or channel is meant; names the remedy.
    """
    if path.suffix.lower() in TIFF_SUFFIXES:
        array, found = _read_tiff(path)
        order = _order(path, array.shape, axes or found, given=axes is not None)
    else:
        array, order = np.moveaxis(read_raster(path).data, 0, -1), "YXC"
    array, order = _drop_single(array, order)
    unknown = [letter for letter in order if letter not in AXES]
    if unknown:
        raise ValueError(f"{path}: dimension '{unknown[0]}' of {order} {array.shape} is neither time nor channel; reduce it first, or name it with --axes")
    if "C" in order:
        array = np.take(array, _channel(path, array.shape[order.index("C")], channel), axis=order.index("C"))
        order = order.replace("C", "")
    elif channel not in (None, 0):
        raise ValueError(f"{path}: --channel {channel}, but the file has one channel")
    if array.size == 0 or array.dtype.kind not in "uif":
        raise ValueError(f"{path}: {array.dtype} array of shape {array.shape} is no image")
    has_time = "T" in order
    array = np.moveaxis(array, [order.index(letter) for letter in ("TYX" if has_time else "YX")], range(array.ndim))
    return Stack(array if has_time else array[None], has_time)


def _read_tiff(path: Path) -> tuple[NDArray[np.generic], str]:
    try:
        with tifffile.TiffFile(path) as tiff:
            series = tiff.series[0]
            return series.asarray(), series.axes.upper().replace("S", "C").replace("I", "T")
    except Exception as error:  # tifffile and its codecs raise many kinds for a damaged file
        raise ValueError(f"{path}: cannot be read as TIFF ({str(error).splitlines()[0] if str(error) else type(error).__name__}); replace or remove it") from error


def _order(path: Path, shape: tuple[int, ...], axes: str, *, given: bool) -> str:
    """The dimension letters of an array, with tifffile's unknown ``Q`` resolved where only one reading is possible."""
    axes = axes.upper()
    if given:
        if len(axes) != len(shape) or len(set(axes)) != len(axes) or not {"Y", "X"} <= set(axes) or not set(axes) <= set(AXES + "Z"):
            raise ValueError(f"{path}: --axes {axes} does not fit the shape {shape}; give one letter of T, Y, X, C (or Z) per dimension")
        return axes
    unknown = axes.count("Q")
    if unknown == 0:
        return axes
    # Pages without a meaning: a leading dimension too long for channels can only be time.
    if unknown == 1 and axes[0] == "Q" and shape[0] > 4 and shape[-1] > 4:
        return axes.replace("Q", "T")
    raise ValueError(f"{path}: the dimensions of shape {shape} are not named in the file; say what they are, such as --axes {AXES[-len(shape):]}")


def _drop_single(array: NDArray[np.generic], order: str) -> tuple[NDArray[np.generic], str]:
    """Remove dimensions of size 1 that are neither image nor time."""
    single = [i for i, letter in enumerate(order) if array.shape[i] == 1 and letter not in "TYX"]
    return np.squeeze(array, tuple(single)), "".join(letter for i, letter in enumerate(order) if i not in single)


def _channel(path: Path, count: int, channel: int | None) -> int:
    if channel is None:
        if count in (3, 4):
            return GREEN
        raise ValueError(f"{path}: has {count} channels; say which one shows the nuclei with --channel 0...{count - 1}")
    if not 0 <= channel < count:
        raise ValueError(f"{path}: --channel {channel} is not one of its {count} channels; use 0...{count - 1}")
    return channel


def scale_frame(frame: NDArray[np.generic], value_range: tuple[float, float] | None = None) -> NDArray[np.float32]:
    """(H, W) of any dtype -> float32 in 0..1: the frame's own minimum to maximum, or ``value_range`` with values beyond it clipped.

    A constant frame becomes 0 everywhere.
    """
    values = frame.astype(np.float32)
    low, high = value_range if value_range is not None else (float(values.min()), float(values.max()))
    if not high > low:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0, 1)
