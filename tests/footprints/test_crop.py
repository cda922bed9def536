import itertools
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.enums import ColorInterp

from footprints.crop import assign, cover, divide
from footprints.data import find_pairs
from footprints.scene import load_scene
from tests.footprints.towns import roofs, write_raster

REAL = os.environ.get("SEG_REAL_DATA")


def painted(blocks, height, width):
    """How many blocks lie over each pixel."""
    count = np.zeros((height, width), int)
    for row, col, rows, cols in blocks:
        assert row >= 0 and col >= 0 and row + rows <= height and col + cols <= width
        count[row : row + rows, col : col + cols] += 1
    return count


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(16, 90))
def test_blocks_are_disjoint_cover_all_and_hold_a_crop(height, width, size):
    blocks = divide(height, width, size)
    if blocks is None:
        assert min(height, width) < size or (max(height, width) < 3 * size and min(height, width) < 2 * size)
        return
    assert (painted([block for _, block in blocks], height, width) == 1).all()
    assert all(min(block[2:]) >= size for _, block in blocks)
    assert {part for part, _ in blocks} == {"train", "val", "test"}


@settings(deadline=None, max_examples=60)
@given(st.integers(1000, 30_000), st.integers(1000, 30_000))
def test_of_large_rasters_a_tenth_each_is_validation_and_test(height, width):
    share = dict.fromkeys(("train", "val", "test"), 0.0)
    for part, (_, _, rows, cols) in divide(height, width, 64):
        share[part] += rows * cols / (height * width)
    assert share["val"] == pytest.approx(0.1, abs=0.02)
    assert share["test"] == pytest.approx(0.1, abs=0.02)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(16, 64), st.floats(0, 0.95))
def test_crops_cover_every_pixel_of_a_block_and_stay_inside(height, width, size, share):
    overlap = int(share * size)
    pairs = cover((0, 0, height, width), size, overlap)
    crops = [crop for crop, _ in pairs]
    assert (painted(crops, height, width) > 0).all()
    new = [(row + top, col + left, h - top, w - left) for (row, col, h, w), (top, left) in pairs]
    assert (painted(new, height, width) == 1).all(), "every pixel is new in one crop"
    assert {crop[2:] for crop in crops} == {(min(size, height), min(size, width))}
    assert len(set(crops)) == len(crops)
    for length, starts in ((height, {crop[0] for crop in crops}), (width, {crop[1] for crop in crops})):
        steps = np.diff(sorted(starts))
        assert (steps <= size - overlap).all() and (steps[:-1] == size - overlap).all()
        assert max(starts) == max(0, length - size)


def test_small_rasters_are_assigned_whole():
    assert assign(2) == ["train", "train"]
    assert assign(3) == ["train", "val", "test"]
    assert [assign(40).count(part) for part in ("train", "val", "test")] == [32, 4, 4]


def crops_of(folder):
    """Name, part, image and label of every crop."""
    for path in sorted(folder.glob("**/images/*.tif")):
        label = path.parent.with_name("labels") / path.name
        with rasterio.open(path) as image, rasterio.open(label) as other:
            assert (image.crs, image.transform) == (other.crs, other.transform)
            yield path, path.parents[1].name, image.read(), other.read(), image.transform, image.profile


def test_crops_lie_where_they_were_cut(town, call, tmp_path):
    result = call("crop", town, tmp_path / "out", "--size", 96)
    assert result.code == 0, result.err
    with rasterio.open(town / "images" / "town.tif") as file:
        image, crs = file.read(), file.crs
    with rasterio.open(town / "labels" / "town.tif") as file:
        mask = file.read()
    parts = {"train": np.zeros((300, 420), bool), "val": np.zeros((300, 420), bool), "test": np.zeros((300, 420), bool)}
    for path, part, bands, label, grid, profile in crops_of(tmp_path / "out"):
        row, col = map(int, path.stem.split("_")[1:])
        window = np.s_[:, row : row + 96, col : col + 96]
        assert (bands == image[window]).all()
        if part == "train":
            assert (label == mask[window]).all()
        else:  # ground that other crops of the part have is ignored
            assert ((label == 255) | (label * np.uint8(255) == mask[window])).all() or (label == mask[window]).all()
        assert grid == Affine(0.5, 0, 500_000 + 0.5 * col, 0, -0.5, 5_000_000 - 0.5 * row)
        assert profile["crs"] == crs
        parts[part][window[1:]] = True
    assert sum(covered.astype(int) for covered in parts.values()).max() == 1, "a pixel is in two parts"
    assert np.logical_or.reduce(list(parts.values())).all()
    assert "train:" in result.err and "val:" in result.err and "test:" in result.err


