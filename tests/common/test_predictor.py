from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from common.checkpoint import ModelCard
from common.devices import Precision
from common.predictor import Predictor, confidence_of, fold_batch_norm

CPU = Precision(torch.device("cpu"), None)


def network(seed=0, outputs=1):
    torch.manual_seed(seed)
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1, bias=False))
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), block, nn.BatchNorm2d(8),
        nn.Conv2d(8, outputs, 1),
    )  # fmt: skip
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 3)
                module.weight.normal_()
                module.bias.normal_()
    return model.eval()


def card(classes=2, **options):
    return ModelCard("toys", "toy", {}, [f"class {i}" for i in range(classes)], {}, **options)


def test_folding_batch_norm_changes_nothing_but_its_passes():
    model = network()
    state = copy.deepcopy(model.state_dict())
    folded = fold_batch_norm(model)
    x = torch.rand(2, 3, 17, 13)
    torch.testing.assert_close(folded(x), model(x), atol=1e-5, rtol=1e-5)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == 1  # the one behind no convolution
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_several_networks_are_averaged():
    image = np.random.default_rng(0).random((3, 30, 50), dtype=np.float32)
    one, two = network(0), network(1)
    single = [Predictor([(model, card())], CPU, tile=32)(image) for model in (one, two)]
    both = Predictor([(one, card()), (two, card())], CPU, tile=32)(image)
    np.testing.assert_allclose(both, np.mean(single, axis=0), atol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 1.0, 0.37, 2.0])
def test_bands_of_rows_are_the_whole_prediction(scale):
    image = np.random.default_rng(0).random((3, 100, 70), dtype=np.float32)
    predictor = Predictor([(network(outputs=3), card(3, scale=scale))], CPU, tile=32, overlap=0.5)
    whole, parts = predictor(image), []

    def read(window):
        return torch.from_numpy(image[:, window.slices[0], window.slices[1]].copy())

    for row, band in predictor.rows(read, (100, 70)):
        assert row == sum(part.shape[1] for part in parts)
        parts.append(band)
    assert len(parts) > 3
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    last = parts[-1].shape[1]
    rest = list(predictor.rows(read, (100, 70), first_row=100 - last))
    assert [row for row, _ in rest] == [100 - last]
    np.testing.assert_array_equal(rest[0][1], parts[-1])
    with pytest.raises(ValueError, match="row 3 is not the end of a band"):
        next(predictor.rows(read, (100, 70), first_row=3))


def test_confidence_is_the_probability_of_the_class_that_was_chosen():
    mask = np.array([[0, 1, 1]], np.uint8)
    np.testing.assert_allclose(confidence_of(np.array([[[0.2, 0.7, 0.4]]]), mask), [[0.8, 0.7, 0.4]])
    many = np.array([[[0.2, 0.7, 0.1]], [[0.5, 0.1, 0.2]], [[0.3, 0.2, 0.7]]])
    np.testing.assert_allclose(confidence_of(many, many.argmax(0).astype(np.uint8)), [[0.5, 0.7, 0.7]])
