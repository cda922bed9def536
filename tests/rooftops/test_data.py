import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rooftops import data
from rooftops.data import audit, find_pairs, load_picture, load_pictures, prefix, split_pictures
from rooftops.labels import Coding


def names(pairs):
    return [pair.id for pair in pairs]


def test_the_layout_is_found_in_natural_order(roofs):
    pairs, missing, notes = find_pairs(roofs)
    assert names(pairs) == [f"town{i // 3}_{i % 3}" for i in range(12)]
    assert (missing, notes) == ([], [])


@pytest.mark.parametrize("folders", [("images", "labels"), ("images", "label"), ("images", "masks")])
def test_flat_folders_are_found_too(roofs, tmp_path, folders):
    shutil.copytree(roofs / "images" / "images", tmp_path / folders[0])
    shutil.copytree(roofs / "label" / "label", tmp_path / folders[1])
    assert len(find_pairs(tmp_path)[0]) == 12
    assert len(find_pairs(None, images=tmp_path / folders[0], labels=tmp_path / folders[1])[0]) == 12


def test_every_kind_of_picture_and_label_name_is_joined(tmp_path):
    for folder in ("i", "l"):
        (tmp_path / folder).mkdir()
    for name in ("a.tif", "b.tiff", "c.jpg", "d.jpeg", "e.PNG"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "i" / name)
    for name in ("a_label.tif", "b.tif", "c_label.png", "d_mask.tif", "e.png"):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "l" / name)
    pairs, missing, _ = find_pairs(None, images=tmp_path / "i", labels=tmp_path / "l")
    assert names(pairs) == ["a", "b", "c", "d", "e"]
    assert missing == []
    assert len(load_pictures(pairs, Coding())[0]) == 5


def test_nothing_to_read_is_an_error_that_names_folder_and_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder; check"):
        find_pairs(tmp_path / "no")
    with pytest.raises(ValueError, match=r"holds no images/ folder.*--images and --labels"):
        find_pairs(tmp_path)
    (tmp_path / "images" / "images").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds no label/ folder"):
        find_pairs(tmp_path)
    (tmp_path / "label").mkdir()
    with pytest.raises(ValueError, match=r"images/images holds no images.*check the path"):
        find_pairs(tmp_path)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "images" / "images" / "a.png")
    with pytest.raises(ValueError, match=r"no image of .*images/images has a label in .*X_label\.tif"):
        find_pairs(tmp_path)


