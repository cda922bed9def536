"""What the best network of a run predicted, kept for everyone who looks at it: each sample is predicted once."""

from __future__ import annotations

import tempfile
import weakref
import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from common.metrics.suspects import Suspicion, suspect

IN_MEMORY = 64 << 20
"""Bytes of compressed masks beyond which they lie in a temporary file."""


class Predicted:
    """The class masks of samples, and what speaks against their labels.

    Args:
        classify: probabilities (1 or K, H, W) -> class indices (H, W).
    """

    def __init__(self, classify: Callable[[NDArray[np.float32]], NDArray[np.uint8]]) -> None:
        self._classify = classify
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - open as long as this object lives
        weakref.finalize(self, self._file.close)
        self._places: dict[str, tuple[int, int, tuple[int, ...]]] = {}
        self.suspicions: dict[str, Suspicion | None] = {}
        """By sample; None = nothing speaks against its label."""

    def add(self, name: str, probability: NDArray[np.float32], truth: NDArray[np.uint8]) -> None:
        """Take in a sample: probabilities (1 or K, H, W), truth (H, W) with 255 = ignored."""
        self.suspicions[name] = suspect(probability, truth)
        mask = self._classify(probability)
        packed = zlib.compress(mask.tobytes(), 1)
        self._places[name] = self._file.seek(0, 2), len(packed), mask.shape
        self._file.write(packed)

    def mask(self, name: str) -> NDArray[np.uint8]:
        """The class indices (H, W) of a sample that was taken in."""
        start, length, shape = self._places[name]
        self._file.seek(start)
        return np.frombuffer(zlib.decompress(self._file.read(length)), np.uint8).reshape(shape)
