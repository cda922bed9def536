from __future__ import annotations

from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from PIL import Image
from torch import nn

from common.command.config import parse_flags
from common.inference.files import InferConfig, Predictor, infer_inputs, is_streamed, write_outputs
from common.inference.products import Products, polygon_classes
from common.networks.checkpoint import ModelCard
from common.networks.precision import Precision

TRANSFORM = Affine(0.5, 0, 430000, 0, -0.5, 4580000)
COLORS = {0: (10, 10, 10), 1: (250, 0, 0), 2: (0, 250, 0)}
TAGS = {"checkpoint_sha256": "abc"}


class Bands(nn.Module):
    """Logits that follow the picture's bands: red is the second class, green the third."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        if self.outputs == 1:
            return (x[:, :1] - 0.5) * 20
        return torch.stack([torch.full_like(x[:, 0], 2.0), x[:, 0] * 9 - 2, x[:, 1] * 9 - 2], 1)


def predictor(classes=3, **options):
    names = ["background", "roof", "tree"][:classes]
    card = ModelCard("toys", "toy", {}, names, COLORS, threshold=0.5)
    network = Bands(1 if classes == 2 else classes)
    return Predictor([(network, card)], Precision(torch.device("cpu"), None), tile=40, **options)


@pytest.fixture
def scene():
    """A picture (60, 90, 3) with a roof of 20 x 30 pixels, trees in it and beside it, and a speck."""
    image = np.zeros((60, 90, 3), np.uint8)
    image[10:30, 20:50, 0] = 255
    image[15:20, 25:30] = (0, 255, 0)
    image[10:30, 50:60, 1] = 255
    image[50, 80, 0] = 255
    return image


def georeferenced(path, image, **options):
    profile = {"driver": "GTiff", "count": 3, "height": 60, "width": 90, "dtype": "uint8", "crs": "EPSG:25830"}
    with rasterio.open(path, "w", transform=TRANSFORM, **profile | options) as dataset:
        dataset.write(np.moveaxis(image, -1, 0))
    return path


def run(folder, paths, model=None, **flags):
    config = InferConfig(input=tuple(paths), **flags)
    return infer_inputs(config, list(paths), model or predictor(), folder, TAGS)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def features(path):
    meta, _, geometry, fields = pyogrio.raw.read(path)
    return shapely.from_wkb(geometry), dict(zip(meta["fields"], fields, strict=True))


def test_both_ways_give_the_same_masks_and_polygons(tmp_path, scene):
    Image.fromarray(scene).save(tmp_path / "picture.png")
    placed = georeferenced(tmp_path / "placed.tif", scene)
    assert is_streamed(placed) and not is_streamed(tmp_path / "picture.png")
    assert run(tmp_path / "out", [tmp_path / "picture.png", placed], vector="gpkg") == 0
    assert names(tmp_path / "out") == [
        "picture.gpkg", "picture_mask.png", "picture_overlay.png", "picture_prob.tif",
        "placed.gpkg", "placed_mask.tif", "placed_overlay.png", "placed_prob.tif",
    ]  # fmt: skip
    with rasterio.open(tmp_path / "out" / "placed_mask.tif") as dataset:
        streamed = dataset.read(1)
    in_memory = np.asarray(Image.open(tmp_path / "out" / "picture_mask.png"))
    np.testing.assert_array_equal(streamed, in_memory)
    assert (in_memory[10:30, 20:50] == 1).sum() == 575 and (in_memory == 2).sum() == 225
    a, b = Image.open(tmp_path / "out" / "placed_overlay.png"), Image.open(tmp_path / "out" / "picture_overlay.png")
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    placed_shapes, placed_fields = features(tmp_path / "out" / "placed.gpkg")
    picture_shapes, picture_fields = features(tmp_path / "out" / "picture.gpkg")
    assert list(placed_fields["class_name"]) == list(picture_fields["class_name"]) == ["roof", "tree", "tree", "roof"]
    np.testing.assert_allclose(placed_fields["mean_prob"], picture_fields["mean_prob"], atol=1e-4)
    # pixels of a picture, square metres on the ground
    assert list(picture_fields["area"]) == [575, 200, 25, 1] and picture_shapes[0].bounds == (20, 10, 50, 30)
    assert list(placed_fields["area"]) == [575 / 4, 50, 25 / 4, 1 / 4]
    assert placed_shapes[0].bounds == (430010, 4579985, 430025, 4579995)
    assert shapely.get_num_interior_rings(placed_shapes[0]) == 1


def test_the_background_is_no_polygon(tmp_path, scene):
    assert polygon_classes(predictor(2).card) == [1] and polygon_classes(predictor(3).card) == [1, 2]
    ground = ModelCard("ground", "toy", {}, ["no permeable", "permeable"], {})
    assert polygon_classes(ground) == [0, 1]
    run(tmp_path / "out", [georeferenced(tmp_path / "a.tif", scene)], predictor(2), vector="shp")
    _, fields = features(tmp_path / "out" / "a.shp")
    assert set(fields["class_val"]) == {1} and (fields["mean_prob"] > 0.99).all()


def test_small_polygons_and_probabilities_are_left_out_where_flags_say_so(tmp_path, scene):
    Image.fromarray(scene).save(tmp_path / "picture.png")
    placed = georeferenced(tmp_path / "placed.tif", scene)
    flags = {"vector": "geojson", "min_area": 10.0, "prob": False, "cog": True}
    assert run(tmp_path / "out", [tmp_path / "picture.png", placed], **flags) == 0
    assert list(features(tmp_path / "out" / "picture.geojson")[1]["area"]) == [575, 200, 25]
    assert list(features(tmp_path / "out" / "placed.geojson")[1]["area"]) == [575 / 4, 50]
    assert not list((tmp_path / "out").glob("*prob*"))
    with rasterio.open(tmp_path / "out" / "placed_mask.tif") as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_nodata_is_no_polygon_either_way(tmp_path, scene):
    scene[:, :30] = 0
    for mode in ("RGB", "RGBA"):
        image = scene if mode == "RGB" else np.dstack([scene, np.where(np.arange(90) < 30, 0, 255)[None].repeat(60, 0)])
        path = tmp_path / f"{mode}.{'tif' if mode == 'RGB' else 'png'}"
        if mode == "RGB":
            georeferenced(
                path,
                np.where(scene.any(-1, keepdims=True), scene, 7).astype(np.uint8)
                * (np.arange(90) >= 30)[:, None].astype(np.uint8),
                nodata=0,
            )
        else:
            Image.fromarray(image.astype(np.uint8)).save(path)
        run(tmp_path / "out", [path], vector="gpkg")
        shapes, _ = features(tmp_path / "out" / f"{mode}.gpkg")
        left = shapely.bounds(shapes)[:, 0].min()
        assert left == (430015 if mode == "RGB" else 30)


def test_a_tasks_own_treatment_sees_the_grid_and_may_change_outlines(tmp_path, scene):
    seen = []

    def boxes(geometry, transform, crs):
        seen.append((transform, crs))
        return shapely.envelope(geometry)

    config = InferConfig(vector="gpkg")
    placed = georeferenced(tmp_path / "placed.tif", scene)
    infer_inputs(config, [placed], predictor(), tmp_path / "out", TAGS, refine=boxes)
    assert seen[0][0] == TRANSFORM and seen[0][1].to_epsg() == 25830
    assert features(tmp_path / "out" / "placed.gpkg")[1]["area"][0] == 150  # without its hole


def test_bad_files_are_named_and_the_others_done(tmp_path, scene, capsys):
    good = georeferenced(tmp_path / "good.tif", scene)
    (tmp_path / "bad.tif").write_text("no raster")
    assert run(tmp_path / "out", [tmp_path / "bad.tif", good]) == 1
    assert "bad.tif" in capsys.readouterr().err and (tmp_path / "out" / "good_mask.tif").is_file()


def test_too_little_disk_is_said_before_anything_is_written(tmp_path, scene, monkeypatch):
    placed = georeferenced(tmp_path / "placed.tif", scene)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(ValueError, match="GB needed"):
        run(tmp_path / "out", [placed])
    assert not (tmp_path / "out").exists()


def test_a_long_run_is_announced(tmp_path, scene, monkeypatch, capsys):
    monkeypatch.setattr("common.inference.files.pixel_count", lambda _: 40_000_000)
    monkeypatch.setattr(Predictor, "seconds_per_pixel", lambda self: 1e-5)
    run(tmp_path / "out", [georeferenced(tmp_path / "placed.tif", scene)])
    assert "40.0 Mpx, about 6.7 min, at most" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "value"), [("min_area", -1.0), ("simplify", -0.5), ("min_area", float("nan"))])
def test_impossible_numbers_are_refused(tmp_path, scene, flag, value):
    with pytest.raises(ValueError, match=f"--{flag.replace('_', '-')} .* must be 0 or more"):
        run(tmp_path / "out", [georeferenced(tmp_path / "a.tif", scene)], **{flag: value})


def test_flags_have_the_names_of_the_contract():
    config = parse_flags(
        InferConfig, ["a.tif", "--vector", "shp", "--min-area", "4", "--simplify", "1", "--cog", "--no-prob"]
    )
    assert config.products({}) == Products("shp", 4.0, 1.0, cog=True, prob=False)
    assert config.input == (Path("a.tif"),)


def test_results_in_memory_are_written_without_products_too(tmp_path, scene):
    from common.inference.files import predict_file

    Image.fromarray(scene).save(tmp_path / "a.png")
    model = predictor()
    write_outputs(tmp_path / "out", "a", predict_file(tmp_path / "a.png", model), model.card, TAGS)
    assert names(tmp_path / "out") == ["a_mask.png", "a_overlay.png", "a_prob.tif"]