@pytest.fixture
def bad(roofs, tmp_path):
    """A folder with one pair of every kind that cannot be used, and six good ones."""
    root = shutil.copytree(roofs, tmp_path / "bad")
    images, labels = root / "images" / "images", root / "label" / "label"
    (labels / "town0_0_label.tif").unlink()
    tifffile.imwrite(labels / "town0_1_label.tif", np.zeros((50, 112), np.uint8))
    odd = np.zeros((96, 112), np.uint8)
    odd[:2, :3], odd[5, 5] = 37, 1
    tifffile.imwrite(labels / "town0_2_label.tif", odd)
    whole = (labels / "town1_0_label.tif").read_bytes()
    (labels / "town1_0_label.tif").write_bytes(whole[: len(whole) // 2])
    (images / "town1_1.png").write_text("no picture")
    picture = Image.fromarray(np.zeros((96, 112), np.uint8))
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.save(labels / "town1_2_label.png")
    (labels / "town1_2_label.tif").unlink()
    return root


def test_every_bad_pair_is_named_with_its_remedy(bad):
    pairs, missing, notes = find_pairs(bad)
    assert (len(missing), notes) == (1, [])
    assert "town0_0.png: has no label; add " in missing[0]
    assert missing[0].endswith("town0_0_label.tif or remove the image")
    pictures, problems = load_pictures(pairs, Coding())
    assert len(pictures) == 6
    size, values, corrupt, image, palette = problems
    assert "town0_1_label.tif: is 50 x 112" in size
    assert "town0_1.png 96 x 112" in size
    assert "one size" in size
    assert "town0_2_label.tif: unknown value 37 in 6 pixels" in values
    assert "town1_0_label.tif: cannot be read" in corrupt
    assert "remove or replace" in corrupt
    assert "town1_1.png: cannot be read" in image
    assert "town1_2_label.png: is a palette picture" in palette


def test_a_label_without_an_image_is_noted(roofs, tmp_path):
    root = shutil.copytree(roofs, tmp_path / "r")
    (root / "images" / "images" / "town3_1.png").unlink()
    pairs, missing, notes = find_pairs(root)
    assert (len(pairs), missing, len(notes)) == (11, [], 1)
    assert "town3_1_label.tif: no image" in notes[0]


def test_transparent_pixels_are_ignored(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "label").mkdir()
    rgba = np.full((6, 8, 4), 200, np.uint8)
    rgba[:, 5:, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "images" / "a.png")
    tifffile.imwrite(tmp_path / "label" / "a_label.tif", np.full((6, 8), 255, np.uint8))
    picture = load_picture(find_pairs(tmp_path)[0][0], Coding())
    assert picture.image.shape == (3, 6, 8)
    assert (picture.classes[:, :5] == 1).all()
    assert (picture.classes[:, 5:] == 255).all()


def test_16_bit_pictures_keep_their_levels(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "label").mkdir()
    tifffile.imwrite(tmp_path / "images" / "a.tif", np.full((4, 4, 3), 1000, np.uint16), photometric="rgb")
    tifffile.imwrite(tmp_path / "label" / "a_label.tif", np.zeros((4, 4), np.uint8))
    assert np.allclose(load_picture(find_pairs(tmp_path)[0][0], Coding()).unit(), 1000 / 65535)


def test_the_audit_counts(roofs):
    pictures, _ = load_pictures(find_pairs(roofs)[0], Coding())
    labels = np.stack([tifffile.imread(path) for path in sorted((roofs / "label" / "label").iterdir())])
    rows = dict(audit(pictures))
    assert rows["pairs"] == "12"
    assert rows["size (rows x columns)"] == "96 x 112 (12)"
    assert f"roof (255 or 1) {(labels > 0).sum()} ({(labels > 0).mean():.2%})" in rows["label pixels"]
    assert rows["not labeled"] == "0 (0.00%)"
    assert rows["images that show"] == "background 12, roof 11"
    assert rows["empty masks"].startswith("1 ")
    assert rows["prefixes"].startswith("4, up to 3 pictures each")


def test_pictures_beyond_the_memory_are_read_again(roofs, monkeypatch):
    pairs = find_pairs(roofs)[0]
    kept, _ = load_pictures(pairs, Coding())
    monkeypatch.setattr(data, "CACHE_BYTES", 3 * 96 * 112 * 4)
    read, _ = load_pictures(pairs, Coding())
    assert (len(kept._kept), len(read._kept)) == (12, 3)
    for name in ("town0_0", "town3_2"):
        assert (kept[name].image == read[name].image).all()
        assert (kept[name].classes == read[name].classes).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("img12_3", "img12"), ("img12_3_4", "img12"), ("a-b_07-1", "a-b"), ("12_3", "12"), ("roof7", "roof7"), ("7", "7")],
)
def test_prefixes(name, expected):
    assert prefix(name) == expected


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=12), st.integers(0, 99), st.floats(0, 0.45), st.floats(0, 0.45))
def test_tiles_of_one_picture_stay_together(tiles, seed, val, test):
    ids = [f"img{number}_{tile}" for number, count in enumerate(tiles) for tile in range(count)]
    split = split_pictures(ids, val, test, seed, "prefix")
    assert sorted(split["train"] + split["val"] + split["test"]) == sorted(ids)
    assert split["train"]
    assert split["val"]
    groups = [{prefix(name) for name in part} for part in split.values()]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert split == split_pictures(ids[::-1], val, test, seed, "prefix")


def test_one_prefix_cannot_be_split():
    with pytest.raises(ValueError, match=r"all 3 pictures have the prefix 'roof'.*--split-by picture"):
        split_pictures(["roof_1", "roof_2", "roof_3"], 0.1, 0.1, 0, "prefix")
    assert len(split_pictures(["roof_1", "roof_2", "roof_3"], 0.1, 0.1, 0)["train"]) == 1


@pytest.mark.skipif("SEG_REAL_DATA" not in os.environ, reason="SEG_REAL_DATA is not set")
def test_real_rooftops_are_read():
    pictures, problems = load_pictures(find_pairs(Path(os.environ["SEG_REAL_DATA"]) / "rooftops")[0][:15], Coding())
    assert problems == []
    rows = dict(audit(pictures))
    assert rows["size (rows x columns)"] == "640 x 640 (15)"
