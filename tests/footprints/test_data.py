import os
import pickle
import warnings
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

from common.data.pairs import Pair
from common.images.windows import MOST_OPEN, Window
from footprints.data import audit, find_pairs, load_scenes, plan_tiles, same_ground, split_scenes
from footprints.scene import ArrayScene, Frame, RasterScene, load_scene, to_classes
from tests.footprints.towns import roofs, write_raster

REAL = os.environ.get("SEG_REAL_DATA")


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def write_outline(path, *boxes, crs="EPSG:32633"):
    data = shapely.to_wkb(np.array([shapely.box(*box) for box in boxes], object))
    pyogrio.raw.write(path, data, [], [], driver="GPKG", geometry_type="Polygon", crs=crs)
    return path


def ids(pairs):
    return [pair.id for pair in pairs]


def test_named_parts_are_found(scene):
    pairs, notes = find_pairs(scene)
    assert notes == []
    assert [len([i for i in ids(pairs) if i.startswith(part)]) for part in ("train/", "val/", "test/")] == [6, 2, 2]
    found, problems = load_scenes(pairs)
    assert problems == []
    split, how = split_scenes(found.scenes, 0.1, 0.1, 0)
    assert {part: len(some) for part, some in split.items()} == {"train": 6, "val": 2, "test": 2}
    assert how == "as the folders say"


def test_a_missing_val_is_split_from_train_and_test_stays(scene, tmp_path):
    (tmp_path / "d").mkdir()
    for part in ("train", "test"):
        (tmp_path / "d" / part).symlink_to(scene / part)
    found, _ = load_scenes(find_pairs(tmp_path / "d")[0])
    split, how = split_scenes(found.scenes, 0.3, 0.1, 0)
    assert (len(split["train"]), len(split["val"]), len(split["test"])) == (4, 2, 2)
    assert all(i.startswith("train/") for i in split["val"]) and "val split from train" in how


def test_flat_folders_vector_files_and_one_file_for_all(town, tmp_path):
    assert ids(find_pairs(town)[0]) == ["town"]
    image, _ = roofs(40, 60)
    for name in ("a", "b"):
        write_raster(tmp_path / "side" / f"{name}.tif", image)
    write_outline(tmp_path / "side" / "a.gpkg", (500_002, 4_999_990, 500_009, 4_999_996))
    pairs, notes = find_pairs(tmp_path / "side")
    assert ids(pairs) == ["a"] and pairs[0].label.suffix == ".gpkg" and "b.tif: no label" in notes[0]
    (tmp_path / "side" / ".a-x1.gpkg").touch()  # what a program that was killed left behind
    assert find_pairs(tmp_path / "side") == (pairs, notes)
    pairs, _ = find_pairs(None, images=tmp_path / "side", labels=tmp_path / "side" / "a.gpkg")
    assert ids(pairs) == ["a", "b"] and {pair.label.name for pair in pairs} == {"a.gpkg"}


