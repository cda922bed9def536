"""Tiled inference: cut an image into overlapping windows, predict them in batches, blend them without seams.

The weights of the windows over a pixel sum to one (see windows.py), so weighted predictions are added up and that
is the result. Rows that no later window touches are final: `predict_rows` hands them out as soon as they are, and knows
nothing about where pixels come from or go to. `predict_array` collects them for an image in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.command.cli import is_out_of_memory
from common.images.ranges import Range
from common.images.windows import Window
from common.inference.read_ahead import read_ahead
from common.inference.windows import (
    ALIGNED,
    BlendWeights,
    cheapest_tile,
    check_overlap,
    plan_windows,
    shared_pixels,
)
from common.networks.normalize import to_unit
from common.networks.padding import pad_to_multiple

Predictor = Callable[[Tensor], Tensor]
Read = Callable[[Window], Tensor | None]

CPU = torch.device("cpu")
NOT_FINITE = "the network gave NaN or infinite outputs; try --amp off, or check the checkpoint"


@dataclass(frozen=True)
class Tiling:
    """How an image is cut into tiles, and how those are predicted.

    Raises:
        ValueError: the batch is empty.
    """

    tile: int = 512
    """Side of a window; rounded up to a multiple of ``stride``, so that inner windows see no padding.
    0 = for each image what takes the least time, any rectangle of at most ``most`` pixels."""
    overlap: float = 0.25
    """What a window shares with its neighbor at least: a fraction of its side, 0-0.9, or pixels, from 2 on."""
    batch: int = 4
    """Windows predicted at once."""
    stride: int = 32
    """Sides are padded to a multiple of this (the network's total downsampling) and cropped back."""
    device: torch.device = CPU
    """Where the network runs."""
    amp_dtype: torch.dtype | None = None
    """Mixed precision; None = full precision."""
    most: int = 0
    """Pixels of a window that is planned."""
    value_range: Range | None = None
    """What means 0 and 1 in pixels of whole numbers; None = their type's. Floats are in 0...1."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.batch < 1:
            raise ValueError(f"the tile batch must be at least 1, got {self.batch}")
        if self.tile < 0 or (self.tile == 0 and self.most < 1):
            raise ValueError(f"--tile-size must be a positive number of pixels, got {self.tile}")
        check_overlap(self.overlap, self.tile)

    def windows(self, size: tuple[int, int]) -> list[Window]:
        """The windows of an image of a height and width."""
        side = self.tile + -self.tile % self.stride
        shared = shared_pixels(self.overlap, side)
        if side:
            return plan_windows(*size, (side, side), shared)
        return plan_windows(*size, cheapest_tile(size, shared, self.most, math.lcm(self.stride, ALIGNED)), shared)

    def redundancy(self, size: tuple[int, int]) -> float:
        """Pixels that are predicted for each one of an image."""
        return sum(window.height * window.width for window in self.windows(size)) / math.prod(size)

    def edges(self, size: tuple[int, int]) -> list[int]:
        """Rows at which the bands of `predict_rows` begin, and the last one's end."""
        return [*sorted({window.row for window in self.windows(size)}), size[0]]


@torch.inference_mode()
def _predict_batch(images: Tensor, predict: Predictor, tiling: Tiling) -> Tensor:
    height, width = images.shape[-2:]
    images = to_unit(images.to(tiling.device, non_blocking=True), tiling.value_range)
    padded = pad_to_multiple(images, tiling.stride)
    amp = tiling.amp_dtype
    with torch.autocast(tiling.device.type, dtype=amp, enabled=amp is not None):
        output = predict(padded.contiguous(memory_format=torch.channels_last)).float()
    if output.shape[-2:] != padded.shape[-2:]:
        raise ValueError(
            f"the network gave {tuple(output.shape[-2:])} outputs for {tuple(padded.shape[-2:])} pixels; "
            "upsample them to the input's size inside `predict`"
        )
    return output[..., :height, :width]


def predict_windows(
    read: Read, windows: Sequence[Window], predict: Predictor, tiling: Tiling, *, ahead: int = 0
) -> Generator[tuple[Window, Tensor]]:
    """Predict windows in batches, in their order; when memory runs out the batch is halved for good and tried again.

    A batch never spans two rows of windows, so what is computed for a row does not depend on where the work began.

    Args:
        read: Gives the pixels (C, height, width) of a window, whole numbers or floats in 0...1, or None to leave it
            out. Whole numbers travel to the device as they are.
        windows: Windows of one size.
        predict: Maps (N, C, h, w) float32 in channels-last order to (N, K, h, w).
        tiling: Batch, padding, device and precision.
        ahead: Batches that a thread reads while the network works; 0 = none.

    Yields:
        Each window with its prediction (K, height, width) float32 on the device.

    Raises:
        ValueError: A single window does not fit in memory.
    """
    batch_size = tiling.batch
    pinned = tiling.device.type == "cuda"
    with closing(read_ahead(_batches(read, windows, batch_size, pinned=pinned), ahead)) as batches:
        for batch, images in batches:
            done = 0
            while done < len(batch):
                output: Tensor | None = None
                part = images[done : done + batch_size]
                try:
                    output = _predict_batch(part, predict, tiling)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    if len(part) == 1:
                        size = f"{batch[0].height} x {batch[0].width}"
                        raise ValueError(
                            f"out of memory on {tiling.device} with one tile of {size} px; lower --tile-size"
                        ) from error
                if output is None:  # outside the except block, which keeps the failed batch's tensors alive
                    batch_size = len(part) // 2
                    if tiling.device.type == "cuda":
                        torch.cuda.empty_cache()
                    continue
                yield from zip(batch[done : done + len(part)], output, strict=True)
                done += len(part)


def _batches(
    read: Read, windows: Sequence[Window], size: int, *, pinned: bool
) -> Iterator[tuple[list[Window], Tensor]]:
    """Windows and their stacked pixels, in memory from which a GPU fetches them by itself; empty ones are left out."""

    def stack(pixels: list[Tensor]) -> Tensor:
        stacked = torch.stack(pixels) if len(pixels) > 1 else pixels[0][None]
        return stacked.pin_memory() if pinned else stacked

    for _, row in groupby(windows, key=lambda window: window.row):
        batch: list[Window] = []
        pixels: list[Tensor] = []
        for window in row:
            part = read(window)
            if part is None:
                continue
            batch, pixels = [*batch, window], [*pixels, part]
            if len(batch) == size:
                yield batch, stack(pixels)
                batch, pixels = [], []
        if batch:
            yield batch, stack(pixels)


class _Sums:
    """Sums (K, rows, W) of the rows of the image under one row of windows, which moves down."""

    def __init__(self, shape: tuple[int, int, int], first: int, device: torch.device) -> None:
        self._sums, self._first = _accumulator(shape, device), first

    def add(self, window: Window, output: Tensor, weights: BlendWeights) -> None:
        """Add a window's weighted prediction; what no other window covers is only copied."""
        output = output.to(self._sums.device)
        place = self._sums[:, window.row - self._first :, window.col :]
        for rows, cols, part in weights.parts(window):
            if part is None:
                place[:, rows, cols] = output[:, rows, cols]
            else:
                place[:, rows, cols].addcmul_(output[:, rows, cols], part.to(output.device))

    def upper(self, count: int) -> Tensor:
        """The uppermost rows, (K, count, W); they change with the next one that is called."""
        return self._sums[:, :count]

    def move(self, count: int) -> None:
        """Move down by so many rows."""
        kept = self._sums.shape[1] - count
        self._sums[:, :kept] = self._sums[:, count:].clone()
        self._sums[:, kept:] = 0
        self._first += count


def _accumulator(shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Zeros on the device if they take at most a quarter of its free memory, else on the CPU."""
    if device.type == "cuda" and 4 * math.prod(shape) <= torch.cuda.mem_get_info(device)[0] // 4:
        return torch.zeros(shape, device=device)
    return torch.zeros(shape)


def predict_rows(
    read: Read,
    size: tuple[int, int],
    predict: Predictor,
    num_outputs: int,
    tiling: Tiling,
    *,
    first_row: int = 0,
    last_row: int | None = None,
    ahead: int = 0,
) -> Generator[tuple[int, Tensor]]:
    """Predict an image tile by tile, blend the tiles, and hand out bands of rows as soon as they are final.

    Memory holds the rows under one row of tiles, whatever the image's height. Only one value per pixel is kept for each
    output: the weights sum to one.

    Args:
        read: Gives the pixels (C, height, width) float of a window, in order; None = nothing to predict there (0).
        size: Height and width of the image.
        predict: Maps (N, C, h, w) to what is averaged, as a rule probabilities (N, num_outputs, h, w). Under
            mixed precision take the sigmoid or softmax of ``logits.float()``: bfloat16 probabilities have two digits.
        num_outputs: Channels of the prediction.
        tiling: How the image is cut.
        first_row: Where to begin: a row at which a band begins.
        last_row: Where to stop: the end of a band; None = that of the image. The bands in between are the same, bit for
            bit, as those of a run over the whole image.
        ahead: Batches that a thread reads while the network works; 0 = none.

    Yields:
        The first row of a band, and the band (num_outputs, rows, W) float32 on the device, which changes when the next
        one is asked for; together they cover the rows from ``first_row`` to ``last_row`` (excluded).

    Raises:
        ValueError: Bad tile or overlap, rows at which no band ends, a prediction of the wrong shape, memory too small
            for one tile.
    """
    height, width = size
    windows, edges = tiling.windows(size), tiling.edges(size)
    weights = BlendWeights(windows)
    last_row = height if last_row is None else last_row
    for row in (first_row, last_row):
        if row not in edges:
            raise ValueError(f"row {row} is not the end of a band; those are {edges[1:]}")
    wanted = [window for window in windows if window.row + window.height > first_row and window.row < last_row]
    bands = [band for band in pairwise(edges) if (wanted[0].row if wanted else height) <= band[0] < last_row]
    sums = _Sums((num_outputs, windows[0].height, width), bands[0][0] if bands else height, tiling.device)
    predictions = predict_windows(read, wanted, predict, tiling, ahead=ahead)
    with closing(predictions):
        for window, output in predictions:
            if output.shape[0] != num_outputs:
                raise ValueError(f"the network gave {output.shape[0]} output channels, expected {num_outputs}")
            while bands[0][1] <= window.row:
                yield from _finished(sums, bands.pop(0), first_row)
            sums.add(window, output, weights)
    for band in bands:
        yield from _finished(sums, band, first_row)


def _finished(sums: _Sums, band: tuple[int, int], first_row: int) -> Iterator[tuple[int, Tensor]]:
    """A band's rows, unless it was handed out before: its sums then lack the windows above."""
    count = band[1] - band[0]
    if band[0] >= first_row:
        yield band[0], sums.upper(count)
    sums.move(count)


def predict_array(
    image: npt.NDArray[np.float32] | Tensor,
    predict: Predictor,
    num_outputs: int,
    tiling: Tiling,
) -> npt.NDArray[np.float32]:
    """Predict an image in memory tile by tile and blend the tiles.

    An image no larger than a tile is one window, predicted in one go.

    Args:
        image: (C, H, W) float, already normalized, without NaN.
        predict: See `predict_rows`.
        num_outputs: Channels of the prediction.
        tiling: How the image is cut.

    Returns:
        (num_outputs, H, W) float32.

    Raises:
        ValueError: Wrong shape or type of image or prediction, bad tile or overlap, memory too small for one tile, NaN.
    """
    is_float = image.is_floating_point() if isinstance(image, Tensor) else np.issubdtype(image.dtype, np.floating)
    if image.ndim != 3 or not is_float:
        raise ValueError(
            f"expected a normalized float image (C, H, W), got {image.dtype} of shape {tuple(image.shape)}"
        )
    height, width = image.shape[-2:]

    def read(window: Window) -> Tensor:
        part = image[:, window.slices[0], window.slices[1]]
        return part if isinstance(part, Tensor) else torch.from_numpy(np.array(part, dtype=np.float32))

    result = np.empty((num_outputs, height, width), np.float32)
    for row, band in predict_rows(read, (height, width), predict, num_outputs, tiling):
        result[:, row : row + band.shape[1]] = band.cpu().numpy()
    _check_finite(result, image)
    return result


def _check_finite(result: npt.NDArray[np.float32], image: npt.NDArray[Any] | Tensor) -> None:
    if np.isfinite(result).all():
        return
    if not bool(torch.isfinite(torch.as_tensor(image)).all()):
        raise ValueError("the image holds NaN or infinite values; fill its nodata pixels before prediction")
    raise ValueError(NOT_FINITE)
