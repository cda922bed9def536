"""Values of images of any number type as 0-1, by a range that is known beforehand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
MIN_USED_RANGE = 0.1


def dtype_range(dtype: npt.DTypeLike) -> tuple[float, float]:
    """Values that mean black and white in a number type: 0-255, 0-65535, ..., and 0-1 for floats and booleans."""
    kind = np.dtype(dtype)
    return (0.0, float(np.iinfo(kind).max)) if kind.kind in "ui" else (0.0, 1.0)


def _checked_range(data: Array, value_range: tuple[float, float] | None) -> tuple[float, float]:
    low, high = dtype_range(data.dtype) if value_range is None else value_range
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"--input-range needs two numbers LO < HI, got {low} {high}")
    return low, high


def to_unit(image: Array) -> npt.NDArray[np.float32]:
    """An image (C, H, W), uint8 or already in 0-1, as float32 in 0-1."""
    return image.astype(np.float32) * np.float32(1 / 255 if image.dtype == np.uint8 else 1)


def scale_to_unit(
    data: Array, valid: npt.NDArray[np.bool_], value_range: tuple[float, float] | None = None
) -> npt.NDArray[np.float32]:
    """Map values to 0-1 by a fixed range, clipped; invalid pixels become 0.

    Args:
        data: (C, H, W) of any number type.
        valid: (H, W).
        value_range: Values that become 0 and 1; None = `dtype_range`.

    Returns:
        (C, H, W) float32, finite.

    Raises:
        ValueError: The range is empty or not finite, or a valid pixel is NaN.
    """
    low, high = _checked_range(data, value_range)
    whole = data.dtype.kind in "ui"
    wide = data.dtype.itemsize > 4 or (whole and data.dtype.itemsize > 2)
    scaled: npt.NDArray[np.floating[Any]] = data.astype(np.float64 if wide else np.float32)
    if low != 0.0:
        scaled -= low
    scaled /= high - low
    if data.dtype.kind != "u" or (low, high) != dtype_range(data.dtype):
        np.clip(scaled, 0.0, 1.0, out=scaled)
    if not valid.all():
        scaled[:, ~valid] = 0.0
    if not whole and np.isnan(scaled).any():
        raise ValueError(f"{int(np.isnan(scaled).sum())} values marked as valid are NaN")
    return scaled.astype(np.float32, copy=False)


def to_channels(
    data: Array, valid: npt.NDArray[np.bool_], channels: int = 3, value_range: tuple[float, float] | None = None
) -> npt.NDArray[np.float32]:
    """The bands that a network reads, in 0-1: the first ``channels``; for three of them a grey image is repeated.

    Args:
        data: (C, H, W) of any number type.
        valid: (H, W); invalid pixels become 0.
        channels: How many bands the network reads.
        value_range: Values that become 0 and 1; None = `dtype_range`.

    Returns:
        (channels, H, W) float32.

    Raises:
        ValueError: The image has too few bands.
    """
    if channels == 3 and len(data) < 3:
        return np.repeat(scale_to_unit(data[:1], valid, value_range), 3, axis=0)
    if len(data) < channels:
        raise ValueError(f"it has {len(data)} bands, the network reads {channels}; use images like those it learned on")
    return scale_to_unit(data[:channels], valid, value_range)


def to_pixels(
    data: Array, valid: npt.NDArray[np.bool_], channels: int = 3, value_range: tuple[float, float] | None = None
) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
    """What training keeps of an image: the bands of `to_channels`, whole 8-bit values as they are.

    Returns:
        (channels, H, W) uint8 where the values are 8 bits and no range is given, else float32 in 0-1.

    Raises:
        ValueError: The image has too few bands.
    """
    enough = len(data) >= channels or channels == 3
    if data.dtype != np.uint8 or value_range is not None or not enough:
        return to_channels(data, valid, channels, value_range)
    bands = data[:channels] if len(data) >= channels else np.repeat(data[:1], 3, axis=0)
    return np.asarray(bands if valid.all() else np.where(valid, bands, np.uint8(0)))


def range_warning(
    data: Array, valid: npt.NDArray[np.bool_], value_range: tuple[float, float] | None = None
) -> str | None:
    """One line if the valid values span under a tenth of the range or mostly lie outside it, else None."""
    low, high = _checked_range(data, value_range)
    values = data[:, valid]
    if not values.size:
        return None
    seen = float(values.min()), float(values.max())
    used = float(np.ptp(np.clip(seen, low, high))) / (high - low)
    outside = float(np.mean((values < low) | (values > high)))
    if used >= MIN_USED_RANGE and outside <= 0.5:
        return None
    problem = f"{outside:.0%} of them lie outside" if outside > 0.5 else f"only {used:.1%} of it is used"
    return (
        f"values {seen[0]:g} to {seen[1]:g} are read with the range {low:g} to {high:g}, {problem}; "
        f"set --input-range {seen[0]:g} {seen[1]:g}, or the sensor's range, if that is wrong"
    )
