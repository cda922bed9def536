"""Images of any size for networks that halve it several times."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pad (N, C, H, W) at the bottom and right to sides divisible by ``multiple``.

    The picture is mirrored; along an axis too short for that, its last row or column is repeated.
    """
    if torch.compiler.is_exporting():
        return _padded_without_branches(images, multiple)
    for axis in (-2, -1):
        size = images.shape[axis]
        missing = -size % multiple
        if missing:
            padding = (0, 0, 0, missing) if axis == -2 else (0, missing, 0, 0)
            images = F.pad(images, padding, mode="reflect" if missing < size else "replicate")
    return images


def _padded_without_branches(images: Tensor, multiple: int) -> Tensor:
    """The same in a graph that must hold for any size: rows and columns are picked by their numbers."""
    for axis in (-2, -1):
        last = images.shape[axis] - 1
        places = torch.arange(last + 1 + -(last + 1) % multiple, device=images.device)
        mirrored = last - (places - last).abs()
        images = images.index_select(axis, torch.where(mirrored.min() >= 0, mirrored, places.clamp(max=last)))
    return images
