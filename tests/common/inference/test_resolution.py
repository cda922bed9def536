"""Rasters are read at ground resolutions that the networks saw."""

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from torch import nn

from common.inference.predictor import Cut, Predictor
from common.inference.resolution import fitted, ground_resolution
from common.networks.checkpoint import ModelCard
from common.networks.precision import choose_precision


class Size(nn.Module):
    """Says in every pixel how wide the image came."""

    def forward(self, image):
        return torch.full_like(image[:, :1], image.shape[-1] / 1000)


def predictor(gsd=(0.3, 0.6), **options):
    card = ModelCard("footprints", "size", {}, ["a", "b"], {0: (0, 0, 0), 1: (1, 1, 1)}, gsd=gsd, scale=0.5)
    return Predictor([(Size(), card)], choose_precision("cpu", "off"), cut=Cut(2048), **options)


def width_seen(one, columns=200):
    return round(1000 * float(torch.logit(torch.tensor(one(np.zeros((3, 64, columns), np.float32))[0, 0, 0]))))


def write(path, transform, crs):
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": 64, "width": 200}
    with rasterio.open(path, "w", crs=crs, transform=transform, **profile) as file:
        file.write(np.zeros((3, 64, 200), np.uint8))
    return path


@pytest.mark.parametrize(
    ("gsd", "width"),
    [(0.1, 33), (0.29, 97), (0.3, 200), (0.45, 200), (0.6, 200), (1.2, 400)],
    ids=lambda value: str(value),
)
def test_a_raster_comes_as_fine_as_the_training_was(tmp_path, capsys, gsd, width):
    path = write(tmp_path / "a.tif", rasterio.Affine(gsd, 0, 380_000, 0, -gsd, 5_820_000), "EPSG:32633")
    assert ground_resolution(path) == pytest.approx(gsd, rel=1e-3)
    assert width_seen(fitted(predictor(), path)) == pytest.approx(width, abs=1)
    said = capsys.readouterr().err
    assert ("--scale overrides" in said) == (width != 200)


def test_degrees_are_metres_on_the_ground(tmp_path):
    step = 0.5 / 111_320
    path = write(tmp_path / "a.tif", rasterio.Affine(step / 0.5, 0, 15, 0, -step, 60), "EPSG:4326")  # cos 60 = 0.5
    assert ground_resolution(path) == pytest.approx(0.5, rel=0.01)


def test_pictures_need_the_flag_and_scale_overrides(tmp_path, capsys):
    path = tmp_path / "picture.png"
    Image.fromarray(np.zeros((64, 200, 3), np.uint8)).save(path)
    assert ground_resolution(path) is None
    one = predictor()
    assert width_seen(fitted(one, path)) == width_seen(fitted(one, path)) == 100  # the card's scale
    assert capsys.readouterr().err.count("unknown ground resolution, read at 0.5 of its size") == 1, "said once"
    assert width_seen(fitted(predictor(), path, gsd=0.15)) == 50
    assert width_seen(fitted(predictor(), path, gsd=0.1)) == pytest.approx(33, abs=1)
    assert width_seen(fitted(predictor(scale=1.0), path, gsd=0.1)) == 200
    assert width_seen(fitted(predictor(gsd=(0.0, 0.0)), path, gsd=0.1)) == 100


def test_tiles_grow_with_the_detail_that_is_passed_over():
    one = predictor()
    assert one.at(0.15).cut.tile == 2 * one.cut.tile and one.at(0.6).cut.tile == one.cut.tile // 2
