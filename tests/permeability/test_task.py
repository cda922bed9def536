import pytest
import torch

from common.inference.predictor import Predictor
from common.networks.precision import choose_precision
from permeability.task import TASK


def foreign(tmp_path, **arguments):
    torch.manual_seed(0)
    model = TASK.build("fpn", encoder="resnet18", **arguments).eval()
    torch.save({"model_state_dict": model.state_dict(), "epoch": 3}, tmp_path / "best.ckpt")
    return model, tmp_path / "best.ckpt"


def test_a_checkpoint_of_the_source_is_recognized(tmp_path):
    model, path = foreign(tmp_path, outputs=2)
    network, card = TASK.load(path)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(network(image), model(image), atol=1e-5)
    assert card.normalization["mean"] == [0.4312, 0.4267, 0.3845] and card.classes == ["No permeable", "Permeable"]
    predictor = Predictor.load(TASK, [path], choose_precision("cpu", "off"))
    found = predictor(image[0].numpy())
    mean, std = (torch.tensor(card.normalization[key])[:, None, None] for key in ("mean", "std"))
    with torch.inference_mode():
        expected = model((image - mean) / std).softmax(1)[0, 1]
    assert torch.allclose(torch.from_numpy(found[0]), expected, atol=1e-4)


@pytest.mark.parametrize(("arguments", "word"), [({"outputs": 5}, "5 outputs"), ({"channels": 4}, "4 bands")])
def test_what_does_not_fit_is_told(tmp_path, arguments, word):
    _, path = foreign(tmp_path, **arguments)
    with pytest.raises(ValueError, match=word):
        TASK.load(path)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="none of this task's networks"):
        TASK.load(tmp_path / "other.pt")
