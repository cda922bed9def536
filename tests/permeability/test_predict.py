import pytest
import torch

from common.inference.files import Predictor
from common.losses import build_loss
from common.networks.checkpoint import ModelCard, save_checkpoint
from common.networks.precision import choose_precision
from common.networks.probabilities import foreground_probability
from permeability.model import build_model
from permeability.predict import load_network, prediction_loss


def foreign(tmp_path, **arguments):
    torch.manual_seed(0)
    model = build_model("fpn", encoder="resnet18", **arguments).eval()
    torch.save({"model_state_dict": model.state_dict(), "epoch": 3}, tmp_path / "best.ckpt")
    return model, tmp_path / "best.ckpt"


def test_a_checkpoint_of_the_source_is_recognized(tmp_path):
    model, path = foreign(tmp_path, outputs=2)
    network, card = load_network(path)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(network(image), model(image), atol=1e-5)
    assert card.normalization["mean"] == [0.4312, 0.4267, 0.3845] and card.classes == ["No permeable", "Permeable"]
    predictor = Predictor.load([path], load_network, choose_precision("cpu", "off"))
    found = predictor(image[0].numpy())
    mean, std = (torch.tensor(card.normalization[key])[:, None, None] for key in ("mean", "std"))
    with torch.inference_mode():
        expected = model((image - mean) / std).softmax(1)[0, 1]
    assert torch.allclose(torch.from_numpy(found[0]), expected, atol=1e-4)


@pytest.mark.parametrize(("arguments", "word"), [({"outputs": 5}, "5 outputs"), ({"channels": 4}, "4 bands")])
def test_what_does_not_fit_is_told(tmp_path, arguments, word):
    _, path = foreign(tmp_path, **arguments)
    with pytest.raises(ValueError, match=word):
        load_network(path)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="none of this task's networks"):
        load_network(tmp_path / "other.pt")


def test_the_loss_of_a_prediction_is_that_of_two_logits(tmp_path):
    model = build_model("fpn", encoder="resnet18")
    arguments = {"encoder": "resnet18", "outputs": 2}
    save_checkpoint(
        tmp_path / "a.pt",
        ModelCard("permeability", "fpn", arguments, ["a", "b"], {}, threshold=0.5),
        model.state_dict(),
    )
    predictor = Predictor.load([tmp_path / "a.pt"], load_network, choose_precision("cpu", "off"))
    logits, target = torch.randn(1, 2, 8, 8), torch.randint(0, 2, (1, 8, 8))
    loss = build_loss("0.3*ce+0.7*dice", label_smoothing=0.05)
    single = torch.logit(foreground_probability(logits))
    assert torch.isclose(prediction_loss(loss, predictor, single, target), loss(logits, target), atol=1e-5)
