import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from common.inference import export
from common.networks.checkpoint import ModelCard, save_checkpoint
from rooftops.model import DeepLabV3Plus
from rooftops.task import TASK


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network whose BatchNorm statistics and logits are of the size of trained ones."""
    torch.manual_seed(0)
    network = DeepLabV3Plus("resnet18")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.3, 1.5)
    network.segmentation_head[0].weight.data *= 10
    card = ModelCard(
        "rooftops", "deeplabv3plus", {"encoder": "resnet18", "outputs": 2}, ["background", "roof"],
        {0: (0, 0, 0), 1: (9, 8, 7)}, normalization={"mean": [0.5] * 3, "std": [0.2] * 3}, scale=0.4, threshold=0.37,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("export") / "best_iou.pt"
    save_checkpoint(path, card, network.state_dict())
    return path


@pytest.fixture(scope="module")
def exported(checkpoint):
    network, card = TASK.load(checkpoint)
    difference = export.export(network, card, checkpoint.with_name("model.onnx"), "abc")
    return checkpoint.with_name("model.onnx"), difference


@pytest.mark.parametrize("size", [(1, 64, 64), (3, 48, 176), (2, 101, 77), (1, 16, 16), (1, 1, 5)])
def test_logits_are_the_networks_at_any_size_and_batch(checkpoint, exported, size):
    network, _ = TASK.load(checkpoint)
    session = onnxruntime.InferenceSession(exported[0], providers=["CPUExecutionProvider"])
    image = torch.randn(size[0], 3, *size[1:])
    (logits,) = session.run(None, {"image": image.numpy()})
    with torch.inference_mode():
        expected = network(image).numpy()
    assert logits.shape == (size[0], 2, *size[1:])
    assert np.abs(expected).max() > 0.5
    assert np.abs(logits - expected).max() < 1e-4


def test_the_file_says_what_belongs_around_the_network(exported):
    model = onnx.load(exported[0])
    values = {item.key: json.loads(item.value) for item in model.metadata_props}
    assert values["classes"] == ["background", "roof"]
    assert (values["threshold"], values["scale"]) == (0.37, 0.4)
    assert values["normalization"] == {"mean": [0.5] * 3, "std": [0.2] * 3}
    assert [item.name for item in (*model.graph.input, *model.graph.output)] == ["image", "logits"]
    free = [bool(axis.dim_param) for axis in model.graph.input[0].type.tensor_type.shape.dim]
    assert free == [True, False, True, True]
    assert exported[1] < 1e-4


def test_the_readmes_lines_find_what_infer_finds(checkpoint, exported, monkeypatch):
    import rooftops
    from common.inference.predictor import Predictor
    from common.networks.precision import Precision

    readme = (Path(rooftops.__path__[0]) / "README.md").read_text()
    lines = readme.split("```python\n")[1].split("```")[0]
    image = np.random.default_rng(0).random((3, 40, 56), np.float32)
    names = {"onnxruntime": onnxruntime, "json": json, "np": np, "image": image}
    monkeypatch.chdir(exported[0].parent)
    exec(lines, names)
    predictor = Predictor([TASK.load(checkpoint)], Precision(torch.device("cpu"), None), scale=1.0)
    assert 0.05 < names["roof"].mean() < 0.95
    assert (names["roof"] == predictor.classify(predictor(image))).mean() > 0.999


def test_the_command(checkpoint, call, tmp_path, monkeypatch):
    written = []

    def quick(network, card, out, checkpoint_hash):
        written.append(checkpoint_hash)
        out.write_bytes(b"x")
        return 1e-7

    monkeypatch.setattr(export, "export", quick)
    result = call("export", "--checkpoint", checkpoint, "--out", tmp_path / "m.onnx")
    assert result.code == 0, result.err
    assert "largest difference 1.0e-07" in result.err
    assert len(written[0]) == 16
    call("export", "--checkpoint", checkpoint, "--out", tmp_path / "m.pt").mistake("m.pt", ".onnx")
    call("export", "--checkpoint", tmp_path / "no.pt").mistake("no.pt")
    call("export").mistake("--checkpoint")


def test_a_network_that_would_differ_is_not_written(checkpoint, exported, call, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "trace", lambda *args: onnx.load(exported[0]))
    monkeypatch.setattr(export, "compare", lambda *args: 3e-3)
    place = tmp_path / "models"
    call("export", "--checkpoint", checkpoint, "--out", place / "m.onnx").mistake("m.onnx: not written", "3.0e-03")
    assert not place.exists()


def test_only_an_export_of_the_same_checkpoint_is_replaced(checkpoint, call, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "export", lambda network, card, out, checkpoint_hash: float(out.write_bytes(b"x")) * 0)
    target = tmp_path / "m.onnx"
    target.write_bytes(b"mine")
    call("export", "--checkpoint", checkpoint, "--out", target).mistake("m.onnx is in the way", "move it")
    assert target.read_bytes() == b"mine" and list(tmp_path.glob("*.onnx")) == [target]
    target.unlink()
    for _ in range(2):
        assert call("export", "--checkpoint", checkpoint, "--out", target).code == 0


def test_the_comparison_finds_other_weights(exported):
    torch.manual_seed(1)
    assert export.compare(DeepLabV3Plus("resnet18").eval(), exported[0], 3) > export.TOLERANCE


def test_a_missing_package_is_one_line(call, checkpoint, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    call("export", "--checkpoint", checkpoint).mistake("onnxscript", "pip install -r requirements.txt")
