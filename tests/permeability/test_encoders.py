"""Encoders: the features of torchvision's ResNets and of the published Mix Transformer, at any stride and depth."""

import functools
from unittest import mock

import pytest
import torch
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

from common.networks.norm import steady_batch_norm
from permeability.encoders import (
    ENCODERS,
    MIX_TRANSFORMER_DEPTHS,
    EfficientAttention,
    MixTransformer,
    build_encoder,
    drop_path,
    encoder_widths,
    recognize_encoder,
)
from tests.peers import Peer

get_encoder = Peer("segmentation_models_pytorch.encoders:get_encoder")

TAPS = ["relu", "layer1", "layer2", "layer3", "layer4"]


def shake(model, seed=0):
    """Random statistics and norms, so that no layer is the identity and every eps and scale counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
                value.uniform_(0.5, 1.5, generator=generator)
            elif value.ndim == 1 and value.is_floating_point():
                value.normal_(0, 0.2, generator=generator)
    return model.eval()


def peer(name, **options):
    """The peer's encoder with random weights; its sizes are computed with tensors, which the meta device has not."""
    with mock.patch("torch.linspace", functools.partial(torch.linspace, device="cpu")):
        return get_encoder(name, weights=None, **options)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_features_are_torchvisions(name):
    torch.manual_seed(0)
    reference = shake(get_model(name, weights=None))
    encoder = build_encoder(name).eval()
    encoder.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")})
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = create_feature_extractor(reference, TAPS)(image).values()
        for ours, theirs in zip(encoder(image), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mit_b0", {}),
        ("mit_b0", {"output_stride": 16}),
        ("mit_b0", {"output_stride": 8}),
        ("mit_b0", {"depth": 3}),
        ("mit_b1", {"in_channels": 5}),
        ("mit_b2", {}),
        ("resnet34", {"output_stride": 8}),
        ("resnet50", {"output_stride": 16, "in_channels": 1}),
    ],
)
def test_features_are_the_peers(name, options):
    torch.manual_seed(0)
    reference = shake(peer(name, **options))
    ours = dict(options)
    encoder = build_encoder(name, ours.pop("in_channels", 3), **ours).eval()
    state = reference.state_dict()
    encoder.load_state_dict({key: state[key] for key in encoder.state_dict()})
    image = torch.randn(2, options.get("in_channels", 3), 64, 96)
    with torch.inference_mode():
        maps, expected = encoder(image), reference(image)[1:]
    assert len(maps) == len(expected) and encoder.stride == 64 // maps[-1].shape[2]
    for a, b, width in zip(maps, expected, encoder.widths, strict=True):
        assert a.shape[1] == width
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_size_has_the_peers_tensors(name):
    with torch.device("meta"):
        ours, theirs = build_encoder(name), peer(name)
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
    assert ours.widths == encoder_widths(name) == tuple(theirs.out_channels[1:])
    assert recognize_encoder(ours.state_dict()) in [(name, 3)]


def test_mit_b4_has_the_published_size():
    with torch.device("meta"):
        count = sum(p.numel() for p in build_encoder("mit_b4").parameters())
    assert count == pytest.approx(60.84e6, rel=1e-3)


def test_attention_is_softmax_over_the_reduced_map():
    torch.manual_seed(0)
    attention = EfficientAttention(12, heads=3, reduction=2)
    tokens = torch.randn(2, 4 * 6, 12)
    keys = attention.norm(attention.sr(tokens.mT.reshape(2, 12, 4, 6)).flatten(2).mT)
    key, value = attention.kv(keys).chunk(2, dim=-1)
    query = attention.q(tokens)
    heads = []
    for part in range(0, 12, 4):
        q, k, v = (x[..., part : part + 4] for x in (query, key, value))
        heads.append(torch.softmax(q @ k.mT / 2, dim=-1) @ v)
    expected = attention.proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(tokens, 4, 6), expected, atol=1e-5, rtol=1e-5)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(4000, 3, 2)
    dropped = drop_path(x, 0.25, training=True)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped == dropped[:, :1, :1]).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)
    assert drop_path(x, 0.25, training=False) is x and drop_path(x, 0, training=True) is x


def test_drop_path_grows_from_block_to_block():
    encoder = MixTransformer("mit_b0", drop_rate=0.7)
    rates = [block.rate for stage in range(1, 5) for block in encoder.get_submodule(f"block{stage}")]
    assert rates == pytest.approx([0.1 * number for number in range(8)])


def test_drop_path_is_on_both_branches():
    torch.manual_seed(0)
    block = MixTransformer("mit_b0").block1[0].train()
    tokens = torch.randn(1, 64, 32)
    block.rate = 1 - 1e-9
    assert torch.equal(block(tokens, 8, 8), tokens)
    assert not torch.equal(block.eval()(tokens, 8, 8), tokens)


def test_the_mix_transformers_random_start():
    torch.manual_seed(0)
    block = build_encoder("mit_b1").block3[0]
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02) and not block.mlp.fc1.bias.any()
    assert block.mlp.dwconv.dwconv.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert block.attn.sr.weight.std().item() == pytest.approx((2 / (4 * 320)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("name", ["resnet18", "mit_b0"])
def test_a_batch_of_one_smallest_image_trains(name):
    encoder = steady_batch_norm(build_encoder(name)).train()
    maps = encoder(torch.randn(1, 3, 32, 32))
    assert maps[-1].shape[2:] == (1, 1)
    maps[-1].sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize("name", ["resnet18", "mit_b0"])
def test_stages_beyond_the_depth_are_not_built(name):
    encoder = build_encoder(name, depth=3)
    assert encoder.stride == 8 and len(encoder.widths) == 3
    assert not any(key.startswith(("layer3", "layer4", "block3", "patch_embed4")) for key in encoder.state_dict())
    assert recognize_encoder(encoder.state_dict()) == (name, 3)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["resnet18", "mit_b0"])
def test_the_number_of_bands_is_read_off_the_weights(name, channels):
    encoder = build_encoder(name, channels).eval()
    assert encoder(torch.randn(1, channels, 32, 32))[-1].shape[1] == encoder.widths[-1]
    state = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    assert recognize_encoder(state, "encoder.") == (name, channels)
    assert recognize_encoder(state) is None


@pytest.mark.parametrize("name", ["resnext50_32x4d", "wide_resnet50_2", "mobilenet_v2"])
def test_other_networks_are_not_taken_for_ours(name):
    with torch.device("meta"):
        assert recognize_encoder(get_model(name, weights=None).state_dict()) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("resnet19",), ("resnet19", "mit_b5")),
        (("mit_b0", 3, 4), ("output stride 4", "8, 16, 32")),
        (("resnet18", 3, 32, 6), ("encoder depth 6", "2, 3, 4, 5")),
    ],
)
def test_impossible_encoders_are_named(arguments, words):
    with pytest.raises(ValueError, match=words[0]) as error:
        build_encoder(*arguments)
    assert words[1] in str(error.value)


def test_every_mix_transformer_is_offered():
    assert set(MIX_TRANSFORMER_DEPTHS) == {f"mit_b{number}" for number in range(6)}