def test_overlap_and_one_part(town, call, tmp_path):
    assert call("crop", town, tmp_path / "out", "--size", 128, "--overlap", 28, "--split", "none").code == 0
    names = {path.name for path in (tmp_path / "out" / "images").iterdir()}
    assert names == {f"town_{r}_{c}.tif" for r, c in itertools.product((0, 100, 172), (0, 100, 200, 292))}
    assert names == {path.name for path in (tmp_path / "out" / "labels").iterdir()}


def test_named_parts_are_kept(scene, call, tmp_path):
    assert call("crop", scene, tmp_path / "out", "--size", 48).code == 0
    counts = {part: len(list((tmp_path / "out" / part / "images").iterdir())) for part in ("train", "val", "test")}
    assert counts == {"train": 24, "val": 8, "test": 8}


def test_outlines_become_labels(town, call, tmp_path):
    box = shapely.box(500_010.2, 4_999_900, 500_030.2, 4_999_950)
    path = tmp_path / "houses.gpkg"
    pyogrio.raw.write(
        path, shapely.to_wkb(np.array([box], object)), [], [], driver="GPKG", geometry_type="Polygon", crs="EPSG:32633"
    )
    assert call("crop", town, tmp_path / "out", "--labels", path, "--split", "none", "--size", 100).code == 0
    total = np.zeros((300, 420), np.uint8)
    for crop, _, _, label, _, _ in crops_of(tmp_path / "out"):
        row, col = map(int, crop.stem.split("_")[1:])
        total[row : row + 100, col : col + 100] = label[0]
    expected = np.zeros((300, 420), np.uint8)
    expected[100:200, 20:60] = 255  # x 10.2...30.2 holds the centers 10.25...30.25 less the last; y 50...100
    assert (total == expected).all()
    far = shapely.affinity.translate(box, 10_000, 0)
    pyogrio.raw.write(
        tmp_path / "far.gpkg", shapely.to_wkb(np.array([far], object)), [], [], driver="GPKG",
        geometry_type="Polygon", crs="EPSG:32633",
    )  # fmt: skip
    result = call("crop", town, tmp_path / "none", "--labels", tmp_path / "far.gpkg")
    assert result.code == 2
    assert "far.gpkg" in result.err and "do not meet" in result.err
    assert not (tmp_path / "none").exists()


def test_empty_crops_and_nodata_can_be_left_out(call, tmp_path):
    image, mask = roofs(128, 256, count=4)
    image[:, :64], mask[:, :128] = 0, 0
    write_raster(tmp_path / "src" / "images" / "a.tif", image, nodata=0)
    write_raster(tmp_path / "src" / "labels" / "a.tif", mask)
    mask[10:20, 200:210] = 255
    flags = ("--size", 64, "--split", "none")
    assert call("crop", tmp_path / "src", tmp_path / "all", *flags).code == 0
    assert call("crop", tmp_path / "src", tmp_path / "data", *flags, "--skip-nodata").code == 0
    assert call("crop", tmp_path / "src", tmp_path / "full", *flags, "--skip-empty").code == 0
    found = {name: len(list((tmp_path / name / "images").iterdir())) for name in ("all", "data", "full")}
    with_houses = sum(
        bool(mask[r : r + 64, c : c + 64].any()) for r in (0, 64) for c in (0, 64, 128, 192)
    )  # fmt: skip
    assert found["all"] == 8 and found["data"] == 6 and found["full"] <= with_houses
    with rasterio.open(tmp_path / "data" / "images" / "a_0_64.tif") as file:
        assert file.nodata == 0


def test_alpha_and_bit_depth_are_kept(call, tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 60_000, (64, 96, 4)).astype(np.uint16)
    image[..., 3] = 65535
    image[:, :10, 3] = 0
    path = write_raster(tmp_path / "src" / "images" / "a.tif", image, photometric="RGB", alpha="YES")
    write_raster(tmp_path / "src" / "labels" / "a_label.tif", np.eye(64, 96, dtype=np.uint8))
    assert call("crop", tmp_path / "src", tmp_path / "out", "--size", 64, "--split", "none").code == 0
    with rasterio.open(path) as whole, rasterio.open(tmp_path / "out" / "images" / "a_0_32.tif") as crop:
        assert crop.colorinterp == whole.colorinterp and ColorInterp.alpha in crop.colorinterp
        assert (crop.read() == whole.read()[:, :, 32:96]).all() and crop.dtypes[0] == "uint16"


