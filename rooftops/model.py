"""DeepLabV3+ (Chen et al. 2018): an atrous encoder, a spatial pyramid over its last map, and a light decoder.

Module names follow segmentation-models-pytorch, so checkpoints trained there load as they are (``encoder.*``,
``decoder.*``, ``segmentation_head.*``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.networks.backbones import torchvision_network
from common.networks.task import Backbone

NORMALIZATION = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
"""ImageNet's, which pretrained encoders expect; what a network was trained with is in its checkpoint."""
RATES = {16: (12, 24, 36), 8: (24, 48, 72)}
"""Dilations of the pyramid by output stride: the receptive field in the image stays the same."""
NARROW = ("resnet18", "resnet34")
DEPTHS = {(False, 2): "resnet18", (False, 6): "resnet34", (True, 6): "resnet50", (True, 23): "resnet101"}
"""ResNets by bottleneck and the number of blocks in their third stage."""
ENCODERS = (*DEPTHS.values(), "efficientnet_b0")


def dilate(stage: nn.Module, rate: int) -> None:
    """Turn a stage's strides into dilation in place, so that it keeps its input's resolution."""
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            size = module.kernel_size[0]
            module.stride, module.dilation, module.padding = (1, 1), (rate, rate), (size // 2 * rate, size // 2 * rate)


class ResNetEncoder(nn.Module):
    """A ResNet without its classifier: feature maps at strides 4 and ``output_stride``.

    Args:
        name: ``resnet18``, ``resnet34`` (narrow maps), ``resnet50`` or ``resnet101``.
        channels: input channels.
        output_stride: 16 or 8; the stages beyond it are dilated.
    """

    def __init__(self, name: str, channels: int, output_stride: int) -> None:
        super().__init__()
        network = torchvision_network(name)
        self.low_channels, self.high_channels = (64, 512) if name in NARROW else (256, 2048)
        self.conv1 = network.conv1
        if channels != 3:
            self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1, self.relu, self.maxpool = network.bn1, network.relu, network.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            network.layer1,
            network.layer2,
            network.layer3,
            network.layer4,
        )
        dilate(self.layer4, 32 // output_stride)
        if output_stride == 8:
            dilate(self.layer3, 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, channels, H, W) -> (N, low_channels, H/4, W/4), (N, high_channels, H/s, W/s)."""
        low = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(image)))))
        return low, self.layer4(self.layer3(self.layer2(low)))


class EfficientNetEncoder(nn.Module):
    """EfficientNet-B0 without its classifier: feature maps at strides 4 and ``output_stride``."""

    low_channels, high_channels = 24, 320

    def __init__(self, channels: int, output_stride: int) -> None:
        super().__init__()
        self.features = torchvision_network("efficientnet_b0").features[:-1]
        if channels != 3:
            self.features[0][0] = nn.Conv2d(channels, 32, 3, stride=2, padding=1, bias=False)
        for stage in (6, 7):
            dilate(self.features[stage], 32 // output_stride)
        if output_stride == 8:
            for stage in (4, 5):
                dilate(self.features[stage], 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, channels, H, W) -> (N, 24, H/4, W/4), (N, 320, H/s, W/s)."""
        low = self.features[:3](image)
        return low, self.features[3:](low)


def conv_bn_relu(inputs: int, outputs: int, size: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def separable_conv(inputs: int, outputs: int, rate: int = 1) -> nn.Sequential:
    """3 x 3 convolution per channel, then 1 x 1 across channels."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=rate, dilation=rate, groups=inputs, bias=False),
        nn.Conv2d(inputs, outputs, 1, bias=False),
    )


class ImagePooling(nn.Sequential):
    """The pyramid's global branch: the mean of the map, projected."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W), constant over the image."""
        return super().forward(x).expand(-1, -1, *x.shape[-2:])  # type: ignore[no-untyped-call, no-any-return]


class SpatialPyramid(nn.Module):
    """Atrous spatial pyramid pooling: a 1 x 1, three dilated separable 3 x 3 and the image pooling, joined."""

    def __init__(self, inputs: int, outputs: int, rates: Sequence[int], dropout: float) -> None:
        super().__init__()
        atrous = [
            nn.Sequential(separable_conv(inputs, outputs, rate), nn.BatchNorm2d(outputs), nn.ReLU()) for rate in rates
        ]
        self.convs = nn.ModuleList([conv_bn_relu(inputs, outputs), *atrous, ImagePooling(inputs, outputs)])
        self.project = nn.Sequential(*conv_bn_relu(5 * outputs, outputs), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, outputs, h, w)."""
        return self.project(torch.cat([branch(x) for branch in self.convs], dim=1))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Pyramid, upsampling, and the low-level branch of 48 channels at a quarter of the resolution."""

    def __init__(
        self, low_channels: int, high_channels: int, output_stride: int, width: int = 256, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.aspp = nn.Sequential(
            SpatialPyramid(high_channels, width, RATES[output_stride], dropout),
            separable_conv(width, width),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.block1 = conv_bn_relu(low_channels, 48)
        self.block2 = nn.Sequential(separable_conv(48 + width, width), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """(N, low, H/4, W/4) and (N, high, H/s, W/s) -> (N, width, H/4, W/4)."""
        high = F.interpolate(self.aspp(high), size=low.shape[-2:], mode="bilinear", align_corners=True)
        return self.block2(torch.cat([high, self.block1(low)], dim=1))  # type: ignore[no-any-return]


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ on a torchvision encoder.

    Args:
        encoder: one of `ENCODERS`.
        outputs: logit channels.
        channels: input channels.
        output_stride: 16, or 8 for finer maps at about three times the cost.
        dropout: after the pyramid.

    Shape:
        (N, channels, H, W) -> (N, outputs, H, W), any H, W: padded inside to a multiple of 16, cropped back.
    """

    def __init__(
        self,
        encoder: str = "resnet50",
        outputs: int = 2,
        channels: int = 3,
        output_stride: int = 16,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if output_stride not in RATES:
            raise ValueError(f"output stride {output_stride} is not possible; use 16 or 8")
        if encoder not in ENCODERS:
            raise ValueError(f"unknown encoder '{encoder}'; known are {', '.join(ENCODERS)}")
        self.encoder: ResNetEncoder | EfficientNetEncoder
        if encoder == "efficientnet_b0":
            self.encoder = EfficientNetEncoder(channels, output_stride)
        else:
            self.encoder = ResNetEncoder(encoder, channels, output_stride)
        self.decoder = Decoder(self.encoder.low_channels, self.encoder.high_channels, output_stride, dropout=dropout)
        self.segmentation_head = nn.Sequential(nn.Conv2d(256, outputs, 1))
        self.encoder_name = encoder

    @property
    def backbone(self) -> Backbone:
        """The encoder."""
        stem = "features.0.0.weight" if self.encoder_name == "efficientnet_b0" else "conv1.weight"
        return Backbone(self.encoder, self.encoder_name, stem)

    def forward(self, image: Tensor) -> Tensor:
        """Logits at the image's own size."""
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % 16, 0, -height % 16), mode="replicate")
        logits = self.segmentation_head(self.decoder(*self.encoder(padded)))
        logits = F.interpolate(logits, size=padded.shape[-2:], mode="bilinear", align_corners=True)
        return logits[..., :height, :width]


def recognize(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Arguments of the `DeepLabV3Plus` with a ResNet whose weights these are; None = another network's.

    The output stride leaves no trace in the weights; it is taken as 16.
    """
    head, stem = state.get("segmentation_head.0.weight"), state.get("encoder.conv1.weight")
    if head is None or stem is None or "decoder.aspp.0.convs.0.0.weight" not in state:
        return None
    blocks = len({key.split(".")[2] for key in state if key.startswith("encoder.layer3.")})
    bottleneck = "encoder.layer1.0.conv3.weight" in state
    encoder = DEPTHS.get((bottleneck, blocks))
    if encoder is None:
        return None
    return {"encoder": encoder, "outputs": len(head), "channels": stem.shape[1]}
