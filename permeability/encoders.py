"""Encoders: ResNets from torchvision's modules, and SegFormer's Mix Transformer (Xie et al. 2021) by hand.

An encoder turns an image into maps at strides 2, 4, 8, 16 and 32. Those of the Mix Transformer begin at stride 4; its
map at stride 2 has no channels. Weight names are torchvision's and SegFormer's own, as segmentation-models-pytorch has
them too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.networks.backbones import torchvision_network

RESNET_DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
MIX_TRANSFORMER_DEPTHS = {
    "mit_b0": (2, 2, 2, 2),
    "mit_b1": (2, 2, 2, 2),
    "mit_b2": (3, 4, 6, 3),
    "mit_b3": (3, 4, 18, 3),
    "mit_b4": (3, 8, 27, 3),
    "mit_b5": (3, 6, 40, 3),
}
"""Blocks of the four stages."""
HEADS, REDUCTIONS = (1, 2, 5, 8), (8, 4, 2, 1)
"""Attention heads, and by how much each side of the map shrinks before it gives keys and values, by stage."""
ENCODERS = (*RESNET_DEPTHS, *MIX_TRANSFORMER_DEPTHS)


def encoder_widths(name: str) -> tuple[int, ...]:
    """Channels of an encoder's five maps."""
    if name == "mit_b0":
        return (0, 32, 64, 160, 256)
    if name in MIX_TRANSFORMER_DEPTHS:
        return (0, 64, 128, 320, 512)
    return (64, 64, 128, 256, 512) if name in ("resnet18", "resnet34") else (64, 256, 512, 1024, 2048)


class Encoder(nn.Module):
    """What the decoders know of an encoder: (N, channels, H, W) -> maps at strides 2, 4, ... up to its depth.

    H and W are multiples of ``stride`` and at least ``least``.
    """

    name: str
    stem: str
    """Key of the filters that see the image."""
    widths: tuple[int, ...]
    """Channels of the maps."""
    stride: int
    """Stride of the deepest map."""
    least: int = 1
    """Smallest side of an image."""


def dilate(stage: nn.Module, rate: int) -> None:
    """Turn a stage's strides into dilation in place, so that it keeps its input's resolution."""
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            padding = module.kernel_size[0] // 2 * rate
            module.stride, module.dilation, module.padding = (1, 1), (rate, rate), (padding, padding)