def test_what_a_mask_or_alpha_hides_stays_hidden(call, tmp_path):
    image, mask = roofs(64, 128)
    hidden = np.arange(64)[:, None] < 20
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write_raster(tmp_path / "src" / "images" / "a.tif", image)
        with rasterio.open(path, "r+") as file:
            file.write_mask(np.broadcast_to(~hidden, (64, 128)))
    alpha = np.where(np.arange(128) < 10, 0, 255) * np.ones((64, 1))
    write_raster(tmp_path / "src" / "labels" / "a.tif", np.dstack([mask, alpha]).astype(np.uint8), alpha="YES")
    assert call("crop", tmp_path / "src", tmp_path / "out", "--size", 64, "--split", "none").code == 0
    crop = load_scene(find_pairs(tmp_path / "out")[0][0])
    assert (crop.classes == np.where(hidden | (np.arange(64) < 10), 255, mask[:, :64] // 255)).all()


def test_palettes_are_kept(call, tmp_path):
    rng = np.random.default_rng(0)
    path = write_raster(tmp_path / "src" / "images" / "a.tif", rng.integers(0, 3, (64, 64)).astype(np.uint8))
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (9, 8, 7, 255), 1: (200, 10, 20, 255), 2: (30, 40, 250, 255)})
    write_raster(tmp_path / "src" / "labels" / "a.tif", np.eye(64, dtype=np.uint8))
    assert call("crop", tmp_path / "src", tmp_path / "out", "--size", 64, "--split", "none").code == 0
    one, two = (load_scene(find_pairs(tmp_path / name)[0][0]) for name in ("src", "out"))
    assert (one.image == two.image).all() and one.image.max() == 250


def test_rasters_of_one_name_in_two_parts_stay_apart(call, tmp_path):
    for part, value in (("train", 10), ("test", 200)):
        write_raster(tmp_path / "src" / part / "images" / "a.tif", np.full((32, 32, 3), value, np.uint8))
        write_raster(tmp_path / "src" / part / "labels" / "a.tif", np.eye(32, dtype=np.uint8))
    assert call("crop", tmp_path / "src", tmp_path / "out", "--size", 32, "--split", "none").code == 0
    found = {part: bands.max() for _, part, bands, *_ in crops_of(tmp_path / "out")}
    assert found == {"train": 10, "test": 200}


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_pictures_without_georeference(call, tmp_path):
    image, mask = roofs(70, 130)
    for name, array in (("images", image), ("labels", mask)):
        (tmp_path / "src" / name).mkdir(parents=True)
        Image.fromarray(array).save(tmp_path / "src" / name / "p.png")
    assert call("crop", tmp_path / "src", tmp_path / "out", "--size", 64, "--split", "none").code == 0
    with rasterio.open(tmp_path / "out" / "images" / "p_6_66.tif") as crop:
        assert crop.crs is None and crop.transform.is_identity
        assert (np.moveaxis(crop.read(), 0, -1) == image[6:, 66:]).all()


def test_memory_does_not_grow_with_the_raster(call, tmp_path):
    peaks = []
    for height in (256, 2048):
        source = tmp_path / f"s{height}"
        zeros = np.zeros((height, 512), np.uint8)
        zeros[::7] = 200
        write_raster(source / "images" / "a.tif", np.stack([zeros] * 3, axis=-1))
        write_raster(source / "labels" / "a.tif", zeros)
        tracemalloc.start()
        assert call("crop", source, tmp_path / f"d{height}", "--size", 128, "--split", "none").code == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 500_000  # the second raster is 2.75 MB larger


def test_a_damaged_raster_does_not_stop_the_others(call, town, tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / "src" / kind).mkdir(parents=True)
        whole = (town / kind / "town.tif").read_bytes()
        (tmp_path / "src" / kind / "good.tif").write_bytes(whole)
        (tmp_path / "src" / kind / "short.tif").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "src" / kind / "text.tif").write_text("no raster")
    result = call("crop", tmp_path / "src", tmp_path / "out", "--size", 96)
    assert result.code == 1, result.err
    assert "short.tif" in result.err and "text.tif" in result.err
    assert {path.stem.split("_")[0] for path in (tmp_path / "out" / "train" / "images").iterdir()} >= {"good"}