def test_labels_of_every_kind_mean_the_same(tmp_path):
    image, mask = roofs(50, 70)
    save(tmp_path / "images" / "grey.png", image)
    save(tmp_path / "labels" / "grey.png", mask)
    save(tmp_path / "images" / "rgb.jpg", image)
    save(tmp_path / "labels" / "rgb_label.png", np.stack([np.zeros_like(mask), mask // 25, np.zeros_like(mask)], -1))
    write_raster(tmp_path / "images" / "index.tif", image)
    write_raster(tmp_path / "labels" / "index.tif", mask // 255)
    write_raster(tmp_path / "images" / "float.tif", (image / 255).astype(np.float32))
    write_raster(tmp_path / "labels" / "float.tif", (mask > 0).astype(np.float32))
    palette = Image.fromarray(mask // 255).convert("P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    save(tmp_path / "images" / "palette.png", image)
    palette.save(tmp_path / "labels" / "palette.png")
    found, problems = load_scenes(find_pairs(tmp_path)[0])
    assert problems == [] and len(found.scenes) == 5
    for loaded in found.scenes:
        assert (loaded.read(Window(0, 0, 50, 70))[1] == mask // 255).all(), loaded.id


def test_nodata_and_alpha_of_image_and_label_are_ignored(tmp_path):
    image, mask = roofs(50, 70)
    image[:, :9] = 7
    write_raster(tmp_path / "images" / "nodata.tif", image, nodata=7)
    write_raster(tmp_path / "labels" / "nodata.tif", mask)
    alpha = np.dstack([image, np.full((50, 70), 255, np.uint8)])
    alpha[:5, :, 3] = 0
    save(tmp_path / "images" / "alpha.png", alpha)
    save(tmp_path / "labels" / "alpha.png", mask)
    write_raster(tmp_path / "images" / "label.tif", image)
    declared = (mask // 255).copy()
    declared[40:] = 99
    write_raster(tmp_path / "labels" / "label.tif", declared, nodata=99)
    for memory in (1 << 30, 0):
        found, _ = load_scenes(find_pairs(tmp_path)[0], memory)
        classes = {s.id: s.read(Window(0, 0, 50, 70))[1] for s in found.scenes}
        assert (next(s for s in found.scenes if s.id == "nodata").read(Window(0, 0, 50, 70))[0][:, :, :9] == 0).all()
        expected = np.where(np.arange(70) < 9, 255, mask // 255)
        assert (classes["nodata"] == expected).all()
        assert (classes["alpha"][:5] == 255).all() and (classes["alpha"][5:] == mask[5:] // 255).all()
        assert (classes["label"][40:] == 255).all() and (classes["label"][:40] == mask[:40] // 255).all()


@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_bands_beside_the_colors_are_no_colors_and_no_labels(tmp_path, memory):
    image, mask = roofs(50, 70)
    write_raster(tmp_path / "images" / "nan.tif", np.where(np.arange(50)[:, None, None] < 5, np.nan, image / 255))
    write_raster(tmp_path / "labels" / "nan.tif", np.dstack([mask, np.full((50, 70), 255, np.uint8)]), alpha="YES")
    write_raster(tmp_path / "images" / "two.tif", np.dstack([image[..., 0], image[..., 0] * 0]), nodata=image[9, 9, 0])
    write_raster(tmp_path / "labels" / "two.tif", mask)
    found, problems = load_scenes(find_pairs(tmp_path)[0], memory)
    assert problems == []
    nan, two = ({s.id: s.read(Window(0, 0, 50, 70)) for s in found.scenes}[name] for name in ("nan", "two"))
    assert (nan[1][:5] == 255).all() and (nan[1][5:] == mask[5:] // 255).all()
    assert (nan[0][:, :5] == 0).all() and np.allclose(nan[0][:, 5:], np.moveaxis(image[5:], -1, 0) / 255, atol=1e-6)
    known = two[1] != 255
    assert (two[0][:, known] == image[..., 0][known]).all() and (two[0][:, ~known] == 0).all() and known.mean() > 0.9


def test_a_palette_raster_beyond_the_memory_is_read_by_its_colors(tmp_path):
    image, mask = roofs(50, 70)
    path = write_raster(tmp_path / "images" / "a.tif", image[..., 0])
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {value: (value, 0, 0, 255) for value in range(256)})
    write_raster(tmp_path / "labels" / "a.tif", mask)
    (whole,), (streamed,) = (load_scenes(find_pairs(tmp_path)[0], memory)[0].scenes for memory in (1 << 30, 0))
    for one, other in zip(whole.read(Window(3, 4, 40, 50)), streamed.read(Window(3, 4, 40, 50)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert streamed.read(Window(3, 4, 40, 50))[0][0].any() and not streamed.read(Window(3, 4, 40, 50))[0][1:].any()


def test_a_label_whose_nodata_is_0_means_background():
    values, valid = np.array([[[0, 255]]]), np.array([[False, True]])
    assert to_classes(values, valid, 0).tolist() == [[0, 1]]
    assert to_classes(values, valid, 3).tolist() == [[255, 1]]


def test_rasters_beyond_the_memory_are_read_by_windows(town):
    pairs, _ = find_pairs(town)
    whole, windows = load_scene(pairs[0]), load_scenes(pairs, memory=0)[0].scenes[0]
    assert isinstance(windows, RasterScene) and windows.frame == whole.frame
    for window in (Window(0, 0, 300, 420), Window(17, 33, 100, 64), Window(299, 419, 1, 1)):
        for one, other in zip(whole.read(window), windows.read(window), strict=True):
            assert one.dtype == other.dtype and (one == other).all()
    copy = pickle.loads(pickle.dumps(windows))  # as a data worker gets it
    assert (copy.read(Window(5, 6, 7, 8))[0] == whole.read(Window(5, 6, 7, 8))[0]).all()


def test_vector_labels_by_windows_and_in_memory(town, tmp_path):
    label = write_outline(tmp_path / "a.gpkg", (500_010, 4_999_900, 500_030, 4_999_950))
    pair = Pair("town", town / "images" / "town.tif", label)
    whole, windows = load_scene(pair), RasterScene(pair)
    expected = np.zeros((300, 420), np.uint8)
    expected[100:200, 20:60] = 1
    assert (whole.classes == expected).all()
    assert (windows.read(Window(90, 10, 60, 40))[1] == expected[90:150, 10:50]).all()


def test_bad_files_are_named(tmp_path):
    image, mask = roofs(40, 60)
    for name in ("good", "size", "crs", "moved", "text", "no_image"):
        if name != "no_image":
            write_raster(tmp_path / "images" / f"{name}.tif", image)
        write_raster(tmp_path / "labels" / f"{name}.tif", mask)
    write_raster(tmp_path / "labels" / "size.tif", mask[:30])
    write_raster(tmp_path / "labels" / "crs.tif", mask, crs="EPSG:32634")
    write_raster(tmp_path / "labels" / "moved.tif", mask, grid=Affine(0.5, 0, 500_001, 0, -0.5, 5_000_000))
    (tmp_path / "images" / "text.tif").write_text("no picture")
    pairs, notes = find_pairs(tmp_path)
    assert notes == [f"{tmp_path / 'labels' / 'no_image.tif'}: no image, left out"]
    for memory in (1 << 30, 0):
        found, problems = load_scenes(pairs, memory)
        assert [s.id for s in found.scenes] == ["good"]
        text = "\n".join(problems)
        assert "30 x 60" in text and "EPSG:32634" in text and "2.0 pixels beside" in text and "text.tif" in text


def test_a_damaged_raster_does_not_spoil_the_ones_that_are_open(tmp_path):
    """GDAL remembers a failure, and rasterio raises it from the next question about an open file."""
    image, mask = roofs(300, 420)
    for name in ("a", "b"):
        write_raster(tmp_path / "images" / f"{name}.tif", image)
        write_raster(tmp_path / "labels" / f"{name}.tif", mask)
    damaged = tmp_path / "images" / "a.tif"
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    for memory in (1 << 30, 0, 0):
        found, problems = load_scenes(find_pairs(tmp_path)[0], memory)
        assert [s.id for s in found.scenes] == ["b"] and len(problems) == 1 and "a.tif" in problems[0]


def test_a_shift_of_less_than_half_a_pixel_is_rounding(tmp_path):
    image, mask = roofs(40, 60)
    write_raster(tmp_path / "images" / "a.tif", image)
    write_raster(tmp_path / "labels" / "a.tif", mask, grid=Affine(0.5, 0, 500_000.1, 0, -0.5, 5_000_000))
    assert load_scenes(find_pairs(tmp_path)[0])[1] == []


def test_the_audit_counts(scene):
    found, _ = load_scenes(find_pairs(scene)[0])
    rows = dict(audit(found))
    buildings = 0
    for path in scene.glob("*/labels/*.tif"):
        with rasterio.open(path) as file:
            buildings += int((file.read() > 0).sum())
    assert rows["pairs"] == "10" and rows["size (rows x columns)"] == "96 x 96 (10)"
    assert f"building {buildings} ({buildings / 92160:.2%})" in rows["label pixels"]
    for one in found.scenes:
        at = found.spots[one.id]
        assert (one.read(Window(0, 0, 96, 96))[1][at[:, 0], at[:, 1]] == 1).all()


def test_the_audit_names_the_label_values(tmp_path):
    image, mask = roofs(40, 60)
    save(tmp_path / "images" / "a.png", image)
    save(tmp_path / "labels" / "a.png", mask)
    write_raster(tmp_path / "images" / "b.tif", image)
    write_raster(tmp_path / "labels" / "b.tif", np.dstack([mask * 0, mask // 255 * 7, mask * 0]))
    found, _ = load_scenes(find_pairs(tmp_path)[0])
    count = int((mask > 0).sum())
    assert dict(audit(found))["label values"] == f"0 ({2 * (2400 - count)}), 7 ({count}), 255 ({count})"
    noisy = np.arange(2400, dtype=np.uint16).reshape(40, 60)
    write_raster(tmp_path / "labels" / "b.tif", noisy)
    found, _ = load_scenes(find_pairs(tmp_path)[0])
    assert "more; all above 0 count as building" in dict(audit(found))["label values"]


def test_scenes_are_kept_while_the_memory_lasts(tmp_path):
    image, mask = roofs(40, 60)
    for name in ("a", "b", "c"):
        write_raster(tmp_path / "images" / f"{name}.tif", image)
        write_raster(tmp_path / "labels" / f"{name}.tif", mask)
    found, _ = load_scenes(find_pairs(tmp_path)[0], memory=2 * 2400 * 4)
    assert [type(scene) for scene in found.scenes] == [ArrayScene, ArrayScene, RasterScene]


def test_the_audit_of_strips_is_that_of_the_whole(tmp_path, monkeypatch):
    image, mask = roofs(90, 70)
    mask[80:] = 99
    write_raster(tmp_path / "images" / "a.tif", image)
    write_raster(tmp_path / "labels" / "a.tif", mask, nodata=99)
    whole, _ = load_scenes(find_pairs(tmp_path)[0])
    monkeypatch.setattr("footprints.data.STRIP", 1000)
    monkeypatch.setattr("footprints.scene.STRIP", 1000)
    strips, _ = load_scenes(find_pairs(tmp_path)[0])
    assert dict(audit(strips)) == dict(audit(whole)) and strips.values == whole.values
    assert dict(audit(strips))["ignored"].startswith("700 (")
    rows, cols = strips.spots["a"].T
    assert (mask[rows, cols] == 255).all() and len(np.unique(rows * 70 + cols)) == (mask == 255).sum()


def test_few_files_are_open_at_a_time(tmp_path):
    image, mask = roofs(32, 32)
    for number in range(80):
        write_raster(tmp_path / "images" / f"{number}.tif", image)
        write_raster(tmp_path / "labels" / f"{number}.tif", mask)
    before = len(os.listdir("/proc/self/fd"))
    found, _ = load_scenes(find_pairs(tmp_path)[0], memory=0)
    assert len(found.scenes) == 80
    assert len(os.listdir("/proc/self/fd")) - before <= MOST_OPEN


def test_labels_with_one_class_teach_nothing(tmp_path):
    image, mask = roofs(40, 60)
    for name in ("a", "b"):
        write_raster(tmp_path / "images" / f"{name}.tif", image)
        write_raster(tmp_path / "labels" / f"{name}.tif", mask * 0)
    found, _ = load_scenes(find_pairs(tmp_path)[0])
    with pytest.raises(ValueError, match="all 2 images hold nothing but background"):
        audit(found)
    write_raster(tmp_path / "labels" / "b.tif", mask)
    assert dict(audit(load_scenes(find_pairs(tmp_path)[0])[0]))["without any building"] == "1 images"


def test_images_of_the_same_ground_stay_together():
    def scene(name, x, y, side=10, crs="EPSG:32633", pixel=1.0):
        frame = Frame(side, side, Affine(pixel, 0, x, 0, -pixel, y), crs)
        return ArrayScene(name, np.zeros((3, side, side), np.uint8), np.zeros((side, side), np.uint8), frame)

    scenes = [
        scene("a", 0, 10), scene("b", 8, 10), scene("c", 16, 10), scene("touches", 26, 10),
        scene("coarse", 100, 50, 10, pixel=20), scene("inside", 110, 40), scene("other", 0, 10, crs="EPSG:32634"),
        ArrayScene("nowhere", np.zeros((3, 5, 5), np.uint8), np.zeros((5, 5), np.uint8)),
    ]  # fmt: skip
    groups = sorted(sorted(group) for group in same_ground(scenes))
    assert groups == [["a", "b", "c"], ["coarse", "inside"], ["nowhere"], ["other"], ["touches"]]
    for seed in range(5):
        split, how = split_scenes(scenes, 0.2, 0.2, seed)
        assert "by 5 places" in how
        assert sorted(name for part in split.values() for name in part) == sorted(s.id for s in scenes)
        for group in groups:
            assert sum(bool(set(group) & set(part)) for part in split.values()) == 1


@pytest.mark.parametrize("places", [False, True])
def test_a_random_split_has_the_wanted_shares_and_depends_on_the_seed(places):
    def scene(number):
        frame = Frame(5, 5, Affine(1, 0, number // 2 * 100, 0, -1, 0), "EPSG:32633") if places else None
        return ArrayScene(f"{number}", np.zeros((3, 5, 5), np.uint8), np.zeros((5, 5), np.uint8), frame)

    scenes = [scene(number) for number in range(40)]
    splits = [split_scenes(scenes, 0.1, 0.3, seed)[0] for seed in (0, 0, 1)]
    assert {part: len(ids) for part, ids in splits[0].items()} == {"train": 24, "val": 4, "test": 12}
    assert splits[0] == splits[1] != splits[2]
    how = split_scenes(scenes, 0.1, 0.3, 0)[1]
    assert how == ("at random by 20 places, images of the same ground together" if places else "at random")
    assert ("though they overlap" in split_scenes(scenes[:2], 0.1, 0.3, 0)[1]) == places


def test_one_raster_cannot_be_split(town):
    found, _ = load_scenes(find_pairs(town)[0])
    with pytest.raises(ValueError, match=r"footprints/crop\.py"):
        split_scenes(found.scenes, 0.1, 0.1, 0)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(8, 90), st.integers(0, 20))
def test_tiles_count_every_pixel_once(height, width, side, context):
    classes = np.random.default_rng(0).integers(0, 2, (height, width)).astype(np.uint8)
    scene = ArrayScene("s", np.zeros((3, height, width), np.uint8), classes)
    seen = np.zeros((height, width), int)
    tiles = list(plan_tiles([scene], side, context))
    for tile in tiles:
        pair = tile.read()
        image, own = pair.image, pair.classes
        assert image.shape[1:] == own.shape and max(own.shape) <= side + 2 * context
        rows, cols = tile.window.slices
        seen[rows, cols] += own != 255
        assert (own[own != 255] == classes[rows, cols][own != 255]).all()
    assert (seen == 1).all()
    assert len({tile.id for tile in tiles}) == len(tiles)


def test_tiles_see_their_surroundings_on_all_sides():
    def tiles(size):
        scene = ArrayScene("s", np.zeros((3, size, size), np.uint8), np.zeros((size, size), np.uint8))
        return list(plan_tiles([scene], 50, 8))

    assert len(tiles(66)) == 1 and len(tiles(67)) == 4
    for tile in tiles(150):
        for first, length, start, extent in (
            (tile.core.row, tile.core.height, tile.window.row, tile.window.height),
            (tile.core.col, tile.core.width, tile.window.col, tile.window.width),
        ):
            assert (start, start + extent) == (max(0, first - 8), min(150, first + length + 8))


def test_mistakes_are_told(tmp_path, scene):
    with pytest.raises(FileNotFoundError, match=r"--data-root .* is not a folder"):
        find_pairs(tmp_path / "no")
    with pytest.raises(ValueError, match="neither train/images"):
        find_pairs(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match="labels is not a folder"):
        find_pairs(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no\.gpkg does not exist"):
        find_pairs(None, images=scene / "train" / "images", labels=tmp_path / "no.gpkg")
    (tmp_path / "labels").mkdir()
    with pytest.raises(ValueError, match="no image of"):
        find_pairs(tmp_path)


@pytest.mark.skipif(not REAL, reason="needs SEG_REAL_DATA")
@pytest.mark.parametrize(
    ("name", "pairs", "building"),
    [("inria_crops", 34, 0.1349), ("kampala_chips", 118, 0.2333), ("massachusetts", 1, 0.0570), ("raster", 1, 0.2)],
)
def test_the_real_data_load(name, pairs, building):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, problems = load_scenes(find_pairs(Path(REAL or "") / "footprints" / name)[0])
    counts = sum(found.counts.values())
    assert problems == [] and len(found.scenes) == pairs
    assert counts[1] / counts.sum() == pytest.approx(building, abs=5e-4)


@pytest.mark.skipif(not REAL, reason="needs SEG_REAL_DATA")
def test_zooms_of_one_place_stay_together():
    found, _ = load_scenes(find_pairs(Path(REAL or "") / "footprints" / "kampala_chips")[0])
    split, how = split_scenes(found.scenes, 0.1, 0.1, 0)
    assert "by 6 places" in how and 5 <= len(split["val"]) <= 40


def test_a_raster_too_large_to_be_read_at_once_is_read_by_windows(tmp_path, monkeypatch):
    image, mask = roofs(50, 70)
    write_raster(tmp_path / "images" / "a.tif", image)
    write_raster(tmp_path / "labels" / "a.tif", mask)
    monkeypatch.setattr("common.images.pictures.LARGEST", 50 * 70 - 1)
    (scene,) = load_scenes(find_pairs(tmp_path)[0])[0].scenes
    assert isinstance(scene, RasterScene)
    np.testing.assert_array_equal(scene.read(Window(0, 0, 50, 70))[1], mask // 255)
