import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from potsdam_points.labels import CLASSES, PALETTE, class_counts, decode, encode, encode_indices, read_classes


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31))
def test_classes_survive_the_palette(height, width, seed):
    classes = np.random.default_rng(seed).choice([*range(6), 255], (height, width)).astype(np.uint8)
    assert (encode(decode(classes)) == classes).all()


def test_the_palette_is_that_of_potsdam():
    expected = {
        "impervious": (255, 255, 255), "building": (0, 0, 255), "low_vegetation": (0, 255, 255), "tree": (0, 255, 0),
        "car": (255, 255, 0), "clutter": (255, 0, 0),
    }  # fmt: skip
    assert {CLASSES[index]: color for index, color in PALETTE.items()} == expected
    assert encode(np.zeros((1, 1, 3), np.uint8)) == 255


def test_unknown_colors_are_named_with_their_counts():
    colors = np.full((4, 5, 3), 255, np.uint8)
    colors[0, :3], colors[1, 0] = (254, 0, 0), (1, 2, 3)
    with pytest.raises(
        ValueError, match=r"a\.tif: unknown color \(254, 0, 0\) in 3 pixels, \(1, 2, 3\) in 1 pixels.*--unknown"
    ):
        encode(colors, source="a.tif")
    ignored = encode(colors, ignore_unknown=True)
    assert (ignored == 255).sum() == 4
    assert (ignored == 0).sum() == 16


def test_wide_colors_are_not_folded_into_known_ones():
    colors = np.full((1, 1, 3), 255, np.uint16)
    colors[0, 0] = (256 + 255, 0, 0)
    with pytest.raises(ValueError, match="511"):
        encode(colors)


def test_index_labels_count_from_one():
    values = np.array([[0, 1, 2, 3, 4, 5, 6, 255]])
    assert encode_indices(values).tolist() == [[255, 0, 1, 2, 3, 4, 5, 255]]
    with pytest.raises(ValueError, match="unknown value 7 in 1 pixels"):
        encode_indices(np.array([[7, 1]]))


def test_coding_is_told_by_the_bands_and_can_be_forced(tmp_path):
    grey, rgb = tmp_path / "grey.png", tmp_path / "rgb.png"
    Image.fromarray(np.array([[1, 2]], np.uint8)).save(grey)
    Image.fromarray(np.array([[[255, 255, 255], [0, 0, 255]]], np.uint8)).save(rgb)
    assert read_classes(grey).tolist() == read_classes(rgb).tolist() == [[0, 1]]
    assert read_classes(grey, "index").tolist() == [[0, 1]]
    with pytest.raises(ValueError, match=r"grey\.png.*--label-coding index"):
        read_classes(grey, "palette")
    with pytest.raises(ValueError, match=r"rgb\.png.*--label-coding palette"):
        read_classes(rgb, "index")


def test_palette_png_reads_as_its_colors(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 0])
    image.save(tmp_path / "p.png")
    assert read_classes(tmp_path / "p.png").tolist() == [[5, 3, 255]]


def test_counts_leave_out_what_is_ignored():
    assert class_counts([np.array([[0, 0, 255]], np.uint8), np.array([[5, 255]], np.uint8)]).tolist() == [
        2,
        0,
        0,
        0,
        0,
        1,
    ]


@pytest.mark.skipif("SEG_REAL_DATA" not in os.environ, reason="SEG_REAL_DATA is not set")
def test_true_potsdam_tiles_survive_the_palette():
    folder = Path(os.environ["SEG_REAL_DATA"]) / "potsdam_points" / "isprs_potsdam_tiles_256" / "masks"
    paths = sorted(folder.iterdir())
    assert len(paths) == 4
    for path in paths:
        colors = np.asarray(Image.open(path).convert("RGB"))
        assert (decode(read_classes(path)) == colors).all()
