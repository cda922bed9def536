import pytest
import torch

from common.inference.files import Predictor
from common.losses import build_loss
from common.networks import backbones
from common.networks.checkpoint import ModelCard
from common.networks.precision import Precision
from rooftops.model import DeepLabV3Plus
from rooftops.predict import default_tile, initialize, load_network, picture_loss
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
    ours, card = load_network(tmp_path / "smp.pth")
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
    _, card = load_network(tmp_path / "smp.pth")
    assert card.arch_args == {
        "encoder": encoder, "outputs": options.get("classes", 2), "channels": options.get("in_channels", 3),
    }  # fmt: skip
    assert card.classes == names


def test_other_weights_are_refused(tmp_path):
    torch.save(smp.Unet("resnet18", encoder_weights=None).state_dict(), tmp_path / "unet.pth")
    with pytest.raises(ValueError, match=r"unet\.pth holds none of this task's networks"):
        load_network(tmp_path / "unet.pth")


@pytest.mark.parametrize(("encoder", "stem"), [("resnet18", "conv1"), ("efficientnet_b0", "features.0.0")])
def test_imagenet_weights_reach_the_encoder(monkeypatch, encoder, stem):
    from common.networks import load as networks
    from rooftops import predict

    donor = DeepLabV3Plus(encoder)
    asked = []

    def state(name):
        asked.append(name)
        return {**donor.encoder.state_dict(), "fc.weight": torch.zeros(3)}

    for module in (networks, predict, backbones):
        monkeypatch.setattr(module, "imagenet_state", state)
    network = DeepLabV3Plus(encoder)
    before = network.decoder.block1[0].weight.clone()
    initialize(network, encoder, "imagenet")
    assert asked == [encoder]
    weights = network.encoder.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in donor.encoder.state_dict().items())
    assert f"{stem}.weight" in weights
    assert torch.equal(network.decoder.block1[0].weight, before)


def test_a_head_for_other_classes_is_replaced_and_said(tmp_path, capsys):
    torch.save(peer().state_dict(), tmp_path / "two.pth")
    network = DeepLabV3Plus("resnet18", outputs=5)
    initialize(network, "resnet18", str(tmp_path / "two.pth"))
    assert "segmentation_head.0.weight" in capsys.readouterr().err
    assert torch.equal(network.encoder.conv1.weight, peer().encoder.conv1.weight)


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_evaluations_loss_is_the_trainings(outputs):
    """A predictor gives P(foreground) of two classes; the loss of its logit is that of the two logits behind it."""
    names = ["background", "roof", "shed"][: max(outputs, 2)]
    card = ModelCard("rooftops", "deeplabv3plus", {"outputs": outputs}, names, {})
    predictor = Predictor([(torch.nn.Identity(), card)], Precision(torch.device("cpu"), None))
    loss = build_loss("0.6*ce+0.4*dice", label_smoothing=0.05)
    logits, target = torch.randn(1, outputs, 8, 8), torch.randint(0, max(outputs, 2), (1, 8, 8))
    given = logits[:, 1:2] - logits[:, :1] if outputs == 2 else logits
    assert float(picture_loss(predictor, loss, given, target)) == pytest.approx(float(loss(logits, target)), abs=1e-5)


def test_tiles_are_of_the_networks_size():
    card = ModelCard("rooftops", "deeplabv3plus", {}, ["a", "b"], {}, scale=0.4)
    assert (default_tile(card), default_tile(card, 1.0)) == (1600, 640)
