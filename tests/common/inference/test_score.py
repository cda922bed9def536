"""The loss that is reported is the one each network was trained with, of its own logits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from common.inference.predictor import Predictor
from common.inference.score import score_samples
from common.losses import LossRecipe, build_loss
from common.networks.checkpoint import ModelCard
from common.networks.precision import Precision

CARD = ModelCard("toys", "toy", {"outputs": 2}, ["ground", "thing"], {})
RECIPES = (LossRecipe("0.6*ce+0.4*dice", label_smoothing=0.1), LossRecipe("focal", gamma=3.0, class_weights=(1.0, 4.0)))


def test_the_loss_is_the_mean_of_the_networks_own_over_the_images():
    torch.manual_seed(0)
    networks = [nn.Conv2d(3, 2, 3, padding=1) for _ in RECIPES]
    cards = [replace(CARD, loss=recipe) for recipe in RECIPES]
    predictor = Predictor(list(zip(networks, cards, strict=True)), Precision(torch.device("cpu"), None))
    rng = np.random.default_rng(0)
    samples = [
        (f"{n}", rng.random((3, 20, 24), np.float32), rng.integers(0, 2, (20, 24)).astype(np.uint8)) for n in "ab"
    ]
    samples[1][2][:5] = 255
    expected = []
    for _, image, truth in samples:
        for network, recipe in zip(networks, RECIPES, strict=True):
            loss = build_loss(recipe.terms, weight=recipe.class_weights, label_smoothing=recipe.label_smoothing,
                              gamma=recipe.gamma)  # fmt: skip
            with torch.inference_mode():
                logits = network(torch.from_numpy(image)[None])
            expected.append(float(loss(logits, torch.from_numpy(truth).long()[None])))
    assert score_samples(predictor, samples).result()["loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    cut = score_samples(predictor, samples, count=2, until=0.0)
    assert (cut.ids, cut.left_out, cut.n_images) == (["a"], 1, 1), "one image is scored however late it is"
    assert cut.result()["loss"] == pytest.approx(np.mean(expected[:2]), rel=1e-5)
