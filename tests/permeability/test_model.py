"""Whole networks: the peer's logits with the peer's weights, any size, batches of one, every precision."""

import functools
from unittest import mock

import pytest
import torch

from common.networks.norm import steady_batch_norm
from permeability.model import ARCHITECTURES, recognize
from permeability.task import TASK
from tests.peers import Peer

smp = Peer("segmentation_models_pytorch")

PEERS = {
    "unet": Peer("segmentation_models_pytorch:Unet"),
    "unetplusplus": Peer("segmentation_models_pytorch:UnetPlusPlus"),
    "fpn": Peer("segmentation_models_pytorch:FPN"),
    "deeplabv3": Peer("segmentation_models_pytorch:DeepLabV3"),
    "deeplabv3plus": Peer("segmentation_models_pytorch:DeepLabV3Plus"),
    "linknet": Peer("segmentation_models_pytorch:Linknet"),
    "pspnet": Peer("segmentation_models_pytorch:PSPNet"),
    "pan": Peer("segmentation_models_pytorch:PAN"),
}
RESNETS_ONLY = ("unetplusplus", "linknet")
PAIRS = [
    (arch, encoder)
    for arch in ARCHITECTURES
    for encoder in ("resnet18", "mit_b0")
    if not (arch in RESNETS_ONLY and encoder == "mit_b0")
]
SPARSE = [
    ("unet", "resnet34"),
    ("deeplabv3plus", "resnet50"),
    ("unet", "mit_b1"),
    ("pan", "resnet101"),
    ("fpn", "mit_b2"),
]


def peer(arch, encoder, **options):
    """The peer's network with random weights; its sizes are computed with tensors, which the meta device has not."""
    with mock.patch("torch.linspace", functools.partial(torch.linspace, device="cpu")):
        return PEERS[arch](encoder, encoder_weights=None, **options)


def shaken(arch, encoder, **options):
    """The same with random statistics and norms, so that no layer is the identity."""
    torch.manual_seed(0)
    model = peer(arch, encoder, **options).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
                value.uniform_(0.8, 1.2)
            elif value.ndim == 1 and value.is_floating_point():
                value.normal_(0, 0.1)
    return model


def agree(model, reference, image):
    with torch.inference_mode():
        expected = reference(image)
        scale = max(expected.std().item(), 1.0)
        torch.testing.assert_close(model.eval()(image), expected, atol=1e-4 * scale, rtol=0)
    assert expected.std() > 1e-3, "a constant would agree by chance"


@pytest.mark.parametrize(("arch", "encoder"), PAIRS + SPARSE)
def test_the_peers_weights_give_its_logits(arch, encoder):
    reference = shaken(arch, encoder, classes=2)
    state = reference.state_dict()
    name, arguments = recognize(state)
    assert (name, arguments["encoder"], arguments["outputs"], arguments["channels"]) == (arch, encoder, 2, 3)
    model = TASK.build(name, **arguments)
    model.load_state_dict(state)
    agree(model, reference, torch.randn(1, 3, 128 if arch == "pan" else 64, 128))


@pytest.mark.parametrize(
    ("arch", "encoder", "theirs", "ours"),
    [
        ("unet", "resnet18", {"decoder_channels": (64, 48, 32, 24, 8)}, {}),
        ("unetplusplus", "resnet18", {"decoder_channels": (64, 48, 32, 24, 8)}, {}),
        ("fpn", "resnet18", {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 32}, {}),
        ("pan", "mit_b0", {"decoder_channels": 16}, {}),
        ("pspnet", "resnet18", {"psp_out_channels": 64, "encoder_depth": 5, "upsampling": 32}, {}),
        ("pspnet", "mit_b0", {"encoder_depth": 4, "upsampling": 16}, {}),
        ("deeplabv3", "resnet18", {"decoder_aspp_separable": True, "decoder_channels": 64}, {}),
        ("deeplabv3plus", "resnet18", {"decoder_aspp_separable": False, "decoder_channels": 64}, {}),
        ("deeplabv3", "resnet18", {"encoder_output_stride": 16}, {"output_stride": 16}),
        ("deeplabv3plus", "mit_b0", {"encoder_output_stride": 8}, {"output_stride": 8}),
        ("unet", "mit_b0", {"in_channels": 4, "aux_params": {"classes": 3}}, {}),
        ("deeplabv3", "resnet18", {"in_channels": 1, "aux_params": {"classes": 3}}, {}),
    ],
)
def test_arguments_are_read_off_the_weights(arch, encoder, theirs, ours):
    reference = shaken(arch, encoder, classes=3, **theirs)
    name, arguments = recognize(reference.state_dict())
    model = TASK.build(name, **(arguments | ours))
    model.load_state_dict(reference.state_dict())
    image = torch.randn(1, theirs.get("in_channels", 3), 128 if arch == "pan" else 64, 128)
    agree(model, lambda x: y[0] if isinstance(y := reference(x), tuple) else y, image)


