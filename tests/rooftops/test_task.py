from dataclasses import replace

import pytest
import torch

from common.networks.checkpoint import ModelCard
from rooftops.model import DeepLabV3Plus
from rooftops.task import TASK
from tests.peers import Peer

smp = Peer("segmentation_models_pytorch")


def peer(encoder="resnet18", **options):
    torch.manual_seed(0)
    return smp.DeepLabV3Plus(encoder, encoder_weights=None, **{"classes": 2, **options}).eval()


@pytest.mark.parametrize("wrapper", [None, "model_state_dict", "state_dict", "model"])
def test_the_originals_checkpoints_load_with_the_same_logits(tmp_path, wrapper):
    network = peer()
    state = network.state_dict()
    if wrapper:
        state = {wrapper: {f"module.{key}": value for key, value in state.items()}, "epoch": 3}
    torch.save(state, tmp_path / "smp.pth")
    ours, card = TASK.load(tmp_path / "smp.pth")
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(ours(image), network(image), atol=1e-4, rtol=1e-4)
    assert card.classes == ["background", "roof"]
    assert set(card.normalization) == {"mean", "std"}


@pytest.mark.parametrize(
    ("encoder", "options", "names"),
    [
        ("resnet34", {"classes": 1}, ["background", "roof"]),
        ("resnet50", {"in_channels": 4}, ["background", "roof"]),
        ("resnet18", {"classes": 3}, ["class_0", "class_1", "class_2"]),
    ],
)
def test_encoder_channels_and_classes_are_recognized(tmp_path, encoder, options, names):
    torch.save(peer(encoder, **options).state_dict(), tmp_path / "smp.pth")
    _, card = TASK.load(tmp_path / "smp.pth")
    assert card.arch_args == {
        "encoder": encoder, "outputs": options.get("classes", 2), "channels": options.get("in_channels", 3),
    }  # fmt: skip
    assert card.classes == names


def test_other_weights_are_refused(tmp_path):
    torch.save(smp.Unet("resnet18", encoder_weights=None).state_dict(), tmp_path / "unet.pth")
    with pytest.raises(ValueError, match=r"unet\.pth holds none of this task's networks"):
        TASK.load(tmp_path / "unet.pth")


@pytest.mark.parametrize(("encoder", "stem"), [("resnet18", "conv1"), ("efficientnet_b0", "features.0.0")])
def test_imagenet_weights_reach_the_encoder(encoder, stem):
    donor = DeepLabV3Plus(encoder)
    asked = []

    def state(name):
        asked.append(name)
        return {**donor.encoder.state_dict(), "fc.weight": torch.zeros(3)}

    network = DeepLabV3Plus(encoder)
    before = network.decoder.block1[0].weight.clone()
    replace(TASK, published=state).initialize(network, "imagenet")
    assert asked == [encoder]
    weights = network.encoder.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in donor.encoder.state_dict().items())
    assert f"{stem}.weight" in weights
    assert torch.equal(network.decoder.block1[0].weight, before)


def test_a_head_for_other_classes_is_replaced_and_said(tmp_path, capsys):
    torch.save(peer().state_dict(), tmp_path / "two.pth")
    network = DeepLabV3Plus("resnet18", outputs=5)
    TASK.initialize(network, str(tmp_path / "two.pth"))
    assert "segmentation_head.0.weight" in capsys.readouterr().err
    assert torch.equal(network.encoder.conv1.weight, peer().encoder.conv1.weight)


def test_tiles_are_of_the_networks_size():
    card = ModelCard("rooftops", "deeplabv3plus", {}, ["a", "b"], {}, scale=0.4)
    assert (TASK.tile_of(card), TASK.tile_of(card, 1.0)) == (1600, 640)
