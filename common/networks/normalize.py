"""From pixels to what a network reads: the one place where training and inference normalize images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor


def _bands(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A value per band, (C, 1, 1)."""
    with torch.inference_mode(mode=False):
        return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


_kept_bands = lru_cache(_bands)
"""The same, copied to the device once: every copy waits for it."""


def to_unit(images: Tensor, value_range: tuple[float, float] | None = None) -> Tensor:
    """What `common.images.ranges.scale_to_unit` makes of whole numbers, where the tensor is.

    Args:
        images: (N, C, H, W) uint8 or uint16, or floats in 0...1, which stay.
        value_range: values that become 0 and 1; None = those of the number type.

    Returns:
        (N, C, H, W) float32 in 0...1.
    """
    if images.is_floating_point():
        return images.to(torch.float32)
    own = (0.0, float(torch.iinfo(images.dtype).max))
    low, high = value_range or own
    unit = images.to(torch.float32)
    if low:
        unit.sub_(low)
    unit.div_(high - low)
    return unit if (low, high) == own else unit.clamp_(0.0, 1.0)


def normalize(images: Tensor, normalization: Mapping[str, object]) -> Tensor:
    """Minus ``mean``, divided by ``std``, where a card names them.

    Bytes travel to the device as they are, a quarter of the traffic.

    Args:
        images: (N, C, H, W) uint8, or float in 0...1.
        normalization: the card's: ``mean`` and ``std`` of values in 0...1 by band.

    Returns:
        (N, C, H, W) float.
    """
    full = 255.0 if images.dtype == torch.uint8 else 1.0
    if images.dtype == torch.uint8:
        images = images.to(torch.float32, memory_format=torch.channels_last)
    if "mean" not in normalization:
        return images / full if full > 1 else images
    bands = _bands if images.device.type == "cpu" else _kept_bands
    mean, std = (bands(tuple(normalization[name]), images.dtype, images.device) for name in ("mean", "std"))  # type: ignore[arg-type]
    return (images - full * mean).mul_(1 / (full * std)) if full > 1 else (images - mean) / std
