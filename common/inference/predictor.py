"""Trained networks as one function from pixels to probabilities: scale, normalization, tiles, flips, averaging.

Networks read an image at the scale they were trained at; tiles and blending are in the image's own pixels.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common.command.config import check_prediction
from common.images.ranges import Range, ValueRanges
from common.inference.tiling import Read, Tiling, predict_array, predict_rows
from common.networks.checkpoint import ModelCard
from common.networks.normalize import normalize
from common.networks.precision import Precision
from common.networks.probabilities import class_probabilities, foreground_probability
from common.networks.reach import FARTHEST, measure_reach
from common.networks.task import Task

BATCHES = {"cuda": 8, "mps": 4}
"""Tiles predicted at once; on a CPU one, whose maps stay in its caches."""
AHEAD = 2
"""Batches of tiles that are read while the network works on another."""


MOST = 3 << 18
"""Pixels of the network's input in a tile whose size is planned: the maps of larger ones leave a CPU's caches."""
LARGEST = 1 << 24
"""Pixels of the image in such a tile, of networks that read it at a part of its size."""
WIDEST = 128
"""Pixels of the network's input that tiles share at most, unless the flags say so."""


FLIPS: tuple[list[int], ...] = ([], [-1], [-2], [-2, -1])
"""Axes along which an image is mirrored: not at all, each, both."""
QUARTER = 0.25
"""Share of a tile of a given size, or of a network that sees far, that the next one covers again."""
LARGE = (8192, 8192)


class Cut(NamedTuple):
    """How the flags want images to be cut."""

    tile: int = 0
    """Side of the tiles, pixels of the image; 0 = planned for each image."""
    overlap: float | None = None
    """A share of the tile below 1, else pixels; None = twice the network's reach."""
    tta: bool = False
    """Average over flips."""
    usual: int = 512
    """Side of the tiles where only the overlap is given, or where the network sees too far for any overlap."""


PLANNED = Cut()


class Look(NamedTuple):
    """How a network reads an image."""

    network: nn.Module
    scale: float
    """At this multiple of its size."""
    card: ModelCard
    flipped: bool
    """Its logits are averaged over flips."""


