"""From checkpoints and a frame to probability and nuclei: what evaluate, infer and the video share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from common.inference.tiling import Tta, predict_array
from common.inference.windows import plan_windows
from common.networks import load as networks
from common.networks.checkpoint import ModelCard, StateDict
from common.networks.precision import Precision
from hela_nuclei.model import build_model, recognize
from hela_nuclei.separate import MIN_AREA, Labels, separate

TASK = "hela_nuclei"
CLASSES = ["background", "nucleus"]
PALETTE = {0: (0, 0, 0), 1: (253, 231, 37)}
TILE = 1536
"""Larger than a HeLa frame, so that one is predicted in one go."""
SMALLEST = 32
"""Smaller images are padded: they would vanish in the networks' poolings."""


def load_network(path: Path) -> tuple[nn.Module, ModelCard]:
    """Load one of our checkpoints, or the original notebook's state dict (threshold 0.5 then).

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it holds no network of this task.
    """
    network, card = networks.load_network(path, TASK, build_model, adopt)
    channels, outputs = card.arch_args.get("channels", 1), card.arch_args.get("outputs", 1)
    if channels != 1 or outputs not in (1, 2):
        raise ValueError(
            f"checkpoint {path}: a network of {channels} channels and {outputs} outputs; 1 and 1 are needed"
        )
    return network, card


def adopt(state: StateDict) -> tuple[ModelCard, StateDict] | None:
    """A card for the original notebook's weights (or our own without one); the unused classifier is dropped."""
    weights = {key: value for key, value in state.items() if not key.startswith("encoder.fc.")}
    found = recognize(weights)
    if found is None:
        return None
    return ModelCard(TASK, found[0], {**found[1], "pad_input": False}, CLASSES, PALETTE), weights


def initialize(model: nn.Module, weights: str) -> None:
    """Set a network's initial weights in place: ``none``, ``imagenet`` (the encoder), or the path of a checkpoint.

    Raises:
        ValueError, FileNotFoundError: see `common.networks.load.initialize`.
    """
    networks.initialize(model, weights, getattr(model, "encoder", None), arch="unet_resnet18")


@dataclass(frozen=True)
class Prediction:
    """One frame's result: P(nucleus) and, from networks that learned it, the distance map, each (H, W) float32."""

    probability: NDArray[np.float32]
    distance: NDArray[np.float32] | None
    threshold: float
    min_area: int = MIN_AREA

    @property
    def mask(self) -> NDArray[np.bool_]:
        """P >= threshold."""
        return self.probability >= self.threshold

    def nuclei(self) -> Labels:
        """Separated nuclei, (H, W) int32."""
        return separate(self.mask, self.distance, min_area=self.min_area)


class Predictor:
    """One or several networks whose outputs are averaged.

    Args:
        networks: networks with equally many outputs.
        threshold: nucleus iff P >= threshold.
        precision: device and mixed precision.
        tile: side of the tiles of larger frames, pixels.
        overlap: share of a tile that the next one covers again.
        tta: average over flips too.
        scale: frames are resized by this factor before the network, and its output back.
        min_area: smaller nuclei are dropped, pixels of the frame.
        stride: frames are padded to a multiple of this; 1 for networks that do without (``pad_input`` False).

    Raises:
        ValueError: a value is out of its range.
    """

    def __init__(
        self, networks: Sequence[nn.Module], threshold: float, precision: Precision, *, tile: int = TILE,
        overlap: float = 0.25, tta: Tta = "none", scale: float = 1.0, min_area: int = MIN_AREA, stride: int = 16,
    ) -> None:  # fmt: skip
        if not 0 <= threshold <= 1:
            raise ValueError(f"--threshold {threshold} must lie in 0...1")
        if not 0.05 <= scale <= 20:
            raise ValueError(f"--scale {scale} must lie in 0.05...20")
        plan_windows(SMALLEST, SMALLEST, tile, overlap)  # refuses bad values now, not once per file
        self.networks = [network.eval().to(precision.device) for network in networks]
        for network in self.networks:
            network.to(memory_format=torch.channels_last)
        self.threshold, self.precision = threshold, precision
        self.tile, self.overlap, self.tta = tile, overlap, tta
        self.scale, self.min_area, self.stride = scale, min_area, stride
        with torch.inference_mode():
            blank = torch.zeros(1, 1, SMALLEST, SMALLEST, device=precision.device)
            self.outputs = int(self.networks[0](blank).shape[1])

    @classmethod
    def load(
        cls,
        checkpoints: Sequence[Path],
        precision: Precision,
        *,
        threshold: float | None = None,
        scale: float | None = None,
        **options: Any,  # noqa: ANN401 - those of the constructor
    ) -> tuple[Predictor, ModelCard]:
        """Load checkpoints; threshold and scale are theirs unless given. Returns the first one's card too.

        Raises:
            ValueError: their networks have different outputs.
        """
        loaded = [load_network(path) for path in checkpoints]
        outputs = {card.arch_args.get("outputs", 1) for _, card in loaded}
        if len(outputs) > 1:
            raise ValueError("the checkpoints cannot be averaged: some predict a distance map, others do not")
        if threshold is None:
            threshold = float(np.mean([card.threshold for _, card in loaded]))
        card = loaded[0][1]
        scale = card.scale if scale is None else scale
        stride = 16 if all(card.arch_args.get("pad_input", True) for _, card in loaded) else 1
        networks = [network for network, _ in loaded]
        return cls(networks, threshold, precision, scale=scale, stride=stride, **options), card

    def __call__(self, image: NDArray[np.float32]) -> Prediction:
        """Predict a frame (H, W) scaled to 0..1."""
        small = resize(image[None], [max(1, round(size * self.scale)) for size in image.shape])
        tiny = min(small.shape[1:]) < SMALLEST or self.tile < SMALLEST
        maps = predict_array(
            small, self._probabilities, num_outputs=self.outputs, tile=self.tile, overlap=self.overlap, tta=self.tta,
            stride=16 if tiny else self.stride, device=self.precision.device, amp_dtype=self.precision.amp_dtype,
        )  # fmt: skip
        maps = resize(maps, image.shape)
        return Prediction(maps[0], maps[1] if self.outputs > 1 else None, self.threshold, self.min_area)

    def _probabilities(self, image: Tensor) -> Tensor:
        return torch.stack([network(image).float().sigmoid() for network in self.networks]).mean(0)


def resize(maps: NDArray[np.float32], size: Sequence[int]) -> NDArray[np.float32]:
    """Resize (C, H, W) to ``size`` rows and columns, bilinear, smoothed before shrinking."""
    if maps.shape[1:] == tuple(size):
        return maps
    return F.interpolate(torch.from_numpy(maps)[None], size=list(size), mode="bilinear", antialias=True)[0].numpy()
