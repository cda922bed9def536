"""What a network learns from: samples, and datasets of them."""

from __future__ import annotations

from typing import Any, Protocol

Sample = dict[str, Any]
"""``image`` (C, H, W) uint8 or float32 in 0...1, ``target`` (H, W) int64 (255 = ignored), ``id`` (its files, for
messages) and whatever tensors or names the task's criterion reads besides."""


class SegmentationData(Protocol):
    """A sized, indexable dataset of samples."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, key: Any, /) -> Sample:  # noqa: ANN401 - a `common.data.sampling.Key`, or an index alone
        """One sample."""
