from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from common.inference.predictor import Cut, Predictor, confidence_of, fold_batch_norm, mean_of_flips, rescale
from common.inference.tiling import Tiling
from common.networks.checkpoint import ModelCard
from common.networks.precision import Precision
from common.networks.reach import FARTHEST

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


# Flips


class Blur(nn.Module):
    """Box filter: the same for every symmetry of the square."""

    def forward(self, x):
        return nn.functional.avg_pool2d(x[:, :1], 3, stride=1, padding=1)


def asymmetric(x):
    """Shifts right and down by different amounts: equivariant to nothing."""
    return x.roll(1, -1) + 0.5 * x.roll(2, -2)


def test_flips_leave_an_equivariant_network_as_it_is():
    images = torch.rand(1, 3, 20, 13)
    torch.testing.assert_close(mean_of_flips(Blur(), images), Blur()(images))


def test_flips_are_the_mean_over_half_turns_and_mirrors():
    images = torch.rand(1, 3, 20, 13)
    expected = torch.zeros_like(images)
    for quarter, mirror in ((0, False), (0, True), (2, False), (2, True)):
        turned = torch.rot90(images, quarter, (-2, -1))
        turned = turned.flip(-1) if mirror else turned
        output = asymmetric(turned)
        output = output.flip(-1) if mirror else output
        expected += torch.rot90(output, -quarter, (-2, -1)) / 4
    torch.testing.assert_close(mean_of_flips(asymmetric, images), expected)
    assert not torch.allclose(expected, asymmetric(images))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_flips_of_tiles_that_need_padding_are_exact_for_an_equivariant_network(scale):
    image = np.random.default_rng(0).random((3, 38, 50), dtype=np.float32)
    plain, turned = (
        Predictor([(Blur(), card(scale=scale))], CPU, cut=Cut(16, 0.3, tta))(image) for tta in (False, True)
    )
    np.testing.assert_allclose(plain, turned, atol=1e-6)


def test_a_mirrored_image_gives_the_mirrored_probabilities():
    image = np.random.default_rng(0).random((3, 32, 48), dtype=np.float32)
    lopsided = nn.Conv2d(3, 1, 5, padding=2)
    plain, flips = (Predictor([(lopsided, card())], CPU, cut=Cut(tta=tta)) for tta in (False, True))
    np.testing.assert_allclose(flips(image[:, :, ::-1].copy()), flips(image)[:, :, ::-1], atol=1e-6)
    assert not np.allclose(plain(image[:, :, ::-1].copy()), plain(image)[:, :, ::-1], atol=1e-3)


# Networks


def test_several_networks_are_averaged():
    image = np.random.default_rng(0).random((3, 30, 50), dtype=np.float32)
    one, two = network(0), network(1)
    single = [Predictor([(model, card())], CPU, cut=Cut(32))(image) for model in (one, two)]
    both = Predictor([(one, card()), (two, card())], CPU, cut=Cut(32))(image)
    np.testing.assert_allclose(both, np.mean(single, axis=0), atol=1e-6)


