"""The networks: a ResNet-18 encoder with the source's decoder of transposed convolutions, or with one that has skips.

Encoder and ``plain`` decoder carry the names of the original project, so its checkpoints load as they are (seven
outputs there, the last one "undefined"). Images come at ``1 / upsample`` of their size and logits leave at ``upsample``
times the input's: the source reads 300 x 300 patches at 150 x 150 and compares with the labels at 300 x 300.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.networks.backbones import torchvision_network
from common.networks.task import Backbone
from common.networks.unet_small import Residual, UNetSmall, conv_bn_relu

Decoder = Literal["plain", "skip"]
PLAIN_WIDTHS = (256, 128, 64, 32)


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of (N, C, h, w) to ``size``."""
    return maps if maps.shape[2:] == tuple(size) else F.interpolate(maps, size=list(size), mode="bilinear")


def pad_to_stride(image: Tensor, stride: int = 32) -> Tensor:
    """Repeat the last row and column up to multiples of ``stride``: then all resolutions lie on one grid."""
    rows, columns = (-size % stride for size in image.shape[2:])
    return F.pad(image, (0, columns, 0, rows), mode="replicate") if rows or columns else image


def enlarge(logits: Tensor, padded: Tensor, image: Tensor, factor: int) -> Tensor:
    """Bring logits to ``factor`` times the size of ``image``, cutting off what belongs to the padding."""
    full = resize(logits.float(), [factor * size for size in padded.shape[2:]])
    return full[:, :, : factor * image.shape[2], : factor * image.shape[3]]


def plain_decoder(outputs: int) -> nn.Sequential:
    """The source's decoder: 512 channels at 1/32 to ``outputs`` at 1/2, by transposed convolutions without skips."""
    layers: list[nn.Module] = []
    channels = 512
    for width in PLAIN_WIDTHS:
        layers += [nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(True)]
        channels = width
    return nn.Sequential(*layers, nn.Conv2d(channels, outputs, 3, padding=1))


class SkipDecoder(nn.Module):
    """Decoder that joins the encoder's maps of 1/16, 1/8, 1/4 and 1/2 on its way up.

    Shape:
        (N, 512, h/32, w/32) and the maps of the other resolutions -> (N, outputs, h/2, w/2).
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        skips, widths = (256, 128, 64, 64), (128, 96, 64, 64)
        inputs = (512, *widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(conv_bn_relu(i + s, w), conv_bn_relu(w, w))
            for i, s, w in zip(inputs, skips, widths, strict=True)
        )
        self.head = nn.Conv2d(widths[-1], outputs, 1)

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Logits from the deepest map and the ``skips``, deepest first."""
        for stage, skip in zip(self.stages, skips, strict=True):
            x = stage(torch.cat([resize(x, skip.shape[2:]), skip], dim=1))
        return self.head(x)  # type: ignore[no-any-return]


class ResNet18Segmentation(nn.Module):
    """ResNet-18 (He et al. 2015) with a decoder.

    Args:
        outputs: logit channels.
        decoder: ``plain`` = the source's, ``skip`` = with skip connections.
        upsample: logits are given at this multiple of the input's size.

    Shape:
        (N, 3, H, W) -> (N, outputs, upsample * H, upsample * W) for any H, W.
    """

    def __init__(self, outputs: int = 6, decoder: Decoder = "plain", upsample: int = 2) -> None:
        super().__init__()
        encoder = torchvision_network("resnet18")
        self.encoder_conv1, self.encoder_bn1 = encoder.conv1, encoder.bn1
        self.encoder_relu, self.encoder_maxpool = encoder.relu, encoder.maxpool
        self.encoder_layer1, self.encoder_layer2 = encoder.layer1, encoder.layer2
        self.encoder_layer3, self.encoder_layer4 = encoder.layer3, encoder.layer4
        if decoder not in ("plain", "skip"):
            raise ValueError(f"unknown decoder '{decoder}'; known are plain and skip")
        self.decoder = plain_decoder(outputs) if decoder == "plain" else SkipDecoder(outputs)
        self.upsample = upsample

    @property
    def backbone(self) -> Backbone:
        """The ResNet under torchvision's names."""
        parts = {name.removeprefix("encoder_"): part for name, part in self.named_children() if name != "decoder"}
        return Backbone(nn.ModuleDict(parts), "resnet18")

    def forward(self, image: Tensor) -> Tensor:
        """Logits at ``upsample`` times the image's size."""
        skips = isinstance(self.decoder, SkipDecoder)
        x = pad_to_stride(image) if skips else image  # the source's decoder was trained on unpadded 150 x 150 images
        s2 = self.encoder_relu(self.encoder_bn1(self.encoder_conv1(x)))
        s4 = self.encoder_layer1(self.encoder_maxpool(s2))
        s8 = self.encoder_layer2(s4)
        s16 = self.encoder_layer3(s8)
        s32 = self.encoder_layer4(s16)
        logits = self.decoder(s32, (s16, s8, s4, s2)) if skips else self.decoder(s32)
        return enlarge(logits, x, image, self.upsample)


class SmallUNet(nn.Module):
    """The small U-Net of earlier checkpoints, which can still be loaded; new trainings take ``unet_small``.

    Args:
        outputs: logit channels.
        widths: feature channels at 1/2, 1/4, 1/8, 1/16 and 1/32.
        upsample: logits are given at this multiple of the input's size.

    Shape:
        (N, 3, H, W) -> (N, outputs, upsample * H, upsample * W) for any H, W.
    """

    def __init__(self, outputs: int = 6, widths: Sequence[int] = (32, 64, 128, 192, 256), upsample: int = 2) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, widths[0], 4, 2)
        self.stem2 = conv_bn_relu(widths[0], widths[0])
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(True), Residual(b)
            )
            for a, b in pairwise(widths)
        )
        self.up = nn.ModuleList(conv_bn_relu(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.head = nn.Conv2d(widths[0], outputs, 1)
        self.upsample = upsample

    def forward(self, image: Tensor) -> Tensor:
        """Logits at ``upsample`` times the image's size."""
        padded = pad_to_stride(image)
        maps = [self.stem2(self.stem(padded))]
        for stage in self.down:
            maps.append(stage(maps[-1]))
        x = maps.pop()
        for stage in self.up:
            skip = maps.pop()
            x = stage(torch.cat([resize(x, skip.shape[2:]), skip], dim=1))
        return enlarge(self.head(x), padded, image, self.upsample)


ARCHITECTURES: dict[str, type[nn.Module]] = {
    "resnet18": ResNet18Segmentation,
    "unet_small": UNetSmall,
    "small_unet": SmallUNet,
}


def recognize(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]] | None:
    """The architecture of a bare state dict of the original project (or our own), or None."""
    if {"encoder_conv1.weight", "encoder_layer4.1.conv2.weight", "decoder.12.weight"} <= state.keys():
        return "resnet18", {"outputs": state["decoder.12.weight"].shape[0], "decoder": "plain", "upsample": 2}
    if {"encoder_conv1.weight", "decoder.head.weight"} <= state.keys():
        return "resnet18", {"outputs": state["decoder.head.weight"].shape[0], "decoder": "skip", "upsample": 2}
    return None
