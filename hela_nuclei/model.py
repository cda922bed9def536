"""The networks: a small U-Net, and a U-Net on a ResNet-18 encoder.

Module names are those of the original notebook, so its checkpoints load as they are. Output channel 0 is the logit of
"nucleus"; with ``outputs=2`` channel 1 is the logit of the distance map that separates touching nuclei (see
``separate.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.networks.backbones import torchvision_network
from common.networks.padding import pad_to_multiple
from common.networks.task import Backbone
from common.networks.unet_small import UNetSmall

WIDTHS = (16, 32, 64, 128)


def conv_bn_relu(inputs: int, outputs: int) -> nn.Sequential:
    """3 x 3 convolution, BatchNorm, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def down(inputs: int, outputs: int) -> nn.Sequential:
    """Encoder stage: halve the resolution, then two convolutions."""
    return nn.Sequential(nn.MaxPool2d(2), conv_bn_relu(inputs, outputs), conv_bn_relu(outputs, outputs))


def align(x: Tensor, reference: Tensor) -> Tensor:
    """Pad (or crop) ``x`` at its top and left to the size of ``reference``: odd sizes lose a row when pooled."""
    rows, columns = reference.shape[2] - x.shape[2], reference.shape[3] - x.shape[3]
    return F.pad(x, (columns, 0, rows, 0)) if rows or columns else x


class Up(nn.Module):
    """Decoder stage: double the resolution, join the encoder's map of that resolution, two convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.conv1 = conv_bn_relu(2 * outputs, outputs)
        self.conv2 = conv_bn_relu(outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, inputs, h, w) and (N, outputs, H, W) -> (N, outputs, H, W)."""
        return self.conv2(self.conv1(torch.cat([skip, align(self.upsample(x), skip)], dim=1)))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """U-Net of four resolutions (Ronneberger et al. 2015, with BatchNorm and padded convolutions).

    Args:
        outputs: logit channels.
        channels: input channels.
        widths: feature channels per resolution.
        pad_input: mirror odd sizes up to a multiple of 8 first, so that encoder and decoder maps lie on one grid. The
            notebook did not: its checkpoints, trained with maps up to 7 px out of place, need False.

    Shape:
        (N, channels, H, W) -> (N, outputs, H, W) for any H, W (of at least 8 without ``pad_input``).
    """

    def __init__(
        self, outputs: int = 1, channels: int = 1, widths: Sequence[int] = WIDTHS, *, pad_input: bool = True
    ) -> None:
        super().__init__()
        self.pad_input = pad_input
        a, b, c, d = widths
        self.conv1 = nn.Sequential(conv_bn_relu(channels, a), conv_bn_relu(a, a))
        self.conv2, self.conv3, self.conv4 = down(a, b), down(b, c), down(c, d)
        self.deconv1, self.deconv2, self.deconv3 = Up(d, c), Up(c, b), Up(b, a)
        self.out = nn.Conv2d(a, outputs, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits at the image's own size."""
        full = self.conv1(pad_to_multiple(image, 8) if self.pad_input else image)
        half = self.conv2(full)
        quarter = self.conv3(half)
        x = self.deconv1(self.conv4(quarter), quarter)
        x = self.deconv2(x, half)
        logits: Tensor = self.out(self.deconv3(x, full))
        return logits[..., : image.shape[-2], : image.shape[-1]]


class FullResolution(nn.Module):
    """Last decoder stage of ``UNetResnet``: from half to full resolution, without a skip."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(inputs, inputs, 2, stride=2)
        self.conv = conv_bn_relu(inputs, inputs)
        self.final = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Logits at the size of ``image``."""
        return self.final(self.conv(align(self.upsample(x), image)))  # type: ignore[no-any-return]


class UNetResnet(nn.Module):
    """U-Net decoder on a ResNet-18 (He et al. 2015) without its first pooling: the finest map has half resolution.

    Args:
        outputs: logit channels.
        channels: input channels; one channel takes the sum of a pretrained encoder's RGB filters (``weights.py``).
        pad_input: as in ``UNet``, to a multiple of 16.

    Shape:
        (N, channels, H, W) -> (N, outputs, H, W) for any H, W (of at least 16 without ``pad_input``).
    """

    def __init__(self, outputs: int = 1, channels: int = 1, *, pad_input: bool = True) -> None:
        super().__init__()
        self.pad_input = pad_input
        self.encoder = torchvision_network("resnet18")
        self.encoder.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        del self.encoder.fc, self.encoder.avgpool, self.encoder.maxpool
        self.deconv1, self.deconv2, self.deconv3 = Up(512, 256), Up(256, 128), Up(128, 64)
        self.out = FullResolution(64, outputs)

    @property
    def backbone(self) -> Backbone:
        """The encoder."""
        return Backbone(self.encoder, "resnet18")

    def forward(self, image: Tensor) -> Tensor:
        """Logits at the image's own size."""
        encoder = self.encoder
        padded = pad_to_multiple(image, 16) if self.pad_input else image
        s2 = encoder.layer1(encoder.relu(encoder.bn1(encoder.conv1(padded))))
        s4 = encoder.layer2(s2)
        s8 = encoder.layer3(s4)
        x = self.deconv1(encoder.layer4(s8), s8)
        x = self.deconv3(self.deconv2(x, s4), s2)
        logits: Tensor = self.out(x, padded)
        return logits[..., : image.shape[-2], : image.shape[-1]]


ARCHITECTURES: dict[str, type[nn.Module]] = {"unet_resnet18": UNetResnet, "unet": UNet, "unet_small": UNetSmall}


def recognize(state: dict[str, Tensor]) -> tuple[str, dict[str, Any]] | None:
    """The architecture whose weights ``state`` holds (the original notebook's or our own), or None."""
    stages = [f"{name}.weight" for name in ("conv1.0.0", "conv2.1.0", "conv3.1.0", "conv4.1.0")]
    if {*stages, "deconv3.upsample.weight", "out.weight"} <= state.keys():
        widths = [state[name].shape[0] for name in stages]
        first, out = state["conv1.0.0.weight"], state["out.weight"]
        return "unet", {"outputs": out.shape[0], "channels": first.shape[1], "widths": widths}
    if {"encoder.conv1.weight", "deconv1.upsample.weight", "out.final.weight"} <= state.keys():
        return "unet_resnet18", {
            "outputs": state["out.final.weight"].shape[0],
            "channels": state["encoder.conv1.weight"].shape[1],
        }
    return None
