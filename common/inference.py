"""Inference of ordinary color images: from files to probabilities, masks and overlays, one input after another.

Networks read an image at the scale they were trained at; tiles, blending and what is written are in the input's pixels.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
import tyro
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from torch import Tensor, nn
from tqdm import tqdm

from common.checkpoint import ModelCard, atomic_path
from common.cli import PARTIAL, say
from common.devices import Precision
from common.evaluation import class_probabilities, foreground_probability
from common.outputs import check_disk
from common.pixels import overlay, stretch
from common.rasters import (
    NODATA,
    Raster,
    mask_suffix,
    output_stems,
    range_warning,
    read_raster,
    scale_to_unit,
    write_mask,
    write_probability,
)
from common.tiling import Tta, predict_array

Range = tuple[float, float]
LoadNetwork = Callable[[Path], tuple[nn.Module, ModelCard]]
LONG_RUN = 60.0
"""Seconds from which on an estimate is worth a line."""


@dataclass(frozen=True)
class InferConfig:
    """Flags that every task's inference understands."""

    input: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Images, or folders of them (not recursive)."""
    checkpoint: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Checkpoint(s); several are averaged. Default: the newest run's best."""
    output_dir: Path | None = None
    """Where results go; default outputs/<task>."""
    tile_size: int = 0
    """Side of the tiles in which larger images are predicted, pixels (0 = what suits the network)."""
    overlap: float = 0.25
    """Share of a tile that the next one covers again."""
    tta: bool = False
    """Average over flips: four times slower, a little better."""
    threshold: float | None = None
    """Two classes: foreground where P is at least this; default: the checkpoint's."""
    scale: float | None = None
    """Read images at this multiple of their size; default: the scale the network was trained at."""
    input_range: tuple[float, float] | None = None
    """Values that mean black and white; default: those of the training, or the number type's."""
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], tyro.conf.arg(help="Where to compute.")] = "auto"
    amp: Annotated[Literal["auto", "off", "bf16", "fp16"], tyro.conf.arg(help="Mixed precision.")] = "auto"


def to_rgb(raster: Raster, value_range: Range | None = None) -> NDArray[np.float32]:
    """Three bands (3, H, W) in 0...1: grey is repeated, a fourth band is left out, invalid pixels become 0."""
    data = raster.data[:3] if len(raster.data) >= 3 else np.repeat(raster.data[:1], 3, axis=0)
    return scale_to_unit(data, raster.valid, value_range)


