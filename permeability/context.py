"""Decoders that gather context from far around: atrous pyramids (DeepLab), pooling (PSPNet) and attention (PAN).

Module names follow segmentation-models-pytorch, so checkpoints trained there load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from permeability.decoders import conv_bn_relu, resize


def atrous_conv(inputs: int, outputs: int, rate: int = 1, *, separable: bool) -> nn.Module:
    """3 x 3 convolution with holes; separable: per channel, then 1 x 1 across channels."""
    if not separable:
        return nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate, bias=False)
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=rate, dilation=rate, groups=inputs, bias=False),
        nn.Conv2d(inputs, outputs, 1, bias=False),
    )


class ImagePooling(nn.Sequential):
    """The global branch of a pyramid: the mean of the map, projected, the same everywhere."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, outputs, h, w)."""
        return super().forward(x).expand(-1, -1, *x.shape[2:])  # type: ignore[no-untyped-call, no-any-return]


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al. 2017): a 1 x 1, three dilated 3 x 3 and the image pooling, joined."""

    def __init__(self, inputs: int, width: int, rates: Sequence[int], dropout: float, *, separable: bool) -> None:
        super().__init__()
        atrous = [
            nn.Sequential(atrous_conv(inputs, width, rate, separable=separable), nn.BatchNorm2d(width), nn.ReLU())
            for rate in rates
        ]
        self.convs = nn.ModuleList([conv_bn_relu(inputs, width), *atrous, ImagePooling(inputs, width)])
        self.project = nn.Sequential(*conv_bn_relu(len(self.convs) * width, width), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, width, h, w)."""
        return self.project(torch.cat([branch(x) for branch in self.convs], dim=1))  # type: ignore[no-any-return]


class DeepLabV3Decoder(nn.Module):
    """DeepLabV3 (Chen et al. 2017): the pyramid and one convolution, at the resolution of the deepest map.

    Args:
        encoder: channels of the encoder's maps.
        width: channels of the result.
        rates: dilations of the pyramid.
        dropout: share of the pyramid's values dropped in training.
        separable: whether the pyramid's convolutions are.
    """

    def __init__(
        self, encoder: Sequence[int], width: int, rates: Sequence[int], dropout: float, separable: bool
    ) -> None:
        super().__init__()
        self.aspp = AtrousPyramid(encoder[-1], width, rates, dropout, separable=separable)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps -> (N, width, H/s, W/s) at the stride s of the deepest."""
        return self.relu(self.bn(self.conv(self.aspp(maps[-1]))))  # type: ignore[no-any-return]


class DeepLabV3PlusDecoder(nn.Module):
    """DeepLabV3+ (Chen et al. 2018): the pyramid enlarged and joined with 48 channels of the map at stride 4.

    Args:
        encoder: channels of the encoder's maps.
        width: channels of the result.
        rates: dilations of the pyramid.
        dropout: share of the pyramid's values dropped in training.
        separable: whether the pyramid's convolutions are.
    """

    def __init__(
        self, encoder: Sequence[int], width: int, rates: Sequence[int], dropout: float, separable: bool
    ) -> None:
        super().__init__()
        self.aspp = nn.Sequential(
            AtrousPyramid(encoder[-1], width, rates, dropout, separable=separable),
            atrous_conv(width, width, separable=True),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.block1 = conv_bn_relu(encoder[1], 48)
        self.block2 = nn.Sequential(atrous_conv(48 + width, width, separable=True), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps -> (N, width, H/4, W/4)."""
        low = self.block1(maps[1])
        return self.block2(torch.cat([resize(self.aspp(maps[-1]), low.shape[2:]), low], dim=1))  # type: ignore[no-any-return]


