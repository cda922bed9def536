"""Networks of every kind as ONNX: logits as the network's at any size."""

import json
from importlib import import_module

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from common.inference.export import WithProbabilities, export, for_deepness
from common.networks.checkpoint import ModelCard

NETWORKS = [
    ("hela_nuclei", "unet", {"outputs": 1, "channels": 1, "widths": [4, 8, 8, 8]}),
    ("hela_nuclei", "unet_resnet18", {"outputs": 1, "channels": 1}),
    ("footprints", "unet_small", {"widths": [8, 16, 16]}),
    ("footprints", "refinenet", {"encoder": "resnet34"}),
    ("permeability", "deeplabv3plus", {"encoder": "resnet18", "outputs": 2}),
    ("potsdam_points", "resnet18", {"decoder": "skip"}),
]


def card_of(task, classes=("ground", "house"), **fields):
    palette = {index: (index, 0, 0) for index in range(len(classes))}
    return ModelCard(task, "net", {}, list(classes), palette, **fields)


def network_of(task, arch, arguments):
    torch.manual_seed(0)
    network = import_module(f"{task}.task").TASK.build(arch, **arguments).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def run(path, image):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image.numpy()})[0]


@pytest.mark.parametrize(("task", "arch", "arguments"), NETWORKS, ids=[f"{task}-{arch}" for task, arch, _ in NETWORKS])
def test_logits_are_the_networks_at_other_sizes(task, arch, arguments, tmp_path):
    network = network_of(task, arch, arguments)
    assert export(network, card_of(task), tmp_path / "model.onnx", "abc") < 1e-4
    image = torch.randn(2, arguments.get("channels", 3), 80, 112)
    with torch.inference_mode():
        expected = network(image).numpy()
    assert np.abs(run(tmp_path / "model.onnx", image) - expected).max() < 1e-4 * max(1, np.abs(expected).max())


def test_the_graph_may_end_in_probabilities(tmp_path):
    network, card = network_of(*NETWORKS[0]), card_of("hela_nuclei")
    export(WithProbabilities(network, card), card, tmp_path / "model.onnx", "abc")
    image = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        expected = network(image).sigmoid().numpy()
    np.testing.assert_allclose(run(tmp_path / "model.onnx", image), expected, atol=1e-5)


def test_what_qgis_reads(tmp_path):
    card = card_of("footprints", gsd=(0.2, 0.45), threshold=0.4, normalization={"mean": [0.5] * 3, "std": [0.2] * 3})
    export(network_of(*NETWORKS[2]), card, tmp_path / "model.onnx", "abc")
    values = {item.key: json.loads(item.value) for item in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert (values["model_type"], values["class_names"]) == ("Segmentor", {"0": "ground", "1": "house"})
    assert (values["resolution"], values["seg_thresh"]) == (30.0, 0.4), "centimetres per pixel"
    assert values["standardization_mean"] == [0.5] * 3 and values["standardization_std"] == [0.2] * 3
    assert "resolution" not in for_deepness(card_of("footprints"))
