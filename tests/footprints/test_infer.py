import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from PIL import Image

from common.networks.checkpoint import load_checkpoint
from footprints.regularize import overlap
from tests.footprints.towns import roofs, write_raster


def outlines(path):
    """The polygons of a file, and its fields by name."""
    meta, _, geometry, columns = pyogrio.raw.read(path)
    return shapely.from_wkb(geometry), dict(zip(meta["fields"].tolist(), columns, strict=True))


def test_a_raster_gives_mask_probability_picture_and_polygons(trained, town, call, tmp_path):
    run, _, _ = trained
    source = town / "images" / "town.tif"
    result = call("infer", source, "--checkpoint", run / "best_iou.pt", "--output-dir", tmp_path, "--vector", "gpkg")
    assert result.code == 0, result.err
    with rasterio.open(source) as image, rasterio.open(tmp_path / "town_mask.tif") as mask:
        assert (mask.crs, mask.transform, mask.shape, mask.nodata) == (image.crs, image.transform, image.shape, 255)
        found = mask.read(1)
        assert mask.tags()["threshold"] and mask.tags()["checkpoint_sha256"]
    with rasterio.open(town / "labels" / "town.tif") as label:
        truth = label.read(1) > 0
    assert (truth & (found == 1)).sum() / (truth | (found == 1)).sum() > 0.7
    with rasterio.open(tmp_path / "town_prob.tif") as probability:
        chance = probability.read(1)
    threshold = load_checkpoint(run / "best_iou.pt")[0].threshold
    assert ((chance >= threshold) == (found == 1)).all()
    polygons, fields = outlines(tmp_path / "town.gpkg")
    assert shapely.area(polygons).sum() == pytest.approx((found == 1).sum() * 0.25)
    assert set(fields["class_name"]) == {"building"} and np.allclose(fields["area"], shapely.area(polygons))
    assert (tmp_path / "town_overlay.png").is_file()


def test_regularized_polygons_have_right_angles_and_lie_on_the_raw_ones(trained, town, call, tmp_path):
    flags = (
        town / "images" / "town.tif", "--checkpoint", trained[0] / "best_iou.pt", "--vector", "gpkg", "--min-area", 8
    )  # fmt: skip
    assert call("infer", *flags, "--output-dir", tmp_path / "raw").code == 0
    assert call("infer", *flags, "--output-dir", tmp_path / "square", "--regularize").code == 0
    raw, square = (outlines(tmp_path / name / "town.gpkg")[0] for name in ("raw", "square"))
    assert len(raw) == len(square) > 5
    assert min(overlap(a, b) for a, b in zip(raw, square, strict=True)) >= 0.8 - 1e-6
    assert shapely.is_valid(square).all()
    assert shapely.count_coordinates(square) < 0.5 * shapely.count_coordinates(raw)
    areas = outlines(tmp_path / "square" / "town.gpkg")[1]["area"]
    assert np.allclose(areas, shapely.area(square))


def test_nodata_stays_nodata_and_alpha_counts_as_such(trained, call, tmp_path):
    image, _ = roofs(90, 100)
    image[:30] = 255
    write_raster(tmp_path / "in" / "a.tif", image, nodata=255)
    transparent = np.dstack([image, np.where(np.arange(90)[:, None] < 30, 0, 255) * np.ones((1, 100))]).astype(np.uint8)
    Image.fromarray(transparent).save(tmp_path / "in" / "b.png")
    result = call(
        "infer", tmp_path / "in", "--checkpoint", trained[0] / "best_iou.pt", "--output-dir", tmp_path / "out"
    )
    assert result.code == 0, result.err
    with rasterio.open(tmp_path / "out" / "a_mask.tif") as mask:
        georeferenced = mask.read(1)
    picture = np.asarray(Image.open(tmp_path / "out" / "b_mask.png"))
    for found in (georeferenced, picture):
        assert (found[:30] == 255).all() and (found[30:] != 255).all()


def test_one_bad_input_does_not_stop_the_others(trained, call, tmp_path):
    image, _ = roofs(40, 30)
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in" / "kleine Häuser.png")
    write_raster(tmp_path / "in" / "deep.tif", image.astype(np.uint16) * 257)
    for name in ("text.png", "text.tif"):
        (tmp_path / "in" / name).write_text("no picture")
    result = call(
        "infer", tmp_path / "in", "--checkpoint", trained[0] / "best_iou.pt", "--output-dir", tmp_path / "out"
    )
    assert result.code == 1
    failed = [line for line in result.err.splitlines() if line.startswith("failed:")]
    assert len(failed) == 2 and "text.png" in failed[0] and "text.tif" in failed[1]
    assert {path.name for path in (tmp_path / "out").glob("*_mask*")} == {"kleine Häuser_mask.png", "deep_mask.tif"}


def test_mistakes_are_told(trained, town, call, tmp_path):
    image, checkpoint = town / "images" / "town.tif", trained[0] / "best_iou.pt"
    call("infer", "--checkpoint", checkpoint).mistake("no INPUT")
    call("infer", tmp_path / "no.tif", "--checkpoint", checkpoint).mistake("no.tif")
    call("infer", image, "--checkpoint", tmp_path / "no.pt").mistake("no.pt")
    untrained = call("infer", image)
    assert untrained.code == 0 and "ships" in untrained.err and "footprints/train.py" in untrained.err
    call("infer", image, "--checkpoint", checkpoint, "--regularize").mistake("--regularize", "--vector")
    call("infer", image, "--checkpoint", checkpoint, "--threshold", 1.5).mistake("--threshold 1.5")
    call("infer", image, "--checkpoint", checkpoint, "--min-area", -1).mistake("--min-area -1")
    call("infer", image, "--checkpoint", checkpoint, "--simplify", -1).mistake("--simplify -1")
    (tmp_path / "file").touch()
    call("infer", image, "--checkpoint", checkpoint, "--output-dir", tmp_path / "file").mistake("--output-dir", "file")
