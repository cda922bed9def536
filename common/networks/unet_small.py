"""A small U-Net for training from scratch and for laptops: ``--arch unet_small`` of several tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.networks.padding import pad_to_multiple


def conv_bn_relu(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=(size - 1) // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two 3 x 3 convolutions around which the input is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_bn_relu(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return F.relu(x + self.second(self.first(x)), inplace=True)


class Merge(nn.Module):
    """Join a coarse map with the skip of the next finer resolution; channels are cut down before it is enlarged."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(coarse, fine, 1)
        self.conv = conv_bn_relu(2 * fine, fine)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, coarse, H/2, W/2) and (N, fine, H, W) -> (N, fine, H, W)."""
        larger = F.interpolate(self.reduce(x), size=skip.shape[2:], mode="bilinear")
        return self.conv(torch.cat([larger, skip], dim=1))  # type: ignore[no-any-return]


SMALL: dict[str, Any] = {"widths": [24, 48, 96, 160, 192], "stem": 2}
"""The network that ships; the start of every task's own ones."""


class UNetSmall(nn.Module):
    """A small U-Net whose time goes where a CPU is fast: few passes over large maps, most channels in coarse ones.

    Strided convolutions shrink (no pooling pass), bilinear resizing enlarges, one convolution merges each skip. In
    channels-last bfloat16 it takes a third of its time in contiguous float32.

    Args:
        outputs: logit channels.
        widths: feature channels per resolution, from the finest on.
        stem: stride of the first convolution; 2 computes everything at half resolution, four times faster.
        channels: bands of the image.
        groups: for each output the channels of the head it is the union of, where the head tells more classes than are
            wanted; none = the head's channels are the outputs.
        upsample: logits are given at this multiple of the image's size.

    Shape:
        (N, channels, H, W) -> (N, outputs, upsample * H, upsample * W) for any H, W.

    Raises:
        ValueError: fewer than two widths, another stem than 1 or 2, or not as many groups as outputs.
    """

    def __init__(
        self,
        outputs: int = 1,
        widths: Sequence[int] = (16, 32, 64, 128),
        stem: int = 1,
        channels: int = 3,
        groups: Sequence[Sequence[int]] = (),
        upsample: int = 1,
    ) -> None:
        super().__init__()
        if groups and len(groups) != outputs:
            raise ValueError(f"unet_small with {outputs} outputs needs as many groups, not {len(groups)}")
        if len(widths) < 2 or min(widths) < 1 or stem not in (1, 2):
            raise ValueError(f"unet_small needs two or more widths and stem 1 or 2, not {list(widths)} and {stem}")
        self.upsample, self.stride = upsample, stem * 2 ** (len(widths) - 1)
        first = widths[0]
        self.stem = nn.Sequential(
            conv_bn_relu(channels, first, 3 if stem == 1 else 4, stem), conv_bn_relu(first, first)
        )
        self.down = nn.ModuleList(nn.Sequential(conv_bn_relu(a, b, stride=2), Residual(b)) for a, b in pairwise(widths))
        self.up = nn.ModuleList(Merge(b, a) for a, b in reversed(list(pairwise(widths))))
        self.groups = [list(group) for group in groups]
        self.head = nn.Conv2d(first, 1 + max(map(max, self.groups)) if groups else outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits at the image's own size."""
        padded = pad_to_multiple(image, self.stride)
        maps = [self.stem(padded)]
        for stage in self.down:
            maps.append(stage(maps[-1]))
        x = maps.pop()
        for stage in self.up:
            x = stage(x, maps.pop())
        logits: Tensor = self.head(x)
        height, width = (self.upsample * size for size in padded.shape[2:])
        if logits.shape[2:] != (height, width):
            logits = F.interpolate(logits, size=(height, width), mode="bilinear")
        logits = logits[..., : self.upsample * image.shape[2], : self.upsample * image.shape[3]]
        if self.groups:  # P(union) is the sum of the classes' P
            return torch.stack([logits[:, group].logsumexp(1) for group in self.groups], dim=1)
        return logits


def recognize_unet_small(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The arguments of the network that a bare state dict belongs to, or None if it is another one's."""
    if not {"stem.0.0.weight", "down.0.0.0.weight", "up.0.reduce.weight", "head.weight"} <= state.keys():
        return None
    first = state["stem.0.0.weight"]
    stages = sum(key.startswith("down.") and key.endswith(".0.0.weight") for key in state)
    return {
        "outputs": state["head.weight"].shape[0],
        "widths": [first.shape[0], *(state[f"down.{i}.0.0.weight"].shape[0] for i in range(stages))],
        "stem": 1 if first.shape[2] == 3 else 2,
        "channels": first.shape[1],
    }
