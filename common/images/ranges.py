"""Values of images of any number type as 0-1, by a range that is known beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Range = tuple[float, float]
MIN_USED_RANGE = 0.1


def dtype_range(dtype: npt.DTypeLike) -> Range:
    """Values that mean black and white in a number type: 0-255, 0-65535, ..., and 0-1 for floats and booleans."""
    kind = np.dtype(dtype)
    return (0.0, float(np.iinfo(kind).max)) if kind.kind in "ui" else (0.0, 1.0)


def _checked_range(dtype: npt.DTypeLike, value_range: Range | None) -> Range:
    low, high = dtype_range(dtype) if value_range is None else value_range
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"--input-range needs two numbers LO < HI, got {low} {high}")
    return low, high


def to_unit(image: Array) -> npt.NDArray[np.float32]:
    """An image (C, H, W), uint8 or already in 0-1, as float32 in 0-1."""
    return image.astype(np.float32) * np.float32(1 / 255 if image.dtype == np.uint8 else 1)


def scale_to_unit(
    data: Array, valid: npt.NDArray[np.bool_], value_range: Range | None = None
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
    low, high = _checked_range(data.dtype, value_range)
    whole = data.dtype.kind in "ui"
    wide = data.dtype.itemsize > 4 or (whole and data.dtype.itemsize > 2)
    scaled: npt.NDArray[np.floating[Any]] = data.astype(np.float64 if wide else np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what is valid and not finite is refused
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
    data: Array, valid: npt.NDArray[np.bool_], channels: int = 3, value_range: Range | None = None
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
    data: Array, valid: npt.NDArray[np.bool_], channels: int = 3, value_range: Range | None = None
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


def to_numbers(data: Array, valid: npt.NDArray[np.bool_], channels: int = 3, value_range: Range | None = None) -> Array:
    """The bands that a network reads, in as few bytes as will do: `common.networks.normalize.to_unit` does the rest.

    Args:
        data: (C, H, W) of any number type.
        valid: (H, W).
        channels: How many bands the network reads.
        value_range: Values that become 0 and 1; None = `dtype_range`.

    Returns:
        (channels, H, W), a pixel's values side by side in memory: numbers of 8 or 16 bits as they are, with 0 where
        they are not valid, if that becomes 0; everything else as float32 in 0-1.

    Raises:
        ValueError: The image has too few bands.
    """
    low, _ = _checked_range(data.dtype, value_range)
    if data.dtype not in (np.uint8, np.uint16) or low < 0 or (len(data) < channels and channels != 3):
        return to_channels(data, valid, channels, value_range)
    bands = data[:channels] if len(data) >= channels else np.broadcast_to(data[:1], (3, *data.shape[1:]))
    copied = np.ascontiguousarray(bands.transpose(1, 2, 0))
    if not valid.all():
        copied[~valid] = 0
    return copied.transpose(2, 0, 1)


class ValueRanges:
    """Which values mean black and white in images of each number type, and which values they were seen to hold.

    A range that is given holds for all types. A range that was stored in training holds for the types that were read
    with it, and for others of more than 8 bits if it is not just those types' own; eight bits and more bits are never
    taken for each other. Everything else has its type's own range.

    Args:
        given: the user's, ``--input-range``.
        stored: ``range`` and ``range_types`` of a checkpoint's normalization.

    Raises:
        ValueError: the range is empty or not finite.
    """

    def __init__(self, given: Range | None = None, stored: Mapping[str, Any] | None = None) -> None:
        self.given = given
        self._stored, self._types = _read_stored(stored or {})
        self._own = self._stored is not None and {dtype_range(kind) for kind in self._types} == {self._stored}
        for one in (given, self._stored):
            _checked_range(np.dtype(np.uint8), one)
        self._seen: dict[str, _Seen] = {}

    def of(self, dtype: npt.DTypeLike) -> Range | None:
        """Values that mean black and white in images of a number type; None = the type's own."""
        if self.given is not None:
            return self.given
        kind = np.dtype(dtype).name
        same_depth = (kind == "uint8") == ("uint8" in self._types)
        return self._stored if kind in self._types or (same_depth and not self._own) else None

    def see(self, data: Array, valid: npt.NDArray[np.bool_]) -> None:
        """Take note of the valid values of an image: data (C, H, W), valid (H, W)."""
        values, kind = data if valid.all() else data[:, valid], data.dtype.name
        low, high = _checked_range(data.dtype, self.of(data.dtype))
        seen = self._seen.setdefault(kind, _Seen(low, high))
        if values.size:
            seen.low, seen.high = min(seen.low, float(values.min())), max(seen.high, float(values.max()))
            seen.values += values.size
            if seen.low < low or seen.high > high:
                seen.outside += int(np.count_nonzero((values < low) | (values > high)))

    def describe(self) -> str:
        """What was seen: ``uint16 12 to 4095, read with the range 0 to 65535``."""
        return "; ".join(f"{kind} {seen}" for kind, seen in sorted(self._seen.items())) or "none"

    def warnings(self) -> list[str]:
        """A line for each number type whose values use under a tenth of the range or mostly lie outside of it."""
        return [line for seen in self._seen.values() if (line := seen.warning()) is not None]

    def card(self) -> dict[str, Any]:
        """What a checkpoint says about it: the range of all types that were read with one; 8 bits alone need none."""
        types = sorted(kind for kind in self._seen if kind != "uint8" or self.given is not None)
        ranges = {(self._seen[kind].black, self._seen[kind].white) for kind in types}
        return {"range": list(ranges.pop()), "range_types": types} if len(ranges) == 1 else {}


def _read_stored(stored: Mapping[str, Any]) -> tuple[Range | None, set[str]]:
    """The range of a checkpoint, and the types that were read with it."""
    known, types = stored.get("range"), stored.get("range_types") or []
    if known is None or isinstance(known, str):  # text: by each image
        return None, set()
    try:
        low, high = (float(value) for value in known)
        return (low, high), {np.dtype(kind).name for kind in types}
    except (TypeError, ValueError) as error:
        raise ValueError(f"the checkpoint's range of values, {known!r} of {types!r}, is none; train anew") from error


@dataclass
class _Seen:
    """The valid values of images of one number type, and the range that they are read with."""

    black: float
    white: float
    low: float = math.inf
    high: float = -math.inf
    values: int = 0
    outside: int = 0

    def __str__(self) -> str:
        held = f"{self.low:g} to {self.high:g}" if self.values else "without any valid pixel"
        return f"{held}, read with the range {self.black:g} to {self.white:g}"

    def warning(self) -> str | None:
        if not self.values:
            return None
        used = float(np.ptp(np.clip((self.low, self.high), self.black, self.white))) / (self.white - self.black)
        outside = self.outside / self.values
        if used >= MIN_USED_RANGE and outside <= 0.5:
            return None
        problem = f"{outside:.0%} of them lie outside" if outside > 0.5 else f"only {used:.1%} of it is used"
        return (
            f"values {self.low:g} to {self.high:g} are read with the range {self.black:g} to {self.white:g}, {problem};"
            f" set --input-range {self.low:g} {self.high:g}, or the sensor's range, if that is wrong"
        )


def range_warning(data: Array, valid: npt.NDArray[np.bool_], value_range: Range | None = None) -> str | None:
    """One line if the valid values of an image hardly fit its range (see `ValueRanges.warnings`), else None."""
    ranges = ValueRanges(value_range)
    ranges.see(data, valid)
    return next(iter(ranges.warnings()), None)
