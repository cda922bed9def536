"""The loss that is reported is the one each network was trained with, of its own logits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from common.data.labeled import LabeledImage, Sample
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
    pairs = [
        LabeledImage(name, rng.random((3, 20, 24), np.float32), rng.integers(0, 2, (20, 24)).astype(np.uint8))
        for name in "ab"
    ]
    pairs[1].classes[:5] = 255
    expected = []
    for image, truth in ((pair.image, pair.classes) for pair in pairs):
        for network, recipe in zip(networks, RECIPES, strict=True):
            loss = build_loss(recipe.terms, weight=recipe.class_weights, label_smoothing=recipe.label_smoothing,
                              gamma=recipe.gamma)  # fmt: skip
            with torch.inference_mode():
                logits = network(torch.from_numpy(image)[None])
            expected.append(float(loss(logits, torch.from_numpy(truth).long()[None])))
    seen, samples = [], list(map(Sample.held, pairs))
    scores = score_samples(predictor, samples, seen=lambda *one: seen.append(one))
    assert scores.result()["loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    for (name, probability, truth), pair in zip(seen, pairs, strict=True):
        assert name == pair.id and truth is pair.classes
        assert np.array_equal(probability, predictor(pair.unit())), "what is handed on is what would be predicted"
    cut = score_samples(predictor, samples, until=0.0)
    assert (cut.ids, cut.left_out, cut.n_images) == (["a"], 1, 1), "one image is scored however late it is"
    assert cut.result()["loss"] == pytest.approx(np.mean(expected[:2]), rel=1e-5)
