import os
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import tifffile
from PIL import Image

from common.images.rasters import read_raster
from potsdam_points.labels import CLASSES, decode


@pytest.fixture
def pictures(tmp_path, blobs):
    """All kinds of inputs, one of them no picture."""
    folder = tmp_path / "in"
    folder.mkdir()
    image = tifffile.imread(blobs / "Images" / "Image_8.tif")
    Image.fromarray(np.tile(image, (7, 7, 1))).save(folder / "large.jpg", quality=95)
    tifffile.imwrite(folder / "sixteen.tif", image.astype(np.uint16) * 257, photometric="rgb")
    alpha = np.full((96, 96, 1), 255, np.uint8)
    alpha[:, 60:] = 0
    Image.fromarray(np.concatenate([image, alpha], axis=2)).save(folder / "alpha.png")
    Image.fromarray(image[:30, :40]).save(folder / "tiny.png")
    Image.fromarray(image[:95, :63]).save(folder / "naïve façade 1.png")
    (folder / "text.png").write_text("not a picture")
    return folder


@pytest.fixture
def geotiff(tmp_path, blobs):
    path = tmp_path / "geo.tif"
    image = np.moveaxis(tifffile.imread(blobs / "Images" / "Image_9.tif"), -1, 0).copy()
    image[:, :, :10] = 0
    options = {"driver": "GTiff", "height": 96, "width": 96, "count": 3, "dtype": "uint8", "nodata": 0}
    with rasterio.open(
        path, "w", crs="EPSG:25833", transform=rasterio.Affine(0.05, 0, 3e5, 0, -0.05, 58e5), **options
    ) as d:
        d.write(image)
    return path


def test_every_good_file_is_done_and_the_bad_one_named(trained, pictures, call, tmp_path):
    before = {path: path.read_bytes() for path in pictures.iterdir()}
    result = call("infer", pictures, "--checkpoint", trained[0] / "best_iou.pt", "--output-dir", tmp_path / "out")
    result.mistake("text.png", code=1)
    for stem, shape in {
        "large": (672, 672),
        "sixteen": (96, 96),
        "alpha": (96, 96),
        "tiny": (30, 40),
        "naïve façade 1": (95, 63),
    }.items():
        mask = np.asarray(Image.open(tmp_path / "out" / f"{stem}_mask.png"))
        assert mask.shape == shape
        assert np.asarray(Image.open(tmp_path / "out" / f"{stem}_overlay.png")).shape == (*shape, 3)
        probability = tifffile.imread(tmp_path / "out" / f"{stem}_prob.tif")
        assert probability.dtype == np.float32
        assert probability.shape in ((6, *shape), (*shape, 6))
    assert not (tmp_path / "out" / "text_mask.png").exists()
    assert before == {path: path.read_bytes() for path in pictures.iterdir()}


def test_masks_are_right_and_alike_for_all_kinds_of_files(trained, pictures, blobs, call, tmp_path):
    black = tifffile.imread(blobs / "Images" / "Image_8.tif").copy()
    black[:, 60:] = 0
    Image.fromarray(black).save(pictures / "black.png")
    assert (
        call("infer", pictures, "--checkpoint", trained[0] / "best_iou.pt", "--output-dir", tmp_path / "out").code == 1
    )
    masks = {
        stem: np.asarray(Image.open(tmp_path / "out" / f"{stem}_mask.png"))
        for stem in ("sixteen", "alpha", "black", "large")
    }
    truth = tifffile.imread(blobs / "Labels" / "Label_8.tif")
    valid = truth.any(axis=-1)
    assert (decode(masks["sixteen"])[valid] == truth[valid]).all(-1).mean() > 0.85
    assert (masks["alpha"][:, 60:] == 255).all()
    assert (masks["alpha"][:, :60] == masks["black"][:, :60]).all()  # what is transparent is black to the network
    assert (masks["large"][96:192, 96:192] == masks["sixteen"]).mean() > 0.9


@pytest.mark.parametrize("inputs", [(), ("input_images/",)])
def test_without_inputs_the_sources_folders_are_used(trained, geotiff, blobs, call, tmp_path, inputs):
    here = tmp_path / "here"
    (here / "input_images").mkdir(parents=True)
    (here / "input_images" / "geo.tif").write_bytes(geotiff.read_bytes())
    Image.fromarray(tifffile.imread(blobs / "Images" / "Image_8.tif")).save(here / "input_images" / "a.jpg")
    result = call("infer", *inputs, "--checkpoint", trained[0] / "best_iou.pt", cwd=here)
    assert result.code == 0, result.err
    assert sorted(path.name for path in (here / "output_images").iterdir()) == [
        "a_mask.png",
        "geo_mask.png",
        "geo_mask.tif",
        "provenance.jsonl",
    ]
    colors = np.asarray(Image.open(here / "output_images" / "geo_mask.png"))
    assert colors.shape == (96, 96, 3)
    assert (colors[:, :10] == 0).all()
    with rasterio.open(here / "output_images" / "geo_mask.tif") as dataset:
        assert (decode(dataset.read(1)) == colors).all()
        assert dataset.crs.to_epsg() == 25833


