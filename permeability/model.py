"""Eight segmentation networks, each an encoder, a decoder and a convolution to the logits; and a small U-Net.

Weights of segmentation-models-pytorch load as they are, and `recognize` says which network they belong to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from common.networks.task import Backbone
from common.networks.unet_small import recognize_unet_small
from permeability.context import DeepLabV3Decoder, DeepLabV3PlusDecoder, PANDecoder, PSPDecoder
from permeability.decoders import FPNDecoder, LinknetDecoder, UNetDecoder, UNetPlusPlusDecoder, resize
from permeability.encoders import Encoder, build_encoder, check, encoder_widths, recognize_encoder

WIDTHS = (256, 128, 64, 32, 16)
"""Channels of UNet's and UNet++'s decoder at strides 16, 8, 4, 2, 1."""
RATES = (12, 24, 36)
"""Dilations of DeepLab's pyramid."""


class SegmentationModel(nn.Module):
    """An encoder, a decoder, and a convolution to the logits.

    Args:
        encoder: maps at strides 2, 4, ...
        decoder: makes one map of them.
        head: makes logits of that map, at any stride.
        least: smallest side that the decoder takes.

    Shape:
        (N, channels, H, W) -> (N, outputs, H, W), any H and W: padded inside by repeating the border, cropped back.
    """

    def __init__(self, encoder: Encoder, decoder: nn.Module, head: nn.Conv2d, least: int = 1) -> None:
        super().__init__()
        self.encoder, self.decoder, self.segmentation_head = encoder, decoder, nn.Sequential(head)
        self.least = max(least, encoder.least)
        decoder.apply(initialize)
        self.register_load_state_dict_pre_hook(accept_foreign)  # type: ignore[no-untyped-call]

    @property
    def backbone(self) -> Backbone:
        """The encoder."""
        return Backbone(self.encoder, self.encoder.name, self.encoder.stem)

    def forward(self, image: Tensor) -> Tensor:
        """Logits at the image's own size."""
        height, width = image.shape[2:]
        down, right = (max(-size % self.encoder.stride, self.least - size) for size in (height, width))
        padded = F.pad(image, (0, right, 0, down), mode="replicate") if down or right else image
        logits = resize(self.segmentation_head(self.decoder(self.encoder(padded))), padded.shape[2:])
        return logits[..., :height, :width]


def initialize(module: nn.Module) -> None:
    """Random start of one layer of a decoder, in place: He et al. (2015) for what ReLU follows."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def accept_foreign(model: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Before loading: leave out what we do not build, and take DeepLabV3's keys as they were before 2024.

    That is an auxiliary image classifier, and stages of the encoder beyond its depth (PSPNet uses three of five).
    """
    assert isinstance(model, SegmentationModel)
    built = len(model.encoder.widths) - 1
    former = {"0": "aspp", "1": "conv", "2": "bn"} if isinstance(model.decoder, DeepLabV3Decoder) else {}
    for key in [key for key in state if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        stage = re.match(r"encoder\.(?:layer|patch_embed|block|norm)(\d)\.", name)
        part = re.match(r"decoder\.([012])\.", name)
        if name.startswith("classification_head.") or (stage and int(stage[1]) > built):
            del state[key]
        elif part and former:
            state[f"{prefix}decoder.{former[part[1]]}.{name[part.end() :]}"] = state.pop(key)


def head(inputs: int, outputs: int, size: int) -> nn.Conv2d:
    """The convolution to the logits."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    assert conv.bias is not None
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


def unet(
    encoder: str = "resnet34", outputs: int = 2, channels: int = 3, widths: Sequence[int] = WIDTHS
) -> SegmentationModel:
    """UNet."""
    features = build_encoder(encoder, channels)
    decoder = UNetDecoder(features.widths, five(widths))
    return SegmentationModel(features, decoder, head(widths[-1], outputs, 3))


def unetplusplus(
    encoder: str = "resnet34", outputs: int = 2, channels: int = 3, widths: Sequence[int] = WIDTHS
) -> SegmentationModel:
    """UNet++; ResNets only."""
    features = half_resolution(build_encoder(encoder, channels), "unetplusplus")
    decoder = UNetPlusPlusDecoder(features.widths, five(widths))
    return SegmentationModel(features, decoder, head(widths[-1], outputs, 3))


def linknet(encoder: str = "resnet34", outputs: int = 2, channels: int = 3, width: int = 32) -> SegmentationModel:
    """Linknet; ResNets only."""
    features = half_resolution(build_encoder(encoder, channels), "linknet")
    return SegmentationModel(features, LinknetDecoder(features.widths, width), head(width, outputs, 1))


def five(widths: Sequence[int]) -> Sequence[int]:
    """The decoder's widths, if there is one for each resolution; else ValueError."""
    if len(widths) != 5:
        raise ValueError(f"widths {tuple(widths)} are {len(widths)}; give five, for the strides 16, 8, 4, 2, 1")
    return widths


def half_resolution(encoder: Encoder, arch: str) -> Encoder:
    """The encoder, if it has a map at half the image's resolution; else ValueError."""
    if not encoder.widths[0]:
        raise ValueError(
            f"network {arch} needs features at half the resolution, which encoder {encoder.name} lacks; "
            f"use a ResNet, or another network such as unet, fpn or deeplabv3plus"
        )
    return encoder


def fpn(
    encoder: str = "resnet34",
    outputs: int = 2,
    channels: int = 3,
    pyramid: int = 256,
    width: int = 128,
    dropout: float = 0.2,
) -> SegmentationModel:
    """FPN."""
    features = build_encoder(encoder, channels)
    return SegmentationModel(features, FPNDecoder(features.widths, pyramid, width, dropout), head(width, outputs, 1))


def deeplabv3(
    encoder: str = "resnet34",
    outputs: int = 2,
    channels: int = 3,
    width: int = 256,
    output_stride: int = 8,
    separable: bool = False,
    dropout: float = 0.5,
) -> SegmentationModel:
    """DeepLabV3: accurate and slow, since its maps stay at an eighth of the resolution."""
    check("output stride", output_stride, (8, 16))
    features = build_encoder(encoder, channels, output_stride)
    decoder = DeepLabV3Decoder(features.widths, width, RATES, dropout, separable)
    return SegmentationModel(features, decoder, head(width, outputs, 1))


def deeplabv3plus(
    encoder: str = "resnet34",
    outputs: int = 2,
    channels: int = 3,
    width: int = 256,
    output_stride: int = 16,
    separable: bool = True,
    dropout: float = 0.5,
) -> SegmentationModel:
    """DeepLabV3+."""
    check("output stride", output_stride, (8, 16))
    features = build_encoder(encoder, channels, output_stride)
    decoder = DeepLabV3PlusDecoder(features.widths, width, RATES, dropout, separable)
    return SegmentationModel(features, decoder, head(width, outputs, 1))


def pspnet(
    encoder: str = "resnet34",
    outputs: int = 2,
    channels: int = 3,
    width: int = 512,
    depth: int = 3,
    dropout: float = 0.2,
) -> SegmentationModel:
    """PSPNet: fast, since it uses the encoder down to stride 2^depth only."""
    features = build_encoder(encoder, channels, depth=depth)
    return SegmentationModel(features, PSPDecoder(features.widths, width, dropout), head(width, outputs, 3))


def pan(
    encoder: str = "resnet34", outputs: int = 2, channels: int = 3, width: int = 32, output_stride: int = 16
) -> SegmentationModel:
    """PAN: the lightest decoder."""
    check("output stride", output_stride, (16, 32))
    features = build_encoder(encoder, channels, output_stride)
    # Attention halves the deepest map three times.
    return SegmentationModel(features, PANDecoder(features.widths, width), head(width, outputs, 3), 8 * output_stride)


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "unet": unet,
    "unetplusplus": unetplusplus,
    "fpn": fpn,
    "deeplabv3": deeplabv3,
    "deeplabv3plus": deeplabv3plus,
    "linknet": linknet,
    "pspnet": pspnet,
    "pan": pan,
}
"""Those that take an encoder."""