class ResNetEncoder(Encoder):
    """A ResNet without its classifier.

    Args:
        name: ``resnet18`` ... ``resnet152``.
        channels: input channels.
        output_stride: 32, or 16 or 8: the stages beyond it are dilated.
        depth: number of maps, 2 ... 5; further stages are not built.
    """

    stem = "conv1.weight"

    def __init__(self, name: str, channels: int = 3, output_stride: int = 32, depth: int = 5) -> None:
        super().__init__()
        network = torchvision_network(name)
        self.name, self.stride = name, min(output_stride, 2**depth)
        self.conv1, self.bn1, self.relu, self.maxpool = network.conv1, network.bn1, network.relu, network.maxpool
        if channels != 3:
            self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.stages = [f"layer{number}" for number in range(1, depth)]
        for number, stage in enumerate(self.stages, start=1):
            self.add_module(stage, network.get_submodule(stage))
            if 2 ** (number + 1) > output_stride:
                dilate(self.get_submodule(stage), 2 ** (number + 1) // output_stride)
        self.widths = encoder_widths(name)[:depth]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps at strides 2, 4, ..."""
        x = self.relu(self.bn1(self.conv1(image)))
        maps = [x]
        x = self.maxpool(x)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
            maps.append(x)
        return maps


def as_tokens(x: Tensor) -> Tensor:
    """Map (N, C, H, W) -> tokens (N, H W, C)."""
    return x.flatten(2).transpose(1, 2)


def as_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (N, H W, C) -> map (N, C, H, W)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, height, width)


class OverlapPatchEmbedding(nn.Module):
    """Tokens from overlapping patches: a strided convolution whose kernel is larger than its stride."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        """(N, inputs, H, W) -> tokens (N, h w, outputs), h, w."""
        x = self.proj(x)
        return self.norm(as_tokens(x)), x.shape[2], x.shape[3]


class EfficientAttention(nn.Module):
    """Self-attention whose keys and values come from a map reduced by a strided convolution.

    Args:
        width: channels.
        heads: attention heads.
        reduction: by how much each side of the map shrinks; the cost falls with its square.
    """

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, stride=reduction)
            self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(N, H W, C) -> the same shape."""
        query = self.q(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
        if self.reduction > 1:
            tokens = self.norm(as_tokens(self.sr(as_map(tokens, height, width))))
        key, value = self.kv(tokens).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class DepthwiseConv(nn.Module):
    """3 x 3 convolution per channel: its zero padding tells tokens where they are, instead of an encoding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(N, H W, C) -> the same shape."""
        return as_tokens(self.dwconv(as_map(tokens, height, width)))


class MixFeedForward(nn.Module):
    """Mix-FFN: two linear layers, between them the depthwise convolution and GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.dwconv = DepthwiseConv(4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(N, H W, C) -> the same shape."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(tokens), height, width)))  # type: ignore[no-any-return]


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth (Huang et al. 2016): zero whole samples of a branch, scale the others to the same mean."""
    if rate == 0 or not training:
        return x
    keep = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device) >= rate
    return x * (keep / (1 - rate)).to(x.dtype)


class TransformerBlock(nn.Module):
    """Attention and Mix-FFN, each normalized before and added to its input."""

    def __init__(self, width: int, heads: int, reduction: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = EfficientAttention(width, heads, reduction)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MixFeedForward(width)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(N, H W, C) -> the same shape."""
        tokens = tokens + drop_path(self.attn(self.norm1(tokens), height, width), self.rate, self.training)
        return tokens + drop_path(self.mlp(self.norm2(tokens), height, width), self.rate, self.training)


class MixTransformer(Encoder):
    """SegFormer's encoder.

    Args:
        name: ``mit_b0`` ... ``mit_b5``.
        channels: input channels.
        output_stride: 32, or 16 or 8: the stages beyond it are dilated.
        depth: number of maps, 2 ... 5; further stages are not built.
        drop_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
    """

    stem = "patch_embed1.proj.weight"
    least = 32  # the first stage reduces a map of stride 4 by 8

    def __init__(
        self, name: str, channels: int = 3, output_stride: int = 32, depth: int = 5, drop_rate: float = 0.1
    ) -> None:
        super().__init__()
        self.name, self.stride, self.depth = name, min(output_stride, 2**depth), depth
        self.widths, blocks_of = encoder_widths(name)[:depth], MIX_TRANSFORMER_DEPTHS[name]
        rates = iter([drop_rate * block / (sum(blocks_of) - 1) for block in range(sum(blocks_of))])
        inputs = channels
        for stage, (width, blocks, heads, reduction) in enumerate(
            zip(self.widths[1:], blocks_of, HEADS, REDUCTIONS, strict=False), start=1
        ):
            embed = OverlapPatchEmbedding(inputs, width, 7 if stage == 1 else 3, 4 if stage == 1 else 2)
            block = nn.ModuleList(TransformerBlock(width, heads, reduction, next(rates)) for _ in range(blocks))
            for part in (embed, block):
                if 2 ** (stage + 1) > output_stride:
                    dilate(part, 2 ** (stage + 1) // output_stride)
            self.add_module(f"patch_embed{stage}", embed)
            self.add_module(f"block{stage}", block)
            self.add_module(f"norm{stage}", nn.LayerNorm(width, eps=1e-6))
            inputs = width
        self.apply(initialize)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps at strides 2 (without channels), 4, 8, ..."""
        maps = [image.new_zeros(image.shape[0], 0, image.shape[2] // 2, image.shape[3] // 2)]
        x = image
        for stage in range(1, self.depth):
            tokens, height, width = self.get_submodule(f"patch_embed{stage}")(x)
            for block in self.get_submodule(f"block{stage}").children():
                tokens = block(tokens, height, width)
            x = as_map(self.get_submodule(f"norm{stage}")(tokens), height, width).contiguous()
            maps.append(x)
        return maps


def initialize(module: nn.Module) -> None:
    """SegFormer's random start of one layer, in place."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def build_encoder(name: str, channels: int = 3, output_stride: int = 32, depth: int = 5) -> Encoder:
    """Build an encoder with random weights.

    Args:
        name: one of ``ENCODERS``.
        channels: input channels.
        output_stride: stride of the deepest map.
        depth: number of maps, 2 ... 5.

    Raises:
        ValueError: the name, stride or depth is not possible.
    """
    if name not in ENCODERS:
        raise ValueError(f"unknown encoder '{name}'; known are {', '.join(ENCODERS)}")
    check("output stride", output_stride, (8, 16, 32))
    check("encoder depth", depth, (2, 3, 4, 5))
    kind = ResNetEncoder if name in RESNET_DEPTHS else MixTransformer
    return kind(name, channels, output_stride, depth)


def check(what: str, value: int, allowed: Sequence[int]) -> None:
    """Raise ValueError unless ``value`` is one of the allowed."""
    if value not in allowed:
        raise ValueError(f"{what} {value} is not possible; use one of {', '.join(map(str, allowed))}")


def recognize_encoder(state: Mapping[str, Tensor], prefix: str = "") -> tuple[str, int] | None:
    """Name and input channels of the encoder whose weights a state dict holds under a prefix, or None."""
    if f"{prefix}patch_embed1.proj.weight" in state:
        stem, stages, known = state[f"{prefix}patch_embed1.proj.weight"], "block", MIX_TRANSFORMER_DEPTHS
        known = {name: depths for name, depths in known.items() if encoder_widths(name)[1] == stem.shape[0]}
    elif state.get(f"{prefix}layer1.0.conv2.weight", torch.empty(0)).shape == (64, 64, 3, 3):  # no ResNeXt, no wide one
        stem, stages, known = state[f"{prefix}conv1.weight"], "layer", RESNET_DEPTHS
        bottleneck = f"{prefix}layer1.0.conv3.weight" in state
        known = {name: depths for name, depths in known.items() if (encoder_widths(name)[1] == 256) == bottleneck}
    else:
        return None
    blocks = {tuple(key.removeprefix(prefix).split(".")[:2]) for key in state if key.startswith(prefix + stages)}
    counts = [sum(stage == f"{stages}{number}" for stage, _ in blocks) for number in (1, 2, 3, 4)]
    for name, depths in known.items():
        if all(count in (0, depth) for count, depth in zip(counts, depths, strict=True)) and counts[0]:
            return name, stem.shape[1]
    return None
