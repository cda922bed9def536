from __future__ import annotations

import os
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
from common.images import write
from common.images.gdal import open_raster
from common.inference import files
from common.inference.files import infer_inputs
from common.inference.flags import InferConfig
from common.inference.job import Job
from common.inference.predictor import Cut, Predictor
from common.inference.products import Extra, Products, polygon_classes
from common.inference.spool import workplace
from common.inference.stream import is_streamed
from common.networks.checkpoint import ModelCard
from common.networks.precision import Precision
from common.outputs import RECORD, OutputFolder

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
    return Predictor([(network, card)], Precision(torch.device("cpu"), None), cut=Cut(40), **options)


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
    return infer_inputs(config, list(paths), model or predictor(), folder, config.products(TAGS))


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != RECORD)


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
    infer_inputs(config, [placed], predictor(), tmp_path / "out", config.products(TAGS, refine=boxes))
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


def test_a_tasks_own_product_is_made_of_the_input_and_its_mask(tmp_path, scene):
    def copy(source, mask, target):
        target.write_bytes(source.read_bytes() + mask.read_bytes())

    path, config = georeferenced(tmp_path / "a.tif", scene), InferConfig()
    for ending in ("_copy.bin", "_mask.tif"):  # the second takes the place of the mask
        out = tmp_path / ending
        infer_inputs(config, [path], predictor(), out, config.products(TAGS, extra=Extra(ending, copy)))
        assert (out / f"a{ending}").read_bytes().startswith(path.read_bytes())
        assert len(names(out)) == (4 if ending == "_copy.bin" else 3)


# What was there before


def listing(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_results_replace_those_of_the_same_input_and_nothing_else(tmp_path, scene, capsys):
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        Image.fromarray(scene).save(tmp_path / place / "a.png")
        scene = scene.transpose(1, 0, 2)
    out = tmp_path / "out"
    assert run(out, [tmp_path / "one" / "a.png"], vector="shp") == 0
    assert run(out, [tmp_path / "one" / "a.png"], predictor(2), vector="shp") == 0
    before = listing(out)
    assert run(out, [tmp_path / "two" / "a.png"], vector="shp") == 1
    assert listing(out) == before
    err = capsys.readouterr().err
    assert "a_mask.png is in the way" in err and "two/a.png" in err and "0 of 1 files" in err
    told = [Image.open(out / name).text for name in ("a_mask.png", "a_overlay.png")]
    with open_raster(out / "a_prob.tif") as dataset:
        assert [tags["source"] for tags in (dataset.tags(), *told)] == ["../one/a.png"] * 3


@pytest.mark.parametrize("name", ["a_mask.png", "a_prob.tif", "a_overlay.png", "a.shp", "a.dbf"])
def test_a_users_file_is_left_alone_and_the_other_inputs_done(tmp_path, scene, name, capsys):
    for stem in ("a", "b"):
        Image.fromarray(scene).save(tmp_path / f"{stem}.png")
    (tmp_path / name).write_text("mine")
    before = listing(tmp_path)
    assert run(tmp_path, [tmp_path / "a.png", tmp_path / "b.png"], vector="shp") == 1
    assert before.items() <= listing(tmp_path).items()
    assert not [path for path in listing(tmp_path).keys() - before.keys() if path.name.startswith("a")]
    assert (tmp_path / "b.shp").is_file() and f"{name} is in the way" in capsys.readouterr().err


def test_no_result_takes_the_place_of_an_input(tmp_path, scene):
    for name in ("a.png", "a_mask.png"):
        Image.fromarray(scene).save(tmp_path / name)
    before = listing(tmp_path)
    with pytest.raises(ValueError, match=r"a_mask\.png is an input.*--output-dir"):
        run(tmp_path, [tmp_path / "a.png", tmp_path / "a_mask.png"])
    assert listing(tmp_path) == before


def test_of_the_polygons_of_an_earlier_run_nothing_stays(tmp_path, scene, monkeypatch):
    path, out = georeferenced(tmp_path / "a.tif", scene), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("common.vectors.write.SHAPEFILE_LIMIT", 200)
        assert run(out, [path], vector="shp") == 0
    assert (out / "a_2.shp").is_file() and (out / "a_2.dbf").is_file()
    (out / "a_3.shp").write_text("mine")
    assert run(out, [path], vector="shp") == 0
    assert [name for name in names(out) if "_2" in name or "_3" in name] == ["a_3.shp"]


# Failures


@pytest.mark.parametrize(
    "error",
    [RuntimeError("GEOS"), MemoryError(), KeyError("odd"), OSError(28, "No space left on device"), AssertionError(),
     TypeError("two\nlines"), pyogrio.errors.DataSourceError("OGR"), rasterio.errors.CRSError("PROJ"),
     shapely.errors.GEOSException("GEOS")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_a_failure_of_any_kind_is_one_line_and_leaves_nothing(tmp_path, scene, monkeypatch, capsys, error, kind):
    Image.fromarray(scene).save(tmp_path / "a.png")
    paths = [tmp_path / "a.png" if kind == "png" else georeferenced(tmp_path / "a.tif", scene), tmp_path / "b.png"]
    Image.fromarray(scene).save(paths[1])
    from common.vectors import write as module

    real = module.write_polygons

    def fail(*args, layer):
        if layer == "a":
            raise error
        return real(*args, layer=layer)

    monkeypatch.setattr(module, "write_polygons", fail)  # the mask is made by then
    assert run(tmp_path / "out", paths, vector="gpkg") == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed")]
    assert len(lines) == 1 and f"a.{kind}" in lines[0], lines
    kept = [name for name in names(tmp_path / "out") if not name.startswith("b")]
    full = isinstance(error, OSError) and kind == "tif"  # finished rows are still of use
    assert len(kept) == full and all(name.endswith(".partial") for name in kept), (
        "finished rows stay if the disk is full"
    )
    assert "b.gpkg" in names(tmp_path / "out")


@pytest.mark.parametrize(
    "stem",
    ["a!b", "a;b", "semi;colon|pipe&and", "[final] ortho", "(x)", "$x", "two\nlines", "tab\tx", "gpkg_x", "#1", "é"],
)
@pytest.mark.parametrize("kind", ["gpkg", "shp", "geojson"])
def test_names_in_which_libraries_read_a_meaning(tmp_path, scene, stem, kind):
    Image.fromarray(scene).save(tmp_path / f"{stem}.png")
    out = tmp_path / f"out {stem}"
    assert run(out, [tmp_path / f"{stem}.png"], vector=kind) == 0
    assert set(names(out)) == set(Products(kind).names(stem, placed=False)) - {f"{stem}.prj"}
    (out / f"{stem}.{kind}").rename(tmp_path / f"plain.{kind}")
    if kind != "shp":
        assert len(features(tmp_path / f"plain.{kind}")[0]) == 4


def test_a_name_that_is_not_utf8(tmp_path, scene):
    stem = os.fsdecode(b"caf\xe9")
    Image.fromarray(scene).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / f"{stem}.png")
    assert run(tmp_path / "out", [tmp_path / f"{stem}.png"], vector="gpkg") == 0
    assert set(names(tmp_path / "out")) == set(Products("gpkg").names(stem, placed=False))


# Two runs at once


def test_a_second_run_on_an_input_says_who_works_there(tmp_path, scene):
    path, out = georeferenced(tmp_path / "a.tif", scene), tmp_path / "out"
    out.mkdir()
    first = workplace(out, "a", path)
    assert first.claim()
    with pytest.raises(
        ValueError, match=rf"a\.tif: process {os.getpid()} on .*, since .* works on it in .*--output-dir"
    ):
        run(out, [path])
    assert names(out) == [first.path.name]
    assert run(tmp_path / "other", [path]) == 0
    first.release()
    assert run(out, [path]) == 0
    assert names(out) == ["a_mask.tif", "a_overlay.png", "a_prob.tif"]


# Disk


def test_one_file_that_claims_too_much_does_not_stop_the_others(tmp_path, scene, monkeypatch, capsys):
    good, liar = georeferenced(tmp_path / "good.tif", scene), georeferenced(tmp_path / "liar.tif", scene)
    real = files.pixel_count
    monkeypatch.setattr(files, "pixel_count", lambda path: 2**62 if path == liar else real(path))
    assert run(tmp_path / "out", [liar, good]) == 1
    err = capsys.readouterr().err
    assert "failed: " in err and "liar.tif: about" in err and "1 of 2 files" in err
    assert "good_mask.tif" in names(tmp_path / "out")
    with pytest.raises(ValueError, match="GB needed"):
        run(tmp_path / "other", [liar])


@pytest.mark.parametrize("cog", [False, True])
def test_the_disk_that_is_asked_for_is_enough(tmp_path, monkeypatch, cog):
    noise = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), np.uint8)
    profile = {"height": 1024, "width": 1024}
    path, model, most = georeferenced(tmp_path / "a.tif", noise, **profile), predictor(2), []
    options = Products(cog=cog, overlay=False)
    monkeypatch.setattr(model, "probabilities", lambda images: torch.rand(len(images), 1, *images.shape[2:]))

    def used(*_):
        most.append(sum(file.stat().st_size for file in (tmp_path / "out").rglob("*") if file.is_file()))

    for owner, name in ((write, "_optimize"), (write.Overviews, "write")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, real=real: (used(), real(*args), used()))
    Job(model, OutputFolder(tmp_path / "out"), options).run(path, "a", used)
    asked = files.disk_per_pixel(model, options) * 1024**2
    assert max(most) <= asked <= 3.5 * max(most)


