import pytest
import torch
from torch import nn

from common.networks.unet_small import UNetSmall, recognize_unet_small

NETWORKS = [{}, {"widths": [8, 16, 16], "stem": 2}, {"widths": [8, 16], "channels": 5, "outputs": 2}]


@pytest.mark.parametrize("arguments", NETWORKS)
@pytest.mark.parametrize("size", [(1, 1), (33, 70), (64, 96)])
def test_any_size_gives_logits_of_that_size(arguments, size):
    network = UNetSmall(**arguments).eval()
    with torch.inference_mode():
        logits = network(torch.rand(1, arguments.get("channels", 3), *size))
    assert logits.shape == (1, arguments.get("outputs", 1), *size)


@pytest.mark.parametrize("arguments", NETWORKS)
def test_every_weight_gets_a_gradient_in_a_batch_of_one(arguments):
    network = UNetSmall(**arguments).train()
    network(torch.rand(1, arguments.get("channels", 3), 64, 64)).square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("arguments", NETWORKS[:2])
def test_logits_lie_where_the_image_is(arguments):
    """A mirrored picture gives mirrored logits once the filters are symmetric: no half-pixel shift, no wrong crop."""
    torch.manual_seed(0)
    network = UNetSmall(**arguments).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (1, 1):
            module.weight.data = (module.weight.data + module.weight.data.flip(-1)) / 2
        elif isinstance(module, nn.Conv2d):  # a 3-wide stride-2 filter is not centered on its block of two: use 1 + 1
            weight = torch.zeros_like(module.weight.data)
            middle = weight.shape[-1] // 2
            weight[..., middle - (weight.shape[-1] % 2 == 0) : middle + 1 + weight.shape[-1] % 2] = 0.1
            weight[..., 0] = 0
            module.weight.data = weight if weight.shape[-1] == 3 else (weight + weight.flip(-1)) / 2
    image = torch.rand(1, 3, 32, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network(image.flip(-1)), network(image).flip(-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("arguments", NETWORKS)
def test_arguments_are_read_off_the_weights(arguments):
    network = UNetSmall(**arguments)
    found = recognize_unet_small(network.state_dict())
    assert found is not None and {key: found[key] for key in arguments} == arguments
    UNetSmall(**found).load_state_dict(network.state_dict())
    assert recognize_unet_small({"stem.0.0.weight": torch.zeros(1)}) is None


def test_its_size_and_its_mistakes():
    assert sum(p.numel() for p in UNetSmall().parameters()) / 1e6 == pytest.approx(0.596, rel=1e-3)
    for wrong in ({"stem": 4}, {"widths": [8]}, {"widths": [8, 0]}):
        with pytest.raises(ValueError, match="stem 1 or 2"):
            UNetSmall(**wrong)