def test_each_network_reads_images_as_it_was_trained():
    """Two networks with their own scales and normalizations: each alone, then the mean of both."""
    image = np.random.default_rng(0).random((3, 32, 32), dtype=np.float32)
    networks = [
        (network(0), card(scale=0.5)),
        (network(1), card(normalization={"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.5]})),
    ]
    half = image.reshape(3, 16, 2, 16, 2).mean(axis=(2, 4))
    shifted = (image - np.array([0.4, 0.5, 0.6])[:, None, None]) / np.array([0.1, 0.2, 0.5])[:, None, None]
    with torch.inference_mode():
        small = networks[0][0](torch.from_numpy(half)[None])
        other = networks[1][0](torch.from_numpy(shifted).float()[None])
    coarse = nn.functional.interpolate(small, size=(32, 32), mode="bilinear")
    expected = (coarse.sigmoid() + other.sigmoid())[0].numpy() / 2
    for some in (networks, networks[::-1]):
        np.testing.assert_allclose(Predictor(some, CPU, cut=Cut(32))(image), expected, atol=1e-5)


def test_outputs_beyond_the_classes_take_no_part():
    model, image = network(outputs=4), np.random.default_rng(0).random((3, 16, 16), dtype=np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(image)[None])[0, :3].softmax(dim=0).numpy()
    np.testing.assert_allclose(Predictor([(model, card(3))], CPU)(image), expected, atol=1e-5)


def test_the_threshold_is_the_networks_mean_or_the_flag_and_belongs_to_the_foreground():
    both = [(network(0), card(threshold=0.25)), (network(1), card(threshold=0.5))]
    assert Predictor(both, CPU).threshold == 0.375
    predictor = Predictor(both, CPU, threshold=0.0)
    assert predictor.threshold == 0.0
    predictor.threshold = 0.5
    assert predictor.classify(np.array([[[0.4, 0.5, 0.6]]], np.float32)).tolist() == [[0, 1, 1]]


def test_the_range_of_the_training_is_for_images_of_its_kind():
    predictor = Predictor([(network(), card(normalization={"range": [10, 2000]}))], CPU)
    assert predictor.ranges().of(np.uint16) == (10.0, 2000.0) and predictor.ranges().of("uint8") is None
    assert Predictor([(network(), card())], CPU).ranges().of(np.uint16) is None


def test_impossible_options_are_refused():
    for options, message in (
        ({"threshold": 1.5}, "--threshold 1.5"), ({"threshold": -0.1}, "--threshold -0.1"),
        ({"scale": 0.01}, "--scale 0.01"), ({"scale": 21}, "--scale 21"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Predictor([(network(), card())], CPU, **options)
    with pytest.raises(ValueError, match="--threshold is for two classes"):
        Predictor([(network(outputs=3), card(3))], CPU, threshold=0.5)
    with pytest.raises(ValueError, match="classes differ"):
        Predictor([(network(), card()), (network(outputs=3), card(3))], CPU)


def test_settings_name_all_that_rows_depend_on():
    options = {"cut": Cut(64, 0.5, True), "scale": 0.25, "threshold": 0.3}
    settings = Predictor([(network(), card())], CPU, **options).settings((64, 64))
    expected = {"tile": 64, "overlap": 0.5, "looks": [(0.25, True)], "stride": 4, "threshold": 0.3}
    assert {key: settings[key] for key in expected} == expected
    other = Predictor([(network(), card())], Precision(torch.device("cpu"), torch.bfloat16), **options).settings(
        (64, 64)
    )
    assert other != settings


def test_bands_are_as_many_as_the_network_reads():
    five = ModelCard("toys", "toy", {"channels": 5}, ["a", "b"], {})
    assert Predictor([(network(), five)], CPU).channels == 5 and Predictor([(network(), card())], CPU).channels == 3


def test_shrinking_takes_the_mean_of_what_it_leaves_out():
    stripes = torch.zeros(1, 1, 4, 12)
    stripes[..., ::2] = 1
    torch.testing.assert_close(rescale(stripes, (2, 6)), torch.full((1, 1, 2, 6), 0.5))
    assert (rescale(stripes, (4, 5))[..., 1:-1] - 0.5).abs().max() < 0.15
    assert rescale(stripes, (4, 12)) is stripes


@pytest.mark.parametrize("scale", [0.5, 1.0, 0.37, 2.0])
def test_bands_of_rows_are_the_whole_prediction(scale):
    image = np.random.default_rng(0).random((3, 100, 70), dtype=np.float32)
    predictor = Predictor([(network(outputs=3), card(3, scale=scale))], CPU, cut=Cut(32, 0.5))
    whole, parts = predictor(image), []

    def read(window):
        return torch.from_numpy(image[:, window.slices[0], window.slices[1]].copy())

    for row, band in predictor.rows(read, (100, 70)):
        assert row == sum(part.shape[1] for part in parts)
        parts.append(band.clone())
    assert len(parts) > 3
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    last = parts[-1].shape[1]
    rest = [(row, band.clone()) for row, band in predictor.rows(read, (100, 70), first_row=100 - last)]
    assert [row for row, _ in rest] == [100 - last]
    np.testing.assert_array_equal(rest[0][1], parts[-1])
    with pytest.raises(ValueError, match="row 3 is not the end of a band"):
        next(predictor.rows(read, (100, 70), first_row=3))


def test_confidence_is_that_of_the_most_probable_class_or_of_the_second_of_two():
    np.testing.assert_array_equal(confidence_of(np.array([[[0.2, 0.7, 0.4]]])), [[0.2, 0.7, 0.4]])
    many = np.array([[[0.2, 0.7, 0.1]], [[0.5, 0.1, 0.2]], [[0.3, 0.2, 0.7]]])
    np.testing.assert_array_equal(confidence_of(many), [[0.5, 0.7, 0.7]])


@pytest.mark.parametrize(("classes", "outputs"), [(2, 1), (2, 2), (3, 4)])
def test_scored_gives_each_networks_own_logits_beside_the_same_probabilities(classes, outputs):
    image = np.random.default_rng(0).random((3, 30, 50), dtype=np.float32)
    about = replace(card(classes), arch_args={"outputs": outputs})
    networks = [(network(seed, outputs), about) for seed in (0, 1)]
    predictor = Predictor(networks, CPU, cut=Cut(64))
    probability, logits = predictor.scored(image)
    np.testing.assert_array_equal(probability, predictor(image))
    for (model, _), found in zip(networks, logits, strict=True):
        with torch.inference_mode():
            expected = model(torch.from_numpy(image)[None])[0]
        np.testing.assert_allclose(found, expected[:classes] if classes > 2 else expected, atol=1e-4)


# How images are cut


def planned(reach=0, scale=1.0, **options):
    cards = ModelCard("toys", "toy", {}, ["a", "b"], {}, scale=scale, reach=reach)
    return Predictor([(network(), cards)], CPU, **options)


def test_tiles_are_planned_from_the_reach_in_the_card_or_measured(monkeypatch):
    size = (3000, 5000)
    tiling = planned(reach=48).tiling(size)
    assert (tiling.tile, tiling.overlap) == (0, 96) and tiling.redundancy(size) < 1.3
    assert planned(reach=160).tiling(size).overlap == 128, "not more than a quarter of 512"
    assert planned(reach=48, scale=0.5).tiling(size).overlap == 192, "pixels of the image, not of the network's input"
    seen = []
    monkeypatch.setattr("common.inference.predictor.measure_reach", lambda *args: seen.append(args) or 32)
    one = planned()
    assert len(one.tiling((700, 700)).windows((700, 700))) == 1 and not seen, "an image of one tile needs no reach"
    assert one.tiling(size) == one.at(0.3).tiling(size) and one.tiling(size).overlap == 64 and len(seen) == 1
    assert planned(reach=FARTHEST).tiling(size) == Tiling(512, 0.25, batch=1, stride=1)


def test_flags_override_the_plan():
    size = (3000, 5000)
    for cut, expected in (
        (Cut(256), (256, 0.25)), (Cut(256, 64), (256, 64)), (Cut(overlap=0.5), (512, 0.5)),
        (Cut(overlap=96), (512, 96)), (Cut(overlap=0.5, usual=300), (300, 0.5)),
    ):  # fmt: skip
        tiling = planned(reach=48, cut=cut).tiling(size)
        assert (tiling.tile, tiling.overlap) == expected


def test_planned_tiles_give_what_the_whole_image_does():
    image = np.random.default_rng(0).random((3, 900, 1300), dtype=np.float32)
    model = network()
    whole = Predictor([(model, card())], CPU, cut=Cut(1300))(image)
    assert len(planned(reach=16).tiling((900, 1300)).windows((900, 1300))) > 1
    tiled = Predictor([(model, replace(card(), reach=16))], CPU)(image)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)
