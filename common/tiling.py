"""Tiled inference: cut an image into overlapping windows, predict them in batches, blend them without seams.

The windows of an image form a regular grid, so the blending weights are the product of a row profile and a column
profile. They are normalized per axis beforehand (a partition of unity: at every pixel the weights of the windows over
it sum to one); adding up ``weight * prediction`` is then the result, with no weight map to keep and no division at the
end. Rows that no later window touches are final, which is what a streaming reader needs: `plan_windows`,
`BlendWeights` and `predict_windows` know nothing about where pixels come from or go to; `predict_array` joins them for
an image in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Blend = Literal["hann", "gaussian", "mean"]
Tta = Literal["none", "flips", "d4"]
Predictor = Callable[[Tensor], Tensor]

MAX_OVERLAP = 0.9
OUT_OF_MEMORY_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels: rows ``row .. row + height - 1``, columns ``col .. col + width - 1``."""

    row: int
    col: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slice that cut the window out of an array."""
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)


def plan_axis(size: int, tile: int, overlap: float) -> list[int]:
    """First pixels of the windows along one axis: the fewest that keep the overlap, evenly spread, none outside.

    Neighbors are at most ``round(tile * (1 - overlap))`` pixels apart. Where the last window would stick out, all
    strides shrink a little; shifting only that window inwards would give it a much larger overlap than the others.
    """
    if size <= tile:
        return [0]
    stride = max(1, round(tile * (1.0 - overlap)))
    gaps = math.ceil((size - tile) / stride)
    return [index * (size - tile) // gaps for index in range(gaps + 1)]


def plan_windows(height: int, width: int, tile: int, overlap: float) -> list[Window]:
    """Windows of ``min(tile, height) x min(tile, width)`` pixels that cover an image exactly, row by row.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        tile: Side of a window in pixels.
        overlap: Least fraction of a window shared with its neighbor, 0-0.9.

    Raises:
        ValueError: ``tile`` or a side is not positive, or ``overlap`` is outside 0-0.9.
    """
    if tile <= 0:
        raise ValueError(f"--tile-size must be a positive number of pixels, got {tile}")
    if not 0.0 <= overlap <= MAX_OVERLAP:
        raise ValueError(f"--overlap must lie between 0 and {MAX_OVERLAP} (a fraction of the tile), got {overlap}")
    if height <= 0 or width <= 0:
        raise ValueError(f"an image of {height} x {width} pixels has nothing to predict")
    size = min(tile, height), min(tile, width)
    columns = plan_axis(width, tile, overlap)
    return [Window(row, col, *size) for row in plan_axis(height, tile, overlap) for col in columns]


def blend_profile(length: int, blend: Blend) -> npt.NDArray[np.float64]:
    """Weight of each pixel along one side of a window, before normalization; symmetric and strictly positive.

    ``hann`` (a raised cosine sampled at pixel centers) fades to nearly nothing at the window's border, where a network
    sees the least context; ``gaussian`` has a standard deviation of an eighth of the side; ``mean`` weights all pixels
    alike.
    """
    position = (np.arange(length) + 0.5) / length
    if blend == "hann":
        return np.asarray(np.sin(np.pi * position) ** 2)
    if blend == "gaussian":
        return np.asarray(np.exp(-0.5 * ((position - 0.5) * 8.0) ** 2))
    if blend == "mean":
        return np.ones(length)
    raise ValueError(f"unknown blending {blend!r}; known: {', '.join(get_args(Blend))}")


class BlendWeights:
    """Weights of a grid of windows; at each pixel of the image those of all windows over it sum to one."""

    def __init__(self, windows: Sequence[Window], blend: Blend = "hann") -> None:
        self._rows = _normalized_profiles(sorted({w.row for w in windows}), windows[0].height, blend)
        self._cols = _normalized_profiles(sorted({w.col for w in windows}), windows[0].width, blend)
        if len(self._rows) * len(self._cols) != len(windows):
            raise ValueError(f"{len(windows)} windows do not form a full grid, as plan_windows() makes it")

    def __call__(self, window: Window, device: torch.device | str = "cpu") -> Tensor:
        """Weights (height, width) float32 of one window of the grid."""
        rows, cols = self._rows[window.row].to(device), self._cols[window.col].to(device)
        return rows[:, None] * cols[None, :]


def _normalized_profiles(starts: list[int], length: int, blend: Blend) -> dict[int, Tensor]:
    profile = blend_profile(length, blend)
    total = np.zeros(starts[-1] + length)
    for start in starts:
        total[start : start + length] += profile
    return {start: torch.from_numpy(profile / total[start : start + length]).float() for start in starts}


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pad (N, C, H, W) at the bottom and right to sides divisible by ``multiple``.

    The picture is mirrored; along an axis too short for that, its last row or column is repeated.
    """
    for axis in (-2, -1):
        size = images.shape[axis]
        missing = -size % multiple
        if missing:
            padding = (0, 0, 0, missing) if axis == -2 else (0, missing, 0, 0)
            images = F.pad(images, padding, mode="reflect" if missing < size else "replicate")
    return images


