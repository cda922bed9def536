"""Decoders alone: what they make of maps, that every map counts, and their smallest inputs."""

import pytest
import torch

from common.networks.norm import steady_batch_norm
from permeability.context import (
    DeepLabV3Decoder,
    DeepLabV3PlusDecoder,
    ImagePooling,
    PANDecoder,
    PooledBranch,
    PSPDecoder,
    PyramidAttention,
)
from permeability.decoders import FPNDecoder, LinknetDecoder, PyramidBranch, UNetDecoder, UNetPlusPlusDecoder, UpBlock
from permeability.decoders import resize as bilinear

ENCODER = (8, 12, 16, 20, 24)
STRIDES = (2, 4, 8, 16, 32)
DECODERS = {
    "unet": (lambda: UNetDecoder(ENCODER, (16, 12, 8, 6, 5)), STRIDES, {0, 1, 2, 3, 4}, 1),
    "unetplusplus": (lambda: UNetPlusPlusDecoder(ENCODER, (16, 12, 8, 6, 5)), STRIDES, {0, 1, 2, 3, 4}, 1),
    "linknet": (lambda: LinknetDecoder(ENCODER, 5), STRIDES, {0, 1, 2, 3, 4}, 1),
    "fpn": (lambda: FPNDecoder(ENCODER, 16, 32, 0.2), STRIDES, {1, 2, 3, 4}, 4),
    "deeplabv3": (lambda: DeepLabV3Decoder(ENCODER, 16, (1, 2, 3), 0.5, False), (2, 4, 8, 8, 8), {4}, 8),
    "deeplabv3plus": (lambda: DeepLabV3PlusDecoder(ENCODER, 16, (1, 2, 3), 0.5, True), (2, 4, 8, 16, 16), {1, 4}, 4),
    "pspnet": (lambda: PSPDecoder(ENCODER[:3], 16, 0.2), STRIDES[:3], {2}, 8),
    "pan": (lambda: PANDecoder(ENCODER, 16), (2, 4, 8, 16, 16), {1, 2, 3, 4}, 4),
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_uses_its_maps_and_gives_its_resolution(name):
    torch.manual_seed(0)
    build, strides, used, stride = DECODERS[name]
    decoder = steady_batch_norm(build()).train()
    maps = [
        torch.randn(1, width, 128 // s, 192 // s, requires_grad=True)
        for width, s in zip(ENCODER, strides, strict=False)
    ]
    features = decoder(maps)
    assert features.shape[2:] == (128 // stride, 192 // stride)
    (features**2).sum().backward()
    counts = {number for number, x in enumerate(maps) if x.grad is not None and x.grad.abs().sum() > 0}
    assert counts == used
    assert all(parameter.grad is not None for parameter in decoder.parameters()), "no layer lies idle"


def test_unet_plus_plus_is_a_triangle():
    decoder = UNetPlusPlusDecoder(ENCODER, (16, 12, 8, 6, 5))
    triangle = {f"x_{path}_{level}" for level in range(4) for path in range(level + 1)}
    assert set(decoder.blocks) == triangle | {"x_0_4"}


def test_an_up_block_doubles_by_repetition_and_joins_in_order():
    block = UpBlock(2, 3, 4).eval()
    seen = []
    block.conv1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x, first, second = torch.randn(1, 2, 2, 2), torch.randn(1, 1, 4, 4), torch.randn(1, 2, 4, 4)
    block(x, first, second)
    doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(seen[0], torch.cat([doubled, first, second], dim=1))


@pytest.mark.parametrize(("times", "blocks"), [(0, 1), (1, 1), (2, 2), (3, 3)])
def test_a_pyramid_branch_doubles_as_often_as_told(times, blocks):
    branch = PyramidBranch(8, 32, times)
    assert len(branch.block) == blocks
    assert branch(torch.randn(1, 8, 3, 5)).shape == (1, 32, 3 * 2**times, 5 * 2**times)


def test_resizing_keeps_corners():
    x = torch.tensor([[[[0.0, 3.0], [6.0, 9.0]]]])
    torch.testing.assert_close(bilinear(x, (4, 4))[0, 0, 0], torch.tensor([0.0, 1.0, 2.0, 3.0]))


def test_image_pooling_is_the_same_everywhere():
    pooling = ImagePooling(6, 4).eval()
    x = torch.randn(2, 6, 5, 7)
    pooled = pooling(x)
    assert pooled.shape == (2, 4, 5, 7)
    torch.testing.assert_close(pooled, pooled[:, :, :1, :1].expand_as(pooled))
    projected = pooling[1](x.mean((2, 3), keepdim=True))
    torch.testing.assert_close(pooled[:, :, :1, :1], torch.relu(pooling[2](projected)))


@pytest.mark.parametrize("cells", [1, 2, 3, 6])
def test_a_pooled_branch_takes_maps_smaller_than_its_grid(cells):
    branch = steady_batch_norm(PooledBranch(8, 2, cells)).train()
    assert branch(torch.randn(1, 8, 1, 1)).shape == (1, 2, 1, 1)
    assert branch(torch.randn(1, 8, 6, 12)).shape == (1, 2, 6, 12)


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (17, 8)])
def test_pyramid_attention_takes_any_size_from_eight(size):
    attention = steady_batch_norm(PyramidAttention(6, 4)).train()
    assert attention(torch.randn(1, 6, *size)).shape == (1, 4, *size)
