"""Rasters are read at ground resolutions that the networks saw."""

from typing import ClassVar

import numpy as np
import pytest
import rasterio
from PIL import Image
from torch import nn

from common.inference.predictor import Cut, Predictor
from common.inference.resolution import fitted, ground_resolution
from common.networks.checkpoint import ModelCard
from common.networks.precision import choose_precision


class Size(nn.Module):
    """Notes how wide images come."""

    seen: ClassVar[list[int]] = []

    def forward(self, image):
        self.seen.append(image.shape[-1])
        return image[:, :1]


def predictor(gsd=(0.3, 0.6), card_scale=0.5, looks=(1.0,), **options):
    resolution = {"gsd": gsd, "scale": card_scale, "looks": looks}
    card = ModelCard("footprints", "size", {}, ["a", "b"], {0: (0, 0, 0), 1: (1, 1, 1)}, **resolution)
    return Predictor([(Size(), card)], choose_precision("cpu", "off"), cut=Cut(2048), **options)


def widths_seen(one, columns=200):
    Size.seen.clear()
    one(np.zeros((3, 64, columns), np.float32))
    return Size.seen.copy()


def write(path, transform, crs):
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": 64, "width": 200}
    with rasterio.open(path, "w", crs=crs, transform=transform, **profile) as file:
        file.write(np.zeros((3, 64, 200), np.uint8))
    return path


@pytest.mark.parametrize(
    ("gsd", "widths"),
    [
        (0.1, [67] * 4 + [33] * 4),  # each costs less than one look at all pixels, so that flips are averaged too
        (0.2, [133] + [67] * 4),
        (0.29, [193] + [97] * 4),
        (0.3, [200]),
        (0.45, [200]),
        (0.6, [200]),
        (1.2, [400]),
    ],
    ids=lambda value: str(value),
)
def test_a_raster_comes_as_fine_and_as_coarse_as_the_training_was(tmp_path, capsys, gsd, widths):
    path = write(tmp_path / "a.tif", rasterio.Affine(gsd, 0, 380_000, 0, -gsd, 5_820_000), "EPSG:32633")
    assert ground_resolution(path) == pytest.approx(gsd, rel=1e-3)
    assert widths_seen(fitted(predictor(), path)) == pytest.approx(widths, abs=1)
    said = capsys.readouterr().err
    assert ("--scale overrides" in said) == (widths != [200])


def test_degrees_are_metres_on_the_ground(tmp_path):
    step = 0.5 / 111_320
    path = write(tmp_path / "a.tif", rasterio.Affine(step / 0.5, 0, 15, 0, -step, 60), "EPSG:4326")  # cos 60 = 0.5
    assert ground_resolution(path) == pytest.approx(0.5, rel=0.01)


def test_pictures_need_the_flag_and_scale_overrides(tmp_path, capsys):
    path = tmp_path / "picture.png"
    Image.fromarray(np.zeros((64, 200, 3), np.uint8)).save(path)
    assert ground_resolution(path) is None
    one = predictor()
    assert widths_seen(fitted(one, path)) == widths_seen(fitted(one, path)) == [200]  # 0.5 of 0.6 m, the card's scale
    assert widths_seen(fitted(predictor(card_scale=0.25), path)) == [100] * 4 + [50] * 4
    said = capsys.readouterr().err
    assert said.count("taken for 0.15 m per pixel, read at 0.3 and 0.6 m (trained at 0.3 to 0.6; --gsd") == 1
    assert widths_seen(fitted(predictor(), path, gsd=0.15)) == [100] * 4 + [50] * 4
    assert widths_seen(fitted(predictor(scale=1.0), path, gsd=0.1)) == [200]
    assert widths_seen(fitted(predictor(looks=(1.0, 0.5)), path, gsd=0.4)) == [200] + [100] * 4
    assert widths_seen(fitted(predictor(looks=(1.0, 0.5)), path, gsd=0.2)) == [136] + [68] * 4 + [34] * 4
    assert widths_seen(fitted(predictor(looks=(2.0, 1.0)), path, gsd=1.2)) == [800, 400]
    assert widths_seen(fitted(predictor(looks=(2.0, 1.0)), path, gsd=0.2)) == [134] + [67] * 4, "finer: both ends"
    assert widths_seen(fitted(predictor(gsd=(0.0, 0.0)), path, gsd=0.1)) == [100]


def test_looks_are_averaged_and_each_has_its_logits():
    one, image = predictor().at(0.2), np.random.default_rng(0).random((3, 60, 200), np.float32)
    probability, logits = one.scored(image)
    assert len(logits) == len(one.cards) == 2 and not np.allclose(*logits, atol=1e-3)
    mean = np.mean([1 / (1 + np.exp(-each)) for each in logits], axis=0)
    np.testing.assert_allclose(probability, mean, atol=1e-6)
    assert one.at(0.4).at(0.2).settings((60, 200)) == one.settings((60, 200)), "looks do not pile up"


def test_tiles_grow_with_the_detail_that_is_passed_over():
    one = predictor()
    assert one.at(0.075).cut.tile == 2 * one.cut.tile and one.at(0.6).cut.tile == one.cut.tile // 2
