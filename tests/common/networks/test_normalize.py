"""Normalization of images: the same in training and inference."""

import numpy as np
import pytest
import torch

from common.losses import LossRecipe
from common.networks.checkpoint import ModelCard
from common.networks.normalize import normalize
from common.networks.precision import Precision
from common.training.experiment import Engine, Experiment

NAMED = {"mean": [0.4, 0.3, 0.2], "std": [0.2, 0.25, 0.5]}


@pytest.mark.parametrize("normalization", [NAMED, {}, {"range": [0, 1000]}])
def test_bytes_and_numbers_in_0_to_1_become_the_same(normalization):
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 7)).astype(np.uint8)
    mean, std = (np.array(normalization.get(name, value)) for name, value in (("mean", [0.0]), ("std", [1.0])))
    expected = (image / 255 - mean[:, None, None]) / std[:, None, None]
    unit = torch.from_numpy((image / 255).astype(np.float32))
    kept, given = unit.clone(), torch.from_numpy(image)
    for one in (given, unit):
        found = normalize(one, normalization)
        assert found.dtype == torch.float32 and np.allclose(found.numpy(), expected, atol=1e-5)
    assert torch.equal(unit, kept) and (given.numpy() == image).all(), "what is given stays"


def test_a_training_normalizes_what_the_network_sees():
    card = ModelCard("t", "a", {}, ["x", "y"], {0: (0, 0, 0), 1: (1, 1, 1)}, NAMED, loss=LossRecipe("bce"))
    engine = Engine.of(Experiment(torch.nn.Identity(), card, [], []), Precision(torch.device("cpu"), None))
    image = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    target = torch.ones(2, 4, 4, dtype=torch.int64)
    got = engine.receive({"image": image, "target": target, "id": ["a", "b"]})
    expected = normalize(image / 255, NAMED)
    assert torch.allclose(got["image"], expected, atol=1e-5)
    assert torch.equal(got["target"], target) and got["id"] == ["a", "b"]
    assert torch.allclose(engine.logits(torch.nn.Identity(), got), expected, atol=1e-5)
