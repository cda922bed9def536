import pytest
import torch
from torch import nn

from common.networks.norm import steady_batch_norm
from rooftops.model import DeepLabV3Plus
from tests.peers import Peer

smp = Peer("segmentation_models_pytorch")


def randomized(network: nn.Module) -> nn.Module:
    """BatchNorm statistics away from 0 and 1, so that a forgotten or misplaced one shows."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("encoder", ["resnet50", "resnet101"])
@pytest.mark.parametrize("output_stride", [16, 8])
def test_weights_of_the_peer_give_the_same_logits(encoder: str, output_stride: int) -> None:
    if (encoder, output_stride) == ("resnet101", 8):
        pytest.skip("ResNet-101 differs from ResNet-50 in the number of blocks only")
    peer = randomized(smp.DeepLabV3Plus(encoder, encoder_weights=None, classes=2, encoder_output_stride=output_stride))
    ours = DeepLabV3Plus(encoder, output_stride=output_stride).eval()
    ours.load_state_dict(peer.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected, logits = peer(image), ours(image)
    assert expected.std() > 0.05
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_parameter_count() -> None:
    count = sum(p.numel() for p in DeepLabV3Plus().parameters())
    assert count == pytest.approx(26.678e6, rel=1e-3)


@pytest.mark.parametrize("encoder", ["resnet50", "efficientnet_b0"])
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (4, 50, 37), (1, 65, 31)])
def test_any_size_and_channels_and_a_batch_of_one_train(encoder: str, channels: int, height: int, width: int) -> None:
    network = steady_batch_norm(DeepLabV3Plus(encoder, channels=channels, outputs=3)).train()
    logits = network(torch.randn(1, channels, height, width))
    assert logits.shape == (1, 3, height, width)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_odd_sizes_equal_the_even_picture_they_are_part_of() -> None:
    network = randomized(DeepLabV3Plus())
    image = torch.randn(1, 3, 48, 64)
    image[..., 41:, :] = image[..., 40:41, :]  # what the padding inside makes of 41 rows
    with torch.inference_mode():
        torch.testing.assert_close(network(image[..., :41, :]), network(image)[..., :41, :], atol=1e-4, rtol=1e-4)


def test_unknown_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="output stride 32"):
        DeepLabV3Plus(output_stride=32)
