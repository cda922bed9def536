"""From checkpoints and a frame to probability and nuclei: what evaluate, infer and the video share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from common.losses import LossRecipe
from common.networks.checkpoint import ModelCard
from common.networks.precision import Precision
from hela_nuclei.separate import MIN_AREA, Labels, separate
from hela_nuclei.task import TASK

TILE = 1536
"""Larger than a HeLa frame, so that one is predicted in one go."""
SMALLEST = 32
"""Smaller images are padded: they would vanish in the networks' poolings."""


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
        losses: what each network was trained with.
        stride: frames are padded to a multiple of this; 1 for networks that do without (``pad_input`` False).

    Raises:
        ValueError: a value is out of its range.
    """

    def __init__(
        self, networks: Sequence[nn.Module], threshold: float, precision: Precision, *, tile: int = TILE,
        overlap: float = 0.25, tta: Tta = "none", scale: float = 1.0, min_area: int = MIN_AREA, stride: int = 16,
        losses: Sequence[LossRecipe] = (),
    ) -> None:  # fmt: skip
        if not 0 <= threshold <= 1:
            raise ValueError(f"--threshold {threshold} must lie in 0...1")
        if not 0.05 <= scale <= 20:
            raise ValueError(f"--scale {scale} must lie in 0.05...20")
        plan_windows(SMALLEST, SMALLEST, tile, overlap)  # refuses bad values now, not once per file
        self.networks = [network.eval().to(precision.device) for network in networks]
        for network in self.networks:
            network.to(memory_format=torch.channels_last)
        self.threshold, self.precision, self.losses = threshold, precision, list(losses)
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
        loaded = [TASK.load(path) for path in checkpoints]
        outputs = {card.arch_args.get("outputs", 1) for _, card in loaded}
        if len(outputs) > 1:
            raise ValueError("the checkpoints cannot be averaged: some predict a distance map, others do not")
        if threshold is None:
            threshold = float(np.mean([card.threshold for _, card in loaded]))
        card = loaded[0][1]
        scale = card.scale if scale is None else scale
        stride = 16 if all(card.arch_args.get("pad_input", True) for _, card in loaded) else 1
        networks = [network for network, _ in loaded]
        losses = [card.loss for _, card in loaded]
        return cls(networks, threshold, precision, scale=scale, stride=stride, losses=losses, **options), card

    def __call__(self, image: NDArray[np.float32]) -> Prediction:
        """Predict a frame (H, W) scaled to 0..1."""
        return self._prediction(self._maps(image, self._probabilities, self.outputs))

    def scored(self, image: NDArray[np.float32]) -> tuple[Prediction, list[NDArray[np.float32]]]:
        """Predict a frame (H, W) scaled to 0..1, and each network's own logits (outputs, H, W) behind that."""

        def predict(tiles: Tensor) -> Tensor:
            logits = [network(tiles).float() for network in self.networks]
            return torch.cat([torch.stack([each.sigmoid() for each in logits]).mean(0), *logits], dim=1)

        maps = self._maps(image, predict, self.outputs * (1 + len(self.networks)))
        probabilities, *logits = np.split(maps, 1 + len(self.networks))
        return self._prediction(probabilities), logits

    def _maps(
        self, image: NDArray[np.float32], predict: Callable[[Tensor], Tensor], outputs: int
    ) -> NDArray[np.float32]:
        small = resize(image[None], [max(1, round(size * self.scale)) for size in image.shape])
        tiny = min(small.shape[1:]) < SMALLEST or self.tile < SMALLEST
        maps = predict_array(
            small, predict, num_outputs=outputs, tile=self.tile, overlap=self.overlap, tta=self.tta,
            stride=16 if tiny else self.stride, device=self.precision.device, amp_dtype=self.precision.amp_dtype,
        )  # fmt: skip
        return resize(maps, image.shape)

    def _prediction(self, maps: NDArray[np.float32]) -> Prediction:
        return Prediction(maps[0], maps[1] if self.outputs > 1 else None, self.threshold, self.min_area)

    def _probabilities(self, image: Tensor) -> Tensor:
        return torch.stack([network(image).float().sigmoid() for network in self.networks]).mean(0)


def resize(maps: NDArray[np.float32], size: Sequence[int]) -> NDArray[np.float32]:
    """Resize (C, H, W) to ``size`` rows and columns, bilinear, smoothed before shrinking."""
    if maps.shape[1:] == tuple(size):
        return maps
    return F.interpolate(torch.from_numpy(maps)[None], size=list(size), mode="bilinear", antialias=True)[0].numpy()
