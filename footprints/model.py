"""RefineNet on a ResNet, beside the small U-Net for laptops of `common.networks.unet_small`.

RefineNet (Lin et al. 2017) follows the building-footprint-segmentation package in its names and in what it computes, so
checkpoints trained there load as they are: one residual unit is used three times in each block, both poolings of a
block share one convolution, a unit adds its input *after* the ReLU, and the coarsest block carries a convolution for a
coarser map that does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from common.networks.backbones import torchvision_network
from common.networks.padding import pad_to_multiple
from common.networks.task import Backbone
from common.networks.unet_small import UNetSmall, recognize_unet_small

Encoder = Literal["resnet34", "resnet50"]
ENCODERS = {"resnet34": (64, 128, 256, 512), "resnet50": (256, 512, 1024, 2048)}
"""Channels at 1/4, 1/8, 1/16 and 1/32, by name."""


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    """3 x 3 convolution with bias that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def enlarge(maps: Tensor, factor: int) -> Tensor:
    """Bilinear enlargement under which corner pixels stay corner pixels, as the original does it."""
    return F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=True)


class ResidualUnit(nn.Module):
    """Two convolutions around which the rectified input is added (the original rectifies in place)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution_layer_1 = conv3x3(channels, channels)
        self.convolution_layer_2 = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        x = F.relu(x)
        return x + self.convolution_layer_2(F.relu(self.convolution_layer_1(x)))  # type: ignore[no-any-return]


class Fusion(nn.Module):
    """The sum of a map and of the coarser block's, each through a convolution."""

    def __init__(self, coarse: int, channels: int) -> None:
        super().__init__()
        self.convolution_layer_lower_inputs = conv3x3(coarse, channels)
        self.convolution_layer_higher_inputs = conv3x3(channels, channels)

    def forward(self, x: Tensor, coarser: Tensor | None) -> Tensor:
        """(N, C, H, W) and the coarser (N, c, H/2, W/2), if there is one -> (N, C, H, W)."""
        fused: Tensor = self.convolution_layer_higher_inputs(x)
        return fused if coarser is None else fused + enlarge(self.convolution_layer_lower_inputs(coarser), 2)


class ChainedPooling(nn.Module):
    """Context from ever larger windows: pooled twice in a chain, every link added to the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution_layer_1 = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        total = link = F.relu(x)
        for _ in range(2):
            link = self.convolution_layer_1(F.max_pool2d(link, 5, stride=1, padding=2))
            total = total + link
        return total


class RefineBlock(nn.Module):
    """Refine a map of the encoder with the coarser block's result."""

    def __init__(self, coarse: int, channels: int) -> None:
        super().__init__()
        self.residual_convolution_unit = ResidualUnit(channels)
        self.multi_resolution_fusion = Fusion(coarse, channels)
        self.chained_residual_pooling = ChainedPooling(channels)

    def forward(self, x: Tensor, coarser: Tensor | None = None) -> Tensor:
        """(N, C, H, W) and the coarser block's (N, c, H/2, W/2) -> (N, C, H, W)."""
        unit = self.residual_convolution_unit
        fused = self.multi_resolution_fusion(unit(unit(x)), coarser)
        return unit(self.chained_residual_pooling(fused))  # type: ignore[no-any-return]


class RefineNet(nn.Module):
    """RefineNet: a ResNet whose maps are refined from coarse to fine.

    Args:
        encoder: ``resnet34`` or ``resnet50``.
        outputs: logit channels.

    Shape:
        (N, 3, H, W) -> (N, outputs, H, W) for any H, W.

    Raises:
        ValueError: the encoder is unknown.
    """

    def __init__(self, encoder: Encoder = "resnet50", outputs: int = 1) -> None:
        super().__init__()
        if encoder not in ENCODERS:
            raise ValueError(f"unknown encoder '{encoder}'; known are {', '.join(ENCODERS)}")
        c4, c8, c16, c32 = ENCODERS[encoder]
        resnet = torchvision_network(encoder)
        self.layer0 = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
        self.convolution_layer_4_dim_reduction = conv3x3(c32, 512)
        self.convolution_layer_3_dim_reduction = conv3x3(c16, 256)
        self.convolution_layer_2_dim_reduction = conv3x3(c8, 256)
        self.convolution_layer_1_dim_reduction = conv3x3(c4, 256)
        self.refine_block_4 = RefineBlock(512, 512)
        self.refine_block_3 = RefineBlock(512, 256)
        self.refine_block_2 = RefineBlock(256, 256)
        self.refine_block_1 = RefineBlock(256, 256)
        self.residual_convolution_unit = ResidualUnit(256)
        self.final_layer = nn.Conv2d(256, outputs, 1)

    @property
    def backbone(self) -> Backbone:
        """The ResNet under torchvision's names."""
        stages = {f"layer{i}": getattr(self, f"layer{i}") for i in range(1, 5)}
        name = "resnet50" if self.layer4[-1].conv1.in_channels == 2048 else "resnet34"
        return Backbone(nn.ModuleDict({"conv1": self.layer0[0], "bn1": self.layer0[1], **stages}), name)

    def forward(self, image: Tensor) -> Tensor:
        """Logits at the image's own size."""
        s4 = self.layer1(self.layer0(pad_to_multiple(image, 32)))
        s8 = self.layer2(s4)
        s16 = self.layer3(s8)
        s32 = self.layer4(s16)
        x = self.refine_block_4(self.convolution_layer_4_dim_reduction(s32))
        x = self.refine_block_3(self.convolution_layer_3_dim_reduction(s16), x)
        x = self.refine_block_2(self.convolution_layer_2_dim_reduction(s8), x)
        x = self.refine_block_1(self.convolution_layer_1_dim_reduction(s4), x)
        x = self.residual_convolution_unit(self.residual_convolution_unit(x))
        return enlarge(self.final_layer(x), 4)[..., : image.shape[2], : image.shape[3]]


ARCHITECTURES: dict[str, type[nn.Module]] = {"refinenet": RefineNet, "unet_small": UNetSmall}


def recognize(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]] | None:
    """The architecture of a bare state dict (the original package's ReFineNet, or our own), or None."""
    reduction = "convolution_layer_4_dim_reduction.weight"
    if {
        "layer0.0.weight",
        reduction,
        "final_layer.weight",
        "refine_block_1.residual_convolution_unit.convolution_layer_1.weight",
    } <= state.keys():
        encoder = "resnet50" if state[reduction].shape[1] == 2048 else "resnet34"
        return "refinenet", {"encoder": encoder, "outputs": state["final_layer.weight"].shape[0]}
    found = recognize_unet_small(state)
    return None if found is None else ("unet_small", found)