def test_pan_at_stride_32():
    reference = shaken("pan", "resnet18", classes=2, encoder_output_stride=32)
    model = TASK.build("pan", encoder="resnet18", output_stride=32)
    model.load_state_dict(reference.state_dict())
    agree(model, reference, torch.randn(1, 3, 256, 256))


def test_deeplabv3_of_older_files():
    reference = shaken("deeplabv3", "resnet18", classes=2)
    former = {"decoder.aspp.": "decoder.0.", "decoder.conv.": "decoder.1.", "decoder.bn.": "decoder.2."}
    state = {}
    for key, value in reference.state_dict().items():
        new = next((part for part in former if key.startswith(part)), "")
        state[key.replace(new, former[new]) if new else key] = value
    assert "decoder.0.project.0.weight" in state
    name, arguments = recognize(state)
    model = TASK.build(name, **arguments)
    model.load_state_dict(state)
    assert name == "deeplabv3" and "decoder.0.project.0.weight" in state, "the caller's dictionary is left alone"
    agree(model, reference, torch.randn(1, 3, 64, 64))


def test_what_is_left_out_in_loading_is_only_what_is_not_built():
    state = TASK.build("unet", encoder="resnet34").state_dict()
    with pytest.raises(RuntimeError, match=r"layer1\.2\."):
        TASK.build("unet", encoder="resnet18").load_state_dict(state)


@pytest.mark.parametrize(("arch", "encoder"), PAIRS)
def test_any_size_trains_in_batches_of_one(arch, encoder):
    torch.manual_seed(0)
    model = TASK.build(arch, encoder=encoder, outputs=3, channels=4)
    steady_batch_norm(model).train()
    logits = model(torch.randn(1, 4, 35, 67))
    assert logits.shape == (1, 3, 35, 67)
    (logits**2).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert model(torch.randn(1, 4, 1, 1)).shape == (1, 3, 1, 1)


@pytest.mark.parametrize(("arch", "encoder"), PAIRS)
def test_half_precision(arch, encoder):
    torch.manual_seed(0)
    model = TASK.build(arch, encoder=encoder).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, 3, 33, 32))
    assert logits.dtype == torch.bfloat16
    logits.float().square().mean().backward()
    assert all(p.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("arch", ["unet", "deeplabv3plus"])
def test_padding_repeats_the_border_at_the_lower_right(arch):
    torch.manual_seed(0)
    model = TASK.build(arch, encoder="resnet18").eval()
    image = torch.randn(1, 3, 64, 64)
    image[..., 50:] = image[..., 49:50]
    image[..., 60:, :] = image[..., 59:60, :]
    with torch.inference_mode():
        torch.testing.assert_close(model(image[..., :60, :50]), model(image)[..., :60, :50])


@pytest.mark.parametrize("arch", ["unet", "pspnet"])
def test_samples_of_a_batch_do_not_mix(arch):
    torch.manual_seed(0)
    model = TASK.build(arch, encoder="mit_b0").eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(images)[1:2], model(images[1:2]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("arch", "encoder", "millions"),
    [("deeplabv3plus", "resnet18", 12.33), ("deeplabv3plus", "resnet50", 26.678), ("deeplabv3plus", "mit_b4", 61.995)],
)
def test_parameters_are_as_many_as_the_peers(arch, encoder, millions):
    with torch.device("meta"):
        count, theirs = (
            sum(p.numel() for p in network.parameters())
            for network in (TASK.build(arch, encoder=encoder, outputs=1), peer(arch, encoder))
        )
    assert count == theirs == pytest.approx(millions * 1e6, rel=1e-3)


def test_a_few_steps_reduce_the_loss():
    torch.manual_seed(0)
    model = TASK.build("unet", encoder="mit_b0").train()
    image = torch.zeros(2, 3, 64, 64)
    image[0, :, 16:48, 16:48], image[1, :, :, 40:] = 1, 1
    target = (image[:, 0] > 0).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(image), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_decoders_start_so_that_relu_keeps_the_signal():
    torch.manual_seed(0)
    model = TASK.build("deeplabv3", encoder="resnet18")
    weight = model.decoder.conv.weight
    assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.02)
    head = model.segmentation_head[0]
    assert head.weight.abs().max().item() == pytest.approx((6 / (256 + 2)) ** 0.5, rel=0.05) and not head.bias.any()