def test_georeferenced_in_is_georeferenced_out(trained, geotiff, call, tmp_path):
    result = call("infer", geotiff, "--checkpoint", trained[0] / "best_iou.pt", "--output-dir", tmp_path / "out")
    assert result.code == 0, result.err
    with rasterio.open(geotiff) as source, rasterio.open(tmp_path / "out" / "geo_mask.tif") as mask:
        assert (mask.crs, mask.transform, mask.shape) == (source.crs, source.transform, source.shape)
        assert ((mask.read(1) == 255) == (source.dataset_mask() == 0)).all()
        assert len(mask.tags()["checkpoint_sha256"]) == 16
    with rasterio.open(tmp_path / "out" / "geo_prob.tif") as probability:
        values = probability.read()
        assert np.allclose(values[:, :, 10:].sum(0), 1, atol=1e-4)
        assert np.isnan(values[:, :, :10]).all()


def test_polygons_come_with_the_mask(trained, geotiff, call, tmp_path):
    best = trained[0] / "best_iou.pt"
    flags = ("--vector", "gpkg", "--min-area", "0.05", "--cog", "--no-prob")
    result = call("infer", geotiff, "--checkpoint", best, *flags, "--output-dir", tmp_path / "out")
    assert result.code == 0, result.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "geo.gpkg", "geo_mask.tif", "geo_overlay.png", "provenance.jsonl",
    ]  # fmt: skip
    meta, _, _, (values, names, area, probability) = pyogrio.raw.read(tmp_path / "out" / "geo.gpkg")
    assert list(meta["fields"]) == ["class_val", "class_name", "area", "mean_prob"] and meta["crs"] == "EPSG:25833"
    assert len(values) and set(names) <= set(CLASSES) and area.min() >= 0.05
    assert ((probability > 1 / 6) & (probability <= 1)).all()
    with rasterio.open(tmp_path / "out" / "geo_mask.tif") as dataset:
        mask = dataset.read(1)
    ids, counts = np.unique(mask[mask != 255], return_counts=True)
    for value, count in zip(ids, counts, strict=True):
        assert area[values == value].sum() == pytest.approx(count * 0.05**2, rel=0.2)
        assert area[values == value].sum() <= count * 0.05**2 + 1e-6
    assert pyogrio.read_info(tmp_path / "out" / "geo.gpkg")["layer_metadata"]["checkpoint_sha256"]


def test_polygons_of_the_sources_folders(trained, blobs, call, tmp_path):
    (tmp_path / "input_images").mkdir()
    Image.fromarray(tifffile.imread(blobs / "Images" / "Image_8.tif")).save(tmp_path / "input_images" / "a.jpg")
    result = call("infer", "--checkpoint", trained[0] / "best_iou.pt", "--vector", "geojson", cwd=tmp_path)
    assert result.code == 0, result.err
    assert sorted(path.name for path in (tmp_path / "output_images").iterdir()) == [
        "a.geojson", "a_mask.png", "provenance.jsonl",
    ]  # fmt: skip
    area = pyogrio.raw.read(tmp_path / "output_images" / "a.geojson")[3][2]
    assert area.sum() == 96 * 96  # of a picture without georeference in pixels


def test_several_checkpoints_and_flips_are_averaged(trained, geotiff, call, tmp_path):
    best, last = trained[0] / "best_iou.pt", trained[0] / "last.pt"
    for name, flags in {
        "one": ("--checkpoint", best),
        "two": ("--checkpoint", last),
        "both": ("--checkpoint", best, last),
    }.items():
        assert call("infer", geotiff, *flags, "--amp", "off", "--output-dir", tmp_path / name).code == 0
    read = {name: read_raster(tmp_path / name / "geo_prob.tif").data[:, :, 10:] for name in ("one", "two", "both")}
    assert np.allclose(read["both"], (read["one"] + read["two"]) / 2, atol=1e-5)
    assert call("infer", geotiff, "--checkpoint", best, "--tta", "--output-dir", tmp_path / "tta").code == 0


def test_the_newest_run_is_taken_and_named(trained, geotiff, call, tmp_path):
    run = tmp_path / "here" / "runs" / "potsdam_points" / "demo-1"
    run.mkdir(parents=True)
    (run / "best_iou.pt").write_bytes((trained[0] / "best_iou.pt").read_bytes())
    result = call("infer", geotiff, cwd=tmp_path / "here")
    assert result.code == 0, result.err
    assert "demo-1" in result.err
    assert (tmp_path / "here" / "outputs" / "potsdam_points" / "geo_mask.tif").is_file()


def test_mistakes_are_one_line(trained, geotiff, call, tmp_path):
    best = trained[0] / "best_iou.pt"
    call("infer", "--checkpoint", best).mistake("input_images")
    call("infer", tmp_path / "no.png", "--checkpoint", best).mistake("no.png")
    call("infer", geotiff, "--checkpoint", best, "--threshold", "0.5").mistake("--threshold", "6")
    call("infer", geotiff, "--checkpoint", best, "--scale", "0").mistake("--scale")
    call("infer", geotiff, "--checkpoint", tmp_path / "no.pt").mistake("no.pt")


@pytest.mark.skipif("SEG_REAL_DATA" not in os.environ, reason="SEG_REAL_DATA is not set")
def test_the_true_512_pair_runs_through(trained, call, tmp_path):
    folder = Path(os.environ["SEG_REAL_DATA"]) / "potsdam_points" / "isprs_potsdam_512"
    best = trained[0] / "best_iou.pt"
    assert call("infer", folder / "img_dir", "--checkpoint", best, "--output-dir", tmp_path / "out").code == 0
    pair = ("--images", folder / "img_dir", "--labels", folder / "ann_dir")
    result = call("evaluate", "--checkpoint", best, *pair, "--split", "all")
    assert result.code == 0, result.err
    assert '"n_images": 1' in result.out