class PooledBranch(nn.Module):
    """The map averaged over a grid of ``cells`` x ``cells``, projected, and enlarged again."""

    def __init__(self, inputs: int, outputs: int, cells: int) -> None:
        super().__init__()
        project = conv_bn_relu(inputs, outputs)
        if cells == 1:  # one value per channel: the original has a bias here instead of BatchNorm
            project = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.Identity(), nn.ReLU(inplace=True))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(cells), project)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, outputs, h, w)."""
        return resize(self.pool(x), x.shape[2:])


class PoolingPyramid(nn.Module):
    """The map joined with its averages over grids of 1, 2, 3 and 6 cells a side."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PooledBranch(inputs, inputs // 4, cells) for cells in (1, 2, 3, 6))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, 2 inputs, h, w)."""
        return torch.cat([*(block(x) for block in self.blocks), x], dim=1)


class PSPDecoder(nn.Module):
    """PSPNet (Zhao et al. 2017): the pooling pyramid of the deepest map.

    Args:
        encoder: channels of the encoder's maps.
        width: channels of the result.
        dropout: share of the result's channels dropped in training.
    """

    def __init__(self, encoder: Sequence[int], width: int, dropout: float) -> None:
        super().__init__()
        self.psp = PoolingPyramid(encoder[-1])
        self.conv = conv_bn_relu(2 * encoder[-1], width)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps -> (N, width, H/s, W/s) at the stride s of the deepest."""
        return self.dropout(self.conv(self.psp(maps[-1])))  # type: ignore[no-any-return]


class ConvBatchNorm(nn.Module):
    """Convolution with bias, BatchNorm, and ReLU unless told otherwise."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, *, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, outputs, h, w)."""
        x = self.bn(self.conv(x))
        return x.relu() if self.relu else x


class PyramidAttention(nn.Module):
    """Feature pyramid attention: a weight per pixel from three coarser maps of one channel, and a global branch."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.branch1 = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBatchNorm(inputs, width))
        self.mid = nn.Sequential(ConvBatchNorm(inputs, width))
        self.down1 = nn.Sequential(nn.MaxPool2d(2), ConvBatchNorm(inputs, 1, 7))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), ConvBatchNorm(1, 1, 5))
        self.down3 = nn.Sequential(nn.MaxPool2d(2), ConvBatchNorm(1, 1, 3), ConvBatchNorm(1, 1, 3))
        self.conv2, self.conv1 = ConvBatchNorm(1, 1, 5), ConvBatchNorm(1, 1, 7)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, width, h, w); h and w are at least 8."""
        height, width = x.shape[2:]
        half = self.down1(x)
        quarter = self.down2(half)
        weight = self.conv2(quarter) + resize(self.down3(quarter), (height // 4, width // 4))
        weight = self.conv1(half) + resize(weight, (height // 2, width // 2))
        return resize(weight, (height, width)) * self.mid(x) + self.branch1(x)  # type: ignore[no-any-return]


class GlobalAttentionUp(nn.Module):
    """Global attention upsample: the coarse map's mean decides which channels of the finer one are added to it."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBatchNorm(width, width, relu=False), nn.Sigmoid())
        self.conv2 = ConvBatchNorm(inputs, width, 3)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """(N, inputs, H, W) and (N, width, h, w) -> (N, width, H, W)."""
        return resize(coarse, fine.shape[2:]) + self.conv2(fine) * self.conv1(coarse)  # type: ignore[no-any-return]


class PANDecoder(nn.Module):
    """PAN (Li et al. 2018): attention over the deepest map, then global attention at each finer one.

    Args:
        encoder: channels of the encoder's five maps.
        width: channels of the result.
    """

    def __init__(self, encoder: Sequence[int], width: int) -> None:
        super().__init__()
        self.fpa = PyramidAttention(encoder[-1], width)
        self.gau3, self.gau2, self.gau1 = (GlobalAttentionUp(encoder[level], width) for level in (-2, -3, -4))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps at strides 2 ... 32 -> (N, width, H/4, W/4)."""
        x: Tensor = self.fpa(maps[-1])
        for attention, fine in zip((self.gau3, self.gau2, self.gau1), maps[-2:-5:-1], strict=True):
            x = attention(fine, x)
        return x