@pytest.mark.parametrize("arch", RESNETS_ONLY)
def test_combinations_without_sense_are_one_clear_error(arch):
    with pytest.raises(ValueError, match=rf"{arch} needs features at half the resolution.*mit_b1.*use a ResNet"):
        TASK.build(arch, encoder="mit_b1")


@pytest.mark.parametrize(
    ("arch", "arguments", "words"),
    [
        ("segnet", {}, ("segnet", "unetplusplus")),
        ("unet", {"encoder": "vgg16"}, ("vgg16", "resnet18")),
        ("unet", {"widths": (8, 8)}, ("(8, 8)", "five")),
        ("unetplusplus", {"widths": (8, 8, 8, 8, 8, 8)}, ("are 6", "five")),
        ("unet", {"output_stride": 8}, ("unet", "output_stride")),
        ("deeplabv3plus", {"output_stride": 32}, ("output stride 32", "8, 16")),
        ("deeplabv3", {"output_stride": 32}, ("output stride 32", "8, 16")),
        ("pan", {"output_stride": 8}, ("output stride 8", "16, 32")),
        ("pspnet", {"depth": 1}, ("encoder depth 1", "2, 3, 4, 5")),
    ],
)
def test_impossible_networks_are_named(arch, arguments, words):
    with pytest.raises(ValueError) as error:
        TASK.build(arch, **arguments)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_other_weights_are_not_recognized():
    state = TASK.build("fpn", encoder="resnet18").state_dict()
    for lost in ("decoder.p5.weight", "segmentation_head.0.weight", "encoder.layer1.0.conv2.weight"):
        assert recognize({key: value for key, value in state.items() if key != lost}) is None
    with torch.device("meta"):
        assert recognize(smp.Unet("resnext50_32x4d", encoder_weights=None).state_dict()) is None
        assert recognize(smp.Segformer("resnet18", encoder_weights=None).state_dict()) is None
    assert recognize({}) is None


def test_a_network_that_only_resembles_ours_does_not_load():
    state = smp.Unet("resnet18", encoder_weights=None, decoder_attention_type="scse").state_dict()
    arch, arguments = recognize(state)
    with pytest.raises(RuntimeError, match="attention1"):
        TASK.build(arch, **arguments).load_state_dict(state)


def test_the_small_network_is_built_and_recognized_by_name():
    network = TASK.build("unet_small", outputs=2, channels=4, widths=[8, 16], stem=2).eval()
    with torch.inference_mode():
        assert network(torch.rand(1, 4, 33, 50)).shape == (1, 2, 33, 50)
    assert recognize(network.state_dict()) == (
        "unet_small", {"outputs": 2, "channels": 4, "widths": [8, 16], "stem": 2}
    )  # fmt: skip
    with pytest.raises(ValueError, match="encoder"):
        TASK.build("unet_small", encoder="resnet18")
