"""Decoders: from an encoder's maps to one map of features that a convolution turns into logits.

UNet, UNet++ and Linknet climb back to the image's resolution by skip connections; FPN joins a pyramid of maps at a
quarter of it. Those that look at context by pooling and dilation are in ``context.py``. Module names follow
segmentation-models-pytorch, so checkpoints trained there load as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn_relu(inputs: int, outputs: int, size: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corner pixels on corner pixels."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class UpBlock(nn.Module):
    """Doubles a map, joins the skip connections, and convolves twice."""

    def __init__(self, inputs: int, skips: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv_bn_relu(inputs + skips, outputs, 3)
        self.conv2 = conv_bn_relu(outputs, outputs, 3)

    def forward(self, x: Tensor, *skips: Tensor) -> Tensor:
        """(N, inputs, h, w) and maps (N, ., 2h, 2w) -> (N, outputs, 2h, 2w)."""
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv2(self.conv1(torch.cat([x, *skips], dim=1)))  # type: ignore[no-any-return]


class UNetDecoder(nn.Module):
    """UNet (Ronneberger et al. 2015): one block per resolution.

    Args:
        encoder: channels of the encoder's five maps.
        widths: channels at strides 16, 8, 4, 2, 1.
    """

    def __init__(self, encoder: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        deepest, *skips = encoder[::-1]
        inputs = [deepest, *widths[:-1]]
        self.blocks = nn.ModuleList(map(UpBlock, inputs, [*skips, 0], widths))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps at strides 2 ... 32 -> (N, widths[-1], H, W)."""
        x, *skips = maps[::-1]
        for block, skip in zip(self.blocks, skips, strict=False):
            x = block(x, skip)
        return self.blocks[-1](x)  # type: ignore[no-any-return]


class UNetPlusPlusDecoder(nn.Module):
    """UNet++ (Zhou et al. 2018): a triangle of blocks in which each resolution is decoded from every deeper one.

    Block ``x_d_l`` makes the map of level l (level -1 = the encoder's deepest, each level doubles) on the path that
    leaves the encoder at its map d; ``x_0_l`` is UNet's own path, and d = l leaves the encoder right there.

    Args:
        encoder: channels of the encoder's five maps.
        widths: channels at strides 16, 8, 4, 2, 1.
    """

    def __init__(self, encoder: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        maps = encoder[::-1]
        self.levels = len(maps) - 1
        self.blocks = nn.ModuleDict()
        for level in range(self.levels):
            skip = maps[level + 1]
            inputs = maps[0] if level == 0 else widths[level - 1]
            self.blocks[f"x_0_{level}"] = UpBlock(inputs, skip * (level + 1), widths[level])
            for path in range(1, level + 1):
                self.blocks[f"x_{path}_{level}"] = UpBlock(maps[level], skip * (level + 1 - path), skip)
        self.blocks[f"x_0_{self.levels}"] = UpBlock(widths[-2], 0, widths[-1])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps at strides 2 ... 32 -> (N, widths[-1], H, W)."""
        maps = maps[::-1]
        paths: list[Tensor] = []  # the map of the level below, by path
        for level in range(self.levels):
            paths.append(maps[level])
            skips = [maps[level + 1]]
            for path in range(level, -1, -1):
                paths[path] = self.blocks[f"x_{path}_{level}"](paths[path], *skips)
                skips.insert(0, paths[path])
        return self.blocks[f"x_0_{self.levels}"](paths[0])  # type: ignore[no-any-return]


class LinknetBlock(nn.Module):
    """Squeeze to a quarter of the channels, double by transposed convolution, expand."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = inputs // 4
        double = nn.Sequential(
            nn.ConvTranspose2d(inner, inner, 4, stride=2, padding=1), nn.BatchNorm2d(inner), nn.ReLU(inplace=True)
        )
        self.block = nn.Sequential(conv_bn_relu(inputs, inner), double, conv_bn_relu(inner, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, outputs, 2h, 2w)."""
        return self.block(x)  # type: ignore[no-any-return]


class LinknetDecoder(nn.Module):
    """Linknet (Chaurasia and Culurciello 2017): skip connections are added, which keeps it light.

    Args:
        encoder: channels of the encoder's five maps.
        width: channels of the result.
    """

    def __init__(self, encoder: Sequence[int], width: int) -> None:
        super().__init__()
        inputs = encoder[::-1]
        self.blocks = nn.ModuleList(map(LinknetBlock, inputs, [*inputs[1:], width]))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps at strides 2 ... 32 -> (N, width, H, W)."""
        x, *skips = maps[::-1]
        for block, skip in zip(self.blocks, skips, strict=False):
            x = block(x) + skip
        return self.blocks[-1](x)  # type: ignore[no-any-return]


class Lateral(nn.Module):
    """One step down the pyramid: the coarser map doubled, plus the encoder's projected one."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.skip_conv = nn.Conv2d(inputs, width, 1)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """(N, width, h, w) and (N, inputs, 2h, 2w) -> (N, width, 2h, 2w)."""
        return F.interpolate(coarse, scale_factor=2.0, mode="nearest") + self.skip_conv(skip)  # type: ignore[no-any-return]


class GroupNormBlock(nn.Module):
    """3 x 3 convolution, GroupNorm, ReLU, and doubling where asked for."""

    def __init__(self, inputs: int, outputs: int, doubles: bool) -> None:
        super().__init__()
        self.doubles = doubles
        self.block = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.GroupNorm(32, outputs), nn.ReLU(inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, outputs, h, w) or (N, outputs, 2h, 2w)."""
        x = self.block(x)
        return resize(x, [2 * size for size in x.shape[2:]]) if self.doubles else x


class PyramidBranch(nn.Module):
    """Brings one level of the pyramid to a quarter of the image's resolution, doubling ``times`` times."""

    def __init__(self, inputs: int, outputs: int, times: int) -> None:
        super().__init__()
        widths = [inputs, *[outputs] * max(times, 1)]
        self.block = nn.Sequential(*(GroupNormBlock(a, b, doubles=times > 0) for a, b in itertools.pairwise(widths)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, outputs, h 2^times, w 2^times)."""
        return self.block(x)  # type: ignore[no-any-return]


class FPNDecoder(nn.Module):
    """Feature pyramid (Lin et al. 2017) with Kirillov et al.'s segmentation branch (2019).

    Args:
        encoder: channels of the encoder's maps.
        pyramid: channels of the pyramid.
        width: channels of the result, a multiple of 32.
        dropout: share of the result's channels dropped in training.
    """

    def __init__(self, encoder: Sequence[int], pyramid: int, width: int, dropout: float) -> None:
        super().__init__()
        self.p5 = nn.Conv2d(encoder[-1], pyramid, 1)
        self.p4, self.p3, self.p2 = (Lateral(encoder[level], pyramid) for level in (-2, -3, -4))
        self.seg_blocks = nn.ModuleList(PyramidBranch(pyramid, width, times) for times in (3, 2, 1, 0))
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps at strides 2 ... 32 -> (N, width, H/4, W/4)."""
        pyramid = [self.p5(maps[-1])]
        for lateral, skip in zip((self.p4, self.p3, self.p2), maps[-2:-5:-1], strict=True):
            pyramid.append(lateral(pyramid[-1], skip))
        branches = [branch(level) for branch, level in zip(self.seg_blocks, pyramid, strict=True)]
        return self.dropout(torch.stack(branches).sum(0))  # type: ignore[no-any-return]
