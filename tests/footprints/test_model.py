import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from common.inference.predictor import Predictor
from common.networks.precision import Precision
from footprints.model import recognize
from footprints.task import TASK
from tests.peers import Peer

ReFineNet = Peer("building_footprint_segmentation.seg.binary.models:ReFineNet")

NETWORKS = [
    ("refinenet", {"encoder": "resnet34"}), ("unet_small", {}), ("unet_small", {"widths": [8, 16, 16], "stem": 2}),
]  # fmt: skip


def original(encoder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package asks torchvision in an outdated way
        torch.manual_seed(0)
        network = ReFineNet(res_net_to_use=encoder, pre_trained_image_net=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


WRAPPED = {
    "resnet34": lambda state: state,
    "resnet50": lambda state: {"model": {f"module.{key}": value for key, value in state.items()}, "end_epoch": 3},
}


@pytest.mark.parametrize("encoder", ["resnet34", "resnet50"])
def test_the_originals_checkpoints_give_its_logits(encoder, tmp_path):
    peer = original(encoder)
    torch.save(WRAPPED[encoder](peer.state_dict()), tmp_path / "best.pt")
    network, card = TASK.load(tmp_path / "best.pt")
    image = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        expected, logits = peer(image.clone()), network(image)
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert (card.arch_args, card.classes, card.threshold) == ({"encoder": encoder, "outputs": 1}, TASK.classes, 0.45)
    predictor = Predictor([(network, card)], Precision(torch.device("cpu"), None))
    torch.testing.assert_close(
        torch.from_numpy(predictor(image[0].numpy())), expected[0].sigmoid(), atol=1e-4, rtol=1e-4
    )


def test_parameter_counts():
    def millions(*args, **kwargs):
        return sum(p.numel() for p in TASK.build(*args, **kwargs).parameters()) / 1e6

    assert millions("refinenet", encoder="resnet50") == pytest.approx(59.496, rel=1e-4)


@pytest.mark.parametrize(("arch", "arch_args"), NETWORKS)
@pytest.mark.parametrize("size", [(1, 1), (33, 70), (64, 96)])
def test_any_size_gives_logits_of_that_size(arch, arch_args, size):
    network = TASK.build(arch, **arch_args).eval()
    with torch.inference_mode():
        assert network(torch.rand(1, 3, *size)).shape == (1, 1, *size)


@pytest.mark.parametrize(("arch", "arch_args"), NETWORKS)
def test_every_weight_gets_a_gradient_in_a_batch_of_one(arch, arch_args):
    network = TASK.build(arch, **arch_args).train()
    network(torch.rand(1, 3, 64, 64)).square().mean().backward()
    left = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    unused = "refine_block_4.multi_resolution_fusion.convolution_layer_lower_inputs"
    assert left == ([f"{unused}.weight", f"{unused}.bias"] if arch == "refinenet" else [])


def test_state_dicts_are_recognized():
    for arch, arch_args in NETWORKS:
        network = TASK.build(arch, **arch_args)
        found = recognize(network.state_dict())
        assert found is not None and found[0] == arch
        assert {key: found[1][key] for key in arch_args} == arch_args
        TASK.build(found[0], **found[1]).load_state_dict(network.state_dict())
    assert recognize({"conv.weight": torch.zeros(1)}) is None


def test_mistakes_are_told(tmp_path):
    with pytest.raises(ValueError, match="unknown network 'vgg'"):
        TASK.build("vgg")
    with pytest.raises(ValueError, match="unknown encoder 'resnet18'"):
        TASK.build("refinenet", encoder="resnet18")
    with pytest.raises(ValueError, match="stem 1 or 2"):
        TASK.build("unet_small", stem=4)
    torch.save({"x": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt holds none of this task's networks"):
        TASK.load(tmp_path / "x.pt")
    torch.save(TASK.build("refinenet", encoder="resnet34", outputs=3).state_dict(), tmp_path / "three.pt")
    with pytest.raises(ValueError, match="3 outputs"):
        TASK.load(tmp_path / "three.pt")
    with pytest.raises(ValueError, match="pretrained encoder"):
        TASK.initialize(TASK.build("unet_small"), "imagenet")


def test_imagenet_weights_reach_the_encoder():
    from torchvision.models import resnet34

    pretrained = resnet34(weights=None).state_dict()
    network = TASK.build("refinenet", encoder="resnet34")
    replace(TASK, published={"resnet34": pretrained}.get).initialize(network, "imagenet")
    own = network.state_dict()
    assert torch.equal(own["layer0.0.weight"], pretrained["conv1.weight"])
    assert torch.equal(own["layer4.2.conv2.weight"], pretrained["layer4.2.conv2.weight"])