class Predictor:
    """One or several networks whose probabilities are averaged.

    Args:
        networks: each with its card: scale, normalization, classes.
        precision: device and mixed precision.
        cut: how larger images are cut into tiles.
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
        cut: Cut = PLANNED,
        scale: float | None = None,
        threshold: float | None = None,
    ) -> None:
        cards = self.cards = [card for _, card in networks]
        self.card = cards[0]
        if any(card.classes != self.card.classes for card in cards):
            raise ValueError("the checkpoints cannot be averaged: their classes differ")
        if any(card.maps != self.card.maps for card in cards):
            told = " and ".join(sorted({", ".join(card.maps) or "none" for card in cards}))
            raise ValueError(f"the checkpoints cannot be averaged: they predict other maps beside the classes ({told})")
        bands = sorted({int(card.arch_args.get("channels", 3)) for card in cards})
        if len(bands) > 1:
            raise ValueError(f"the checkpoints cannot be averaged: they read {' and '.join(map(str, bands))} bands")
        self.binary = len(self.card.classes) == 2
        if threshold is not None and not self.binary:
            raise ValueError(f"--threshold is for two classes; this network has {len(self.card.classes)}: leave it out")
        check_prediction(threshold, scale)
        self.threshold = float(np.mean([card.threshold for card in cards])) if threshold is None else threshold
        self.outputs = (1 if self.binary else len(self.card.classes)) + len(self.card.maps)
        self.precision, self.cut = precision, cut
        self.batch = BATCHES.get(precision.device.type, 1)
        self.fixed = scale is not None
        self._reaches: dict[nn.Module, int] = {}  # shared with what `at` gives
        self.task: Task | None = None  # whose the networks are, and the files that they were read from
        self.checkpoints: tuple[Path, ...] = ()
        self.notes: set[str] = set()  # what was said of how images are read
        self._looks = [Look(self._prepare(network), scale or card.scale, card, cut.tta) for network, card in networks]

    def _prepare(self, network: nn.Module) -> nn.Module:
        folded = fold_batch_norm(network.eval())
        return folded.to(self.precision.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def at(self, gsd: float) -> Predictor:
        """This predictor for images of so many metres per pixel, read at resolutions that its networks saw.

        A look is averaged over flips where that costs no more than one at all pixels of the image.
        """
        fitted = copy.copy(self)
        loaded = {look.network: look.card for look in self._looks}
        fitted._looks = [
            Look(network, scale, card, self.cut.tta or len(FLIPS) * scale**2 <= 1)
            for network, card in loaded.items()
            for scale in card.scales_at(gsd)
        ]
        fitted.cards = [look.card for look in fitted._looks]
        larger = self._looks[0].scale / fitted._looks[0].scale
        tile, usual = (round(side * larger) for side in (self.cut.tile, self.cut.usual))
        fitted.cut = self.cut._replace(tile=tile, usual=usual)
        return fitted

    @classmethod
    def load(
        cls,
        task: Task,
        checkpoints: Sequence[Path],
        precision: Precision,
        cut: Cut = PLANNED,
        *,
        scale: float | None = None,
        threshold: float | None = None,
    ) -> Predictor:
        """Load checkpoints of a task, whose usual tiles suit the first network."""
        networks = [task.load(path) for path in checkpoints]
        cut = cut._replace(usual=task.tile_of(networks[0][1], scale))
        made = cls(networks, precision, cut=cut, scale=scale, threshold=threshold)
        made.task, made.checkpoints = task, tuple(checkpoints)
        return made

    def ranges(self, given: Range | None = None) -> ValueRanges:
        """Values that mean black and white: those given, else those of the training, else the number type's.

        Raises:
            ValueError: what is given is no range.
        """
        return ValueRanges(given, self.card.normalization)

    @property
    def channels(self) -> int:
        """Bands that the networks read."""
        return int(self.card.arch_args.get("channels", 3))

    def tiling(self, size: tuple[int, int]) -> Tiling:
        """How an image of a height and width is cut: into tiles that every network's scale divides.

        It depends on the networks, the flags, the size and the kind of device alone. If neither tile nor overlap is
        given, tiles share twice the networks' reach and are as large as takes the least time. The reach is the cards',
        or measured once for an image of more than one tile.
        """
        stride = max(max(1, round(1 / look.scale)) for look in self._looks)
        device, amp = self.precision.device, self.precision.amp_dtype
        tile, overlap, _, usual = self.cut
        finest = max(look.scale for look in self._looks)
        most = max(min(round(MOST / finest**2), LARGEST), usual**2)
        if tile or overlap is not None or math.prod(size) <= most:
            side, share = tile or (usual if overlap is not None else max(size)), QUARTER if overlap is None else overlap
            return Tiling(side, share, self.batch, stride, device, amp)
        reach = self._reach()
        if reach is None:
            return Tiling(usual, QUARTER, self.batch, stride, device, amp)
        shared = round(min(2 * reach, WIDEST / finest))
        return Tiling(0, shared + -shared % stride, self.batch, stride, device, amp, most)

    def _reach(self) -> float | None:
        """How far the networks see, in pixels of the image; None if farther than is measured."""
        for look in self._looks:
            if look.network not in self._reaches:
                self._reaches[look.network] = look.card.reach or measure_reach(look.network, look.card)
        if max(self._reaches.values()) >= FARTHEST:
            return None
        return max(self._reaches[look.network] / look.scale for look in self._looks)

    def __call__(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities of an image (C, H, W) in 0...1: (1, H, W) P(foreground), or (K, H, W) for more classes.

        The further maps of the networks' cards, in 0...1, follow them.
        """
        return predict_array(image, self.probabilities, self.outputs, self.tiling(image.shape[1:]))

    def rows(
        self,
        read: Read,
        size: tuple[int, int],
        *,
        first_row: int = 0,
        last_row: int | None = None,
        value_range: Range | None = None,
    ) -> Generator[tuple[int, Tensor]]:
        """Probabilities of an image that is read window by window, as bands of rows; see `tiling.predict_rows`.

        The range is that of pixels of whole numbers.
        """
        return predict_rows(
            read,
            size,
            self.probabilities,
            self.outputs,
            replace(self.tiling(size), value_range=value_range),
            first_row=first_row,
            last_row=last_row,
            ahead=AHEAD,
        )

    def band_edges(self, size: tuple[int, int]) -> list[int]:
        """Rows of an image at which its bands end, and 0."""
        return self.tiling(size).edges(size)

    def classify(self, probability: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Class indices (H, W): P >= threshold with two classes, else the most probable one."""
        if self.binary:
            return np.asarray(probability[0] >= self.threshold, np.uint8)
        return np.asarray(probability.argmax(axis=0), np.uint8)

    def choose(self, probability: Tensor) -> tuple[Tensor, Tensor]:
        """Class indices (H, W) uint8 of probabilities (K, H, W), as `classify` does, and their `confidence_of`."""
        if not self.binary:
            highest, index = probability.max(dim=0)
            return index.to(torch.uint8), highest
        return (probability[0] >= self.threshold).to(torch.uint8), probability[0]

    def compile(self) -> None:
        """Compile the networks with torch.compile: minutes at first, then every tile of the usual size is faster."""
        for network in {look.network for look in self._looks}:
            network.compile()

    def settings(self, size: tuple[int, int]) -> dict[str, object]:
        """All that probabilities and classes of an image of a size depend on besides the weights."""
        looks = [(look.scale, look.flipped) for look in self._looks]
        own = {"threshold": self.threshold, "looks": looks, "precision": str(self.precision)}
        return own | {
            key: value for key, value in vars(self.tiling(size)).items() if key not in ("device", "amp_dtype")
        }

    def seconds_per_pixel(self) -> float:
        """Time of one small prediction, per pixel of a large image: the base of estimates."""
        side = min(256, self.cut.usual)
        image = np.zeros((self.channels, side, side), np.float32)
        seconds = []
        for _ in range(2):  # the first one sets up kernels
            started = time.monotonic()
            self(image)
            seconds.append(time.monotonic() - started)
        return min(seconds) / side**2 * self.tiling(LARGE).redundancy(LARGE)

    def probabilities(self, images: Tensor) -> Tensor:
        """Of tiles (N, C, h, w) in 0...1: (N, 1, h, w) P(foreground), or (N, K, h, w) for more classes; then maps."""
        return self._mean_probability(self.logits(images))

    def _mean_probability(self, logits: Sequence[Tensor]) -> Tensor:
        total: Tensor | None = None
        for each in logits:
            classes = each.shape[1] - len(self.card.maps)
            convert = foreground_probability if self.binary else class_probabilities
            probability = convert(each[:, :classes])
            if self.card.maps:
                probability = torch.cat([probability, each[:, classes:].sigmoid()], dim=1)
            total = probability if total is None else total + probability
        assert total is not None
        return total / len(logits) if len(logits) > 1 else total

    def logits(self, images: Tensor) -> list[Tensor]:
        """Each look's own outputs for tiles (N, C, h, w) in 0...1, at the tiles' size: (N, L, h, w)."""
        found = []
        for network, scale, card, flipped in self._looks:
            small = rescale(images, [max(1, round(size * scale)) for size in images.shape[2:]])
            read = normalize(small, card.normalization)
            logits = mean_of_flips(network, read) if flipped else network(read).float()
            if not self.binary:  # further outputs are no classes (the Potsdam original's "undefined")
                logits = logits[:, : self.outputs]
            found.append(rescale(logits, images.shape[2:]))
        return found

    def scored(self, image: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
        """Probabilities of an image (C, H, W) in 0...1, and each look's own logits (L, H, W) behind them."""
        counts = [int(card.arch_args.get("outputs", 1)) if self.binary else self.outputs for card in self.cards]

        def predict(tiles: Tensor) -> Tensor:
            logits = self.logits(tiles)
            return torch.cat([self._mean_probability(logits), *logits], dim=1)

        maps = predict_array(image, predict, self.outputs + sum(counts), self.tiling(image.shape[1:]))
        probability, *logits = np.split(maps, np.cumsum([self.outputs, *counts[:-1]]))
        return probability, logits


def mean_of_flips(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Mean of what a network says of images (N, C, H, W), their two mirror images and both at once, each undone.

    Returns:
        (N, K, H, W) float32.
    """
    said = []
    for axes in FLIPS:
        turned = images.flip(axes).contiguous(memory_format=torch.channels_last)
        said.append(network(turned).float().flip(axes))
    return torch.stack(said).mean(dim=0)


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose convolutions do what the BatchNorm behind them in a sequence did.

    The result is the same up to rounding, with one pass less over every map.
    """
    network = copy.deepcopy(network).eval()
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential):
            for index, (conv, norm) in enumerate(list(pairwise(module))):
                if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.track_running_stats:
                    module[index] = fuse_conv_bn_eval(conv, norm)
                    module[index + 1] = nn.Identity()
    return network


def confidence_of(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probability (H, W) of the most probable class at each pixel; of two classes, (1, H, W), that of the second."""
    return probability[0] if len(probability) == 1 else np.asarray(probability.max(axis=0))


def rescale(images: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (N, C, H, W): the mean over blocks where that divides evenly, else bilinear, smoothed before shrinking."""
    height, width = images.shape[2:]
    if (height, width) == tuple(size):
        return images
    if height % size[0] == 0 and width % size[1] == 0:
        return F.interpolate(images, size=list(size), mode="area")
    shrinks = size[0] < height or size[1] < width
    return F.interpolate(images, size=list(size), mode="bilinear", antialias=shrinks)