# Flags that no input could make right


@pytest.mark.parametrize(
    ("flag", "value"),
    [("tile_size", -1), ("tile_size", 1), ("tile_size", 31), ("overlap", 1.0), ("overlap", -0.1),
     ("overlap", float("nan")), ("threshold", 2.0), ("threshold", float("nan")), ("scale", 0.0), ("scale", -1.0),
     ("scale", float("nan")), ("input_range", (5.0, 5.0)), ("input_range", (0.0, float("nan")))],
)  # fmt: skip
def test_flags_that_no_input_could_make_right_are_refused_first(flag, value):
    with pytest.raises(ValueError, match=f"--{flag.replace('_', '-')}"):
        InferConfig(**{flag: value})


@pytest.mark.parametrize("kind", ["dangling link", "file", "below a file"])
def test_an_output_folder_that_cannot_be_one_is_refused_first(tmp_path, kind):
    place = tmp_path / "out"
    if kind == "dangling link":
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.write_text("mine")
    with pytest.raises(ValueError, match=r"--output-dir .*choose another"):
        InferConfig(output_dir=place / "below" if kind == "below a file" else place)


def test_networks_of_four_bands_are_estimated_and_not_mixed_with_others(tmp_path):
    def network(bands):
        return nn.Conv2d(bands, 1, 1), ModelCard("toys", "toy", {"channels": bands}, ["background", "roof"], COLORS)

    cpu = Precision(torch.device("cpu"), None)
    four = Predictor([network(4)], cpu, cut=Cut(40))
    assert files.announce({tmp_path / "a.tif": 2_000_000}, four, tmp_path, 10.0) == {tmp_path / "a.tif": 2_000_000}
    with pytest.raises(ValueError, match="cannot be averaged: they read 3 and 4 bands"):
        Predictor([network(4), network(3)], cpu)