ONLY_IN = {
    "unet": "decoder.blocks.0.conv1.0.weight",
    "unetplusplus": "decoder.blocks.x_0_0.conv1.0.weight",
    "fpn": "decoder.p5.weight",
    "deeplabv3plus": "decoder.block2.0.0.weight",
    "linknet": "decoder.blocks.0.block.0.0.weight",
    "pspnet": "decoder.psp.blocks.0.pool.1.0.weight",
    "pan": "decoder.gau1.conv2.conv.weight",
    "deeplabv3": "decoder.aspp.project.0.weight",
}
"""A key that no other architecture has."""


def recognize(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]] | None:
    """The architecture and arguments of a bare state dict of segmentation-models-pytorch (or our own), or None.

    Output stride and dilations leave no trace in the weights; they are taken to be the defaults.
    """
    if (small := recognize_unet_small(state)) is not None:
        return "unet_small", small
    keys = {re.sub(r"^decoder\.0\.(convs|project)\.", r"decoder.aspp.\1.", key): key for key in state}
    arch = next((arch for arch, key in ONLY_IN.items() if key in keys), None)
    found = recognize_encoder(state, "encoder.")
    if arch is None or found is None or "segmentation_head.0.weight" not in state:
        return None
    encoder, channels = found
    outputs, inner = state["segmentation_head.0.weight"].shape[:2]
    arguments: dict[str, Any] = {"encoder": encoder, "outputs": outputs, "channels": channels}
    if arch in ("unet", "unetplusplus"):
        names = range(5) if arch == "unet" else (f"x_0_{level}" for level in range(5))
        blocks = [f"decoder.blocks.{name}.conv2.0.weight" for name in names]
        arguments["widths"] = tuple(state[key].shape[0] for key in blocks if key in state)
    else:
        arguments["width"] = inner
    if arch == "fpn":
        arguments["pyramid"] = state["decoder.p5.weight"].shape[0]
    if arch.startswith("deeplab"):
        pointwise = f"decoder.aspp.{'0.' if arch == 'deeplabv3plus' else ''}convs.1.0.1.weight"
        arguments["separable"] = pointwise in keys
    if arch == "pspnet":
        widths, context = encoder_widths(encoder), state[ONLY_IN[arch]].shape[1]
        arguments["depth"] = max((depth for depth, width in enumerate(widths, start=1) if width == context), default=3)
    return arch, arguments