def predict_symmetric(images: Tensor, predict: Predictor, tta: Tta = "none") -> Tensor:
    """Mean prediction over the symmetries of the square, each undone on the output (test-time augmentation).

    Args:
        images: (N, C, H, W).
        predict: Maps (N, C, h, w) to (N, K, h, w).
        tta: ``none`` = as is; ``flips`` = identity, horizontal, vertical, both; ``d4`` = those and their transposes
            (the four rotations and four reflections).

    Returns:
        (N, K, H, W) float32.
    """
    if tta not in get_args(Tta):
        raise ValueError(f"unknown test-time augmentation {tta!r}; known: {', '.join(get_args(Tta))}")
    flips: list[list[int]] = [[]] if tta == "none" else [[], [-1], [-2], [-2, -1]]
    orientations = [(transposed, axes) for transposed in ([False, True] if tta == "d4" else [False]) for axes in flips]
    total: Tensor | None = None
    for transposed, axes in orientations:
        turned = images.transpose(-2, -1) if transposed else images
        turned = turned.flip(axes).contiguous(memory_format=torch.channels_last)
        output = predict(turned).float().flip(axes)
        output = output.transpose(-2, -1) if transposed else output
        total = output if total is None else total + output
    assert total is not None  # there is always the identity
    return total / len(orientations)


@torch.inference_mode()
def _predict_batch(
    images: Tensor,
    predict: Predictor,
    tta: Tta,
    stride: int,
    device: torch.device,
    amp_dtype: torch.dtype | None,
) -> Tensor:
    height, width = images.shape[-2:]
    padded = pad_to_multiple(images.to(device, dtype=torch.float32), stride)
    with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
        output = predict_symmetric(padded, predict, tta)
    if output.shape[-2:] != padded.shape[-2:]:
        raise ValueError(
            f"the network gave {tuple(output.shape[-2:])} outputs for {tuple(padded.shape[-2:])} pixels; "
            "upsample them to the input's size inside `predict`"
        )
    return output[..., :height, :width]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out; CUDA has a class for it, the CPU and MPS only a message."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error).lower() for sign in OUT_OF_MEMORY_SIGNS)