def test_mistakes_are_told(call, town, tmp_path):
    call("crop", tmp_path / "no", tmp_path / "out").mistake("no is not a folder")
    (tmp_path / "empty").mkdir()
    call("crop", tmp_path / "empty", tmp_path / "out").mistake("SRC", "empty")
    call("crop", town, tmp_path / "out", "--overlap", 384).mistake("--overlap 384")
    call("crop", town, tmp_path / "out", "--size", 4).mistake("--size 4")
    call("crop", town, tmp_path / "out", "--labels", tmp_path / "no.gpkg").mistake("--labels", "no.gpkg")
    call("crop", town, town).mistake("images is in the way")
    call("crop", town, town, "--split", "none").mistake("is in the way")
    call("crop", town).mistake("DST")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not REAL, reason="needs SEG_REAL_DATA")
def test_the_real_rasters_are_cut(call, tmp_path):
    root = Path(REAL or "") / "footprints"
    assert call("crop", root / "massachusetts", tmp_path / "m").code == 0
    assert sum(label.any() for _, _, _, label, _, _ in crops_of(tmp_path / "m")) > 5
    raster = root / "raster"
    assert call("crop", raster, tmp_path / "r", "--labels", raster / "buildings.geojson").code == 0
    same = []
    for path, _, _, label, _, _ in crops_of(tmp_path / "r"):
        row, col = map(int, path.stem.split("_")[1:])
        with rasterio.open(raster / "labels" / "ortho.tif") as file:
            truth = file.read(window=((row, row + 384), (col, col + 384)))
        same.append(((truth > 0) == (label > 0))[label != 255])  # 255: ground that another crop has
    assert np.concatenate(same).mean() > 0.985  # the raster label has every pixel that an outline touches


def test_no_ground_counts_twice_in_validation_and_test(call, tmp_path):
    image, mask = roofs(300, 420)
    write_raster(tmp_path / "in" / "images" / "a.tif", image)
    write_raster(tmp_path / "in" / "labels" / "a.tif", mask)
    assert call("crop", tmp_path / "in", tmp_path / "out", "--size", 64, "--overlap", 20).code == 0
    for part in ("val", "test"):
        pairs, _ = find_pairs(tmp_path / "out" / part)
        count, first = np.zeros((300, 420), int), {}
        for pair in pairs:
            row, col = map(int, pair.id.split("_")[-2:])
            scene = load_scene(pair)
            count[row : row + 64, col : col + 64] += scene.classes != 255
            known = scene.classes != 255
            assert (scene.classes[known] == mask[row : row + 64, col : col + 64][known] // 255).all()
            first[row, col] = known.all()
        assert len(pairs) > 1 and first[min(first)], "the first crop is whole"
        assert count.max() == 1
        rows, cols = np.flatnonzero(count.any(axis=1)), np.flatnonzero(count.any(axis=0))
        assert count.sum() == len(rows) * len(cols), "and all of the block counts"


def test_crops_replace_those_of_an_earlier_run_and_nothing_else(call, town, tmp_path):
    out = tmp_path / "out"
    assert call("crop", town, out, "--size", 96).code == 0
    before = {path: path.read_bytes() for path in out.rglob("*.tif")}
    assert call("crop", town, out, "--size", 128).code == 0
    after = {path: path.read_bytes() for path in out.rglob("*.tif")}
    assert after and not set(before) & set(after) - {path for path in after if path.stem.endswith("_0_0")}
    assert not list(out.glob(".*"))
    mine = next(iter(after))
    mine.write_bytes(b"mine")
    call("crop", town, out, "--size", 96).mistake(mine.name, "is in the way")
    assert {path: path.read_bytes() for path in out.rglob("*.tif")} == {**after, mine: b"mine"}


@pytest.mark.parametrize("name", ["notes.txt", "train/images/mine.tif", "images/mine.tif", ".abc.partial/images/a.tif"])
def test_a_users_file_in_dst_stays(call, town, tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    call("crop", town, tmp_path / "out", "--size", 96).mistake(tmp_path / "out")
    assert [file for file in (tmp_path / "out").rglob("*") if file.is_file()] == [path] and path.read_bytes() == b"mine"