class Predictor:
    """One or several networks whose probabilities are averaged.

    Args:
        networks: each with its card: scale, normalization, classes.
        precision: device and mixed precision.
        tile: side of the tiles of larger images, pixels of the image.
        overlap: share of a tile that the next one covers again.
        tta: test-time augmentation.
        scale: images are read at this multiple of their size; None = each network's own.
        threshold: two classes: foreground iff P >= threshold; None = the mean of the networks' own.

    Raises:
        ValueError: the networks have other classes, or an option is out of its range.
    """

    def __init__(
        self,
        networks: Sequence[tuple[nn.Module, ModelCard]],
        precision: Precision,
        *,
        tile: int = 512,
        overlap: float = 0.25,
        tta: Tta = "none",
        scale: float | None = None,
        threshold: float | None = None,
    ) -> None:
        cards = [card for _, card in networks]
        self.card = cards[0]
        if any(card.classes != self.card.classes for card in cards):
            raise ValueError("the checkpoints cannot be averaged: their classes differ")
        self.binary = len(self.card.classes) == 2
        if threshold is not None and not self.binary:
            raise ValueError(f"--threshold is for two classes; this network has {len(self.card.classes)}: leave it out")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"--threshold {threshold} must lie in 0...1")
        if scale is not None and not 0.05 <= scale <= 20:
            raise ValueError(f"--scale {scale} must lie in 0.05...20")
        self.threshold = float(np.mean([card.threshold for card in cards])) if threshold is None else threshold
        self.outputs = 1 if self.binary else len(self.card.classes)
        self.precision, self.tile, self.overlap, self.tta = precision, tile, overlap, tta
        self._networks = [
            (network.eval().to(precision.device, memory_format=torch.channels_last), scale or card.scale, card)  # type: ignore[call-overload]
            for network, card in networks
        ]

    @classmethod
    def load(
        cls,
        checkpoints: Sequence[Path],
        load_network: LoadNetwork,
        precision: Precision,
        **options: Any,  # noqa: ANN401 - those of the constructor
    ) -> Predictor:
        """Load checkpoints with the task's own function."""
        return cls([load_network(path) for path in checkpoints], precision, **options)

    @property
    def value_range(self) -> Range | None:
        """Values that meant black and white in training, where they were not the number type's."""
        known = self.card.normalization.get("range")
        return (float(known[0]), float(known[1])) if isinstance(known, (list, tuple)) else None

    def __call__(
        self, image: NDArray[np.float32], progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Probabilities of an image (3, H, W) in 0...1: (1, H, W) P(foreground), or (C, H, W) for more classes."""
        steps = [max(1, round(1 / scale)) for _, scale, _ in self._networks]
        return predict_array(
            image,
            self._probabilities,
            num_outputs=self.outputs,
            tile=self.tile,
            overlap=self.overlap,
            tta=self.tta,
            stride=max(steps),
            device=self.precision.device,
            amp_dtype=self.precision.amp_dtype,
            progress=progress,
        )

    def classify(self, probability: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Class indices (H, W): P >= threshold with two classes, else the most probable one."""
        if self.binary:
            return np.asarray(probability[0] >= self.threshold, np.uint8)
        return np.asarray(probability.argmax(axis=0), np.uint8)

    def seconds_per_pixel(self) -> float:
        """Time of one small prediction, per pixel: the base of estimates."""
        side = min(256, self.tile)
        image = np.zeros((3, side, side), np.float32)
        seconds = []
        for _ in range(2):  # the first one sets up kernels
            started = time.monotonic()
            self(image)
            seconds.append(time.monotonic() - started)
        return min(seconds) / side**2 / (1 - self.overlap) ** 2

    def _probabilities(self, images: Tensor) -> Tensor:
        total: Tensor | None = None
        for network, scale, card in self._networks:
            small = rescale(images, [max(1, round(size * scale)) for size in images.shape[2:]])
            logits = network(normalize(small, card.normalization)).float()
            if self.binary:
                probability = foreground_probability(rescale(logits, images.shape[2:]))
            else:  # further outputs are no classes (the Potsdam original's "undefined")
                probability = class_probabilities(rescale(logits[:, : self.outputs], images.shape[2:]))
            total = probability if total is None else total + probability
        assert total is not None
        return total / len(self._networks)


def normalize(images: Tensor, normalization: Mapping[str, object]) -> Tensor:
    """(N, 3, H, W) in 0...1 -> minus ``mean``, divided by ``std``, where a card names them."""
    if "mean" not in normalization:
        return images
    mean = torch.tensor(normalization["mean"], dtype=images.dtype, device=images.device)
    std = torch.tensor(normalization["std"], dtype=images.dtype, device=images.device)
    return (images - mean[:, None, None]) / std[:, None, None]


def rescale(images: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (N, C, H, W): the mean over blocks where that divides evenly, else bilinear, smoothed before shrinking."""
    height, width = images.shape[2:]
    if (height, width) == tuple(size):
        return images
    if height % size[0] == 0 and width % size[1] == 0:
        return F.interpolate(images, size=list(size), mode="area")
    shrinks = size[0] < height or size[1] < width
    return F.interpolate(images, size=list(size), mode="bilinear", antialias=shrinks)


# From files to files


@dataclass(frozen=True)
class Result:
    """One input's prediction."""

    raster: Raster
    image: NDArray[np.float32]
    """(3, H, W) in 0...1, as the network saw it."""
    probability: NDArray[np.float32]
    mask: NDArray[np.uint8]
    """(H, W) class indices."""


WriteResult = Callable[[Path, str, Result], None]
"""Called with an input's path, the stem of its outputs and its result."""


def predict_file(path: Path, predictor: Predictor, input_range: Range | None = None) -> Result:
    """Read and predict one image.

    Raises:
        FileNotFoundError, ValueError: it is missing, damaged or no single picture.
    """
    raster = read_raster(path)
    value_range = input_range or (predictor.value_range if raster.data.dtype != np.uint8 else None)
    warning = range_warning(raster.data, raster.valid, value_range)
    if warning:
        say(f"warning: {path}: {warning}")
    image = to_rgb(raster, value_range)
    probability = predictor(image)
    return Result(raster, image, probability, predictor.classify(probability))


def infer_files(
    paths: Sequence[Path],
    predictor: Predictor,
    write: WriteResult,
    folder: Path,
    *,
    input_range: Range | None = None,
) -> int:
    """Predict and write every input; bad ones are named and left out.

    Returns:
        The command's exit code.

    Raises:
        ValueError: the disk has too little space; nothing is written then.
    """
    stems = output_stems(paths)
    sizes = {path: pixel_count(path) for path in paths}
    announce(sum(sizes.values()), predictor, folder)
    failed, started = 0, time.monotonic()
    with tqdm(total=sum(sizes.values()) / 1e6, desc=predictor.card.task, unit="Mpx", disable=None) as bar:
        for path in paths:
            try:
                write(path, stems[path], predict_file(path, predictor, input_range))
            except (ValueError, OSError, RasterioIOError) as error:
                say(f"failed: {str(error) if str(path) in str(error) else f'{path}: {error}'}")
                failed += 1
            bar.update(sizes[path] / 1e6)
    seconds = time.monotonic() - started
    speed = sum(sizes.values()) / 1e6 / max(seconds, 1e-9)
    say(f"{len(paths) - failed} of {len(paths)} files to {folder} in {seconds:.1f} s ({speed:.2f} Mpx/s)")
    return PARTIAL if failed else 0


def pixel_count(path: Path) -> int:
    """Pixels of an image by its header; 0 for what cannot be opened."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                return int(dataset.width * dataset.height)
    except RasterioIOError:
        return 0


def announce(pixels: int, predictor: Predictor, folder: Path) -> None:
    """Check the disk and, before a long run, say how long it will take.

    Raises:
        ValueError: the disk has too little space.
    """
    needed = pixels * (4 * predictor.outputs + 4)  # probabilities in float32, mask, overlay
    check_disk(folder, needed)
    if pixels < 1_000_000:
        return
    seconds = pixels * predictor.seconds_per_pixel() * (4 if predictor.tta != "none" else 1)
    if seconds > LONG_RUN:
        say(f"{pixels / 1e6:.1f} Mpx, about {seconds / 60:.1f} min, at most {needed / 1e9:.2f} GB on disk")


def write_outputs(folder: Path, stem: str, result: Result, card: ModelCard, tags: Mapping[str, str]) -> None:
    """Write ``<stem>_mask``, ``<stem>_prob.tif`` and ``<stem>_overlay.png``.

    Raises:
        ValueError: an output would replace the input.
    """
    raster = result.raster
    mask = folder / f"{stem}_mask{mask_suffix(raster)}"
    probability, picture = folder / f"{stem}_prob.tif", folder / f"{stem}_overlay.png"
    for target in (mask, probability, picture):
        protect_input(target, raster.path)
    write_mask(mask, result.mask, palette=card.palette, like=raster, tags=tags)
    write_probability(probability, result.probability, like=raster, tags=tags)
    shown = np.where(raster.valid, result.mask, np.uint8(NODATA))
    write_picture(picture, overlay(stretch(np.round(result.image * 255).astype(np.uint8)), shown, card.palette))


def protect_input(target: Path, source: Path) -> None:
    """Refuse to replace an input by an output.

    Raises:
        ValueError: both are one file.
    """
    if target.exists() and target.resolve() == source.resolve():
        raise ValueError(f"{source}: the result would replace it; choose another --output-dir")


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write an RGB picture atomically."""
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary)