def predict_windows(
    read: Callable[[Window], Tensor],
    windows: Sequence[Window],
    predict: Predictor,
    *,
    batch_size: int = 4,
    tta: Tta = "none",
    stride: int = 32,
    device: torch.device | str = "cpu",
    amp_dtype: torch.dtype | None = None,
) -> Iterator[tuple[Window, Tensor]]:
    """Predict windows in batches, in their order; when memory runs out the batch is halved for good and tried again.

    Args:
        read: Gives the pixels (C, height, width) float of a window.
        windows: Windows of one size.
        predict: Maps (N, C, h, w) float32 in channels-last order to (N, K, h, w).
        batch_size: Windows predicted at once.
        tta: See `predict_symmetric`.
        stride: Sides are padded to a multiple of this (the network's total downsampling) and cropped back.
        device: Where ``predict`` runs.
        amp_dtype: Mixed precision; None = full precision.

    Yields:
        Each window with its prediction (K, height, width) float32 on ``device``.

    Raises:
        ValueError: A single window does not fit in memory.
    """
    if batch_size < 1:
        raise ValueError(f"the tile batch must be at least 1, got {batch_size}")
    done = 0
    while done < len(windows):
        batch = windows[done : done + batch_size]
        output: Tensor | None = None
        try:
            images = torch.stack([read(window) for window in batch])
            output = _predict_batch(images, predict, tta, stride, torch.device(device), amp_dtype)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                size = f"{batch[0].height} x {batch[0].width}"
                raise ValueError(f"out of memory on {device} with one tile of {size} px; lower --tile-size") from error
        if output is None:  # outside the except block, which keeps the failed batch's tensors alive
            batch_size = len(batch) // 2
            if torch.device(device).type == "cuda":
                torch.cuda.empty_cache()
            continue
        yield from zip(batch, output, strict=True)
        done += len(batch)


def _accumulator(shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Zeros on the device if they take at most a quarter of its free memory, else on the CPU."""
    if device.type == "cuda" and 4 * math.prod(shape) <= torch.cuda.mem_get_info(device)[0] // 4:
        return torch.zeros(shape, device=device)
    return torch.zeros(shape)


def _check_finite(result: npt.NDArray[np.float32], image: npt.NDArray[Any] | Tensor) -> None:
    if np.isfinite(result).all():
        return
    if not bool(torch.isfinite(torch.as_tensor(image)).all()):
        raise ValueError("the image holds NaN or infinite values; fill its nodata pixels before prediction")
    raise ValueError("the network gave NaN or infinite outputs; try --amp off, or check the checkpoint")


def predict_array(
    image: npt.NDArray[np.float32] | Tensor,
    predict: Predictor,
    *,
    num_outputs: int,
    tile: int,
    overlap: float = 0.5,
    batch_size: int = 4,
    blend: Blend = "hann",
    tta: Tta = "none",
    stride: int = 32,
    device: torch.device | str = "cpu",
    amp_dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.float32]:
    """Predict an image of any size tile by tile and blend the tiles.

    An image no larger than a tile is one window, predicted in one go.

    Args:
        image: (C, H, W) float, already normalized, without NaN.
        predict: Maps (N, C, h, w) to what is averaged, as a rule probabilities (N, num_outputs, h, w). Under
            ``amp_dtype`` take the sigmoid or softmax of ``logits.float()``: bfloat16 probabilities have two digits.
        num_outputs: Channels of the prediction.
        tile: Side of a window; rounded up to a multiple of ``stride``, so that inner windows see no padding.
        overlap: Least fraction of a window shared with its neighbor, 0-0.9.
        batch_size: Windows predicted at once; halved when memory runs out.
        blend: See `blend_profile`.
        tta: See `predict_symmetric`.
        stride: Total downsampling of the network.
        device: Where ``predict`` runs.
        amp_dtype: Mixed precision; None = full precision.
        progress: Called after every window with the number of windows done and their total.

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
    windows = plan_windows(height, width, tile + -tile % stride if tile > 0 else tile, overlap)
    weights = BlendWeights(windows, blend)
    total = _accumulator((num_outputs, height, width), torch.device(device))

    def read(window: Window) -> Tensor:
        part = image[:, window.slices[0], window.slices[1]]
        return part if isinstance(part, Tensor) else torch.from_numpy(np.array(part, dtype=np.float32))

    predictions = predict_windows(
        read, windows, predict, batch_size=batch_size, tta=tta, stride=stride, device=device, amp_dtype=amp_dtype
    )
    for done, (window, output) in enumerate(predictions, start=1):
        if output.shape[0] != num_outputs:
            raise ValueError(f"the network gave {output.shape[0]} output channels, expected {num_outputs}")
        rows, cols = window.slices
        total[:, rows, cols].addcmul_(output.to(total.device), weights(window, total.device))
        if progress is not None:
            progress(done, len(windows))
    result: npt.NDArray[np.float32] = total.cpu().numpy()
    _check_finite(result, image)
    return result
