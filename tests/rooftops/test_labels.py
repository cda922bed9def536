import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rooftops.labels import Coding, read_classes, read_coding


def save(path, label):
    tifffile.imwrite(path, label, photometric="rgb" if label.ndim == 3 else "minisblack")
    return path


def classes_file(tmp_path, text):
    (tmp_path / "classes.yaml").write_text(text)
    return tmp_path / "classes.yaml"


@pytest.mark.parametrize("roof", [1, 255])
def test_roofs_are_255_or_1(tmp_path, roof):
    truth = np.random.default_rng(0).integers(0, 2, (7, 5), dtype=np.uint8)
    path = save(tmp_path / "a_label.tif", truth * np.uint8(roof))
    assert (read_classes(path, Coding()) == truth).all()


@pytest.mark.parametrize("value", [0, 255])
def test_a_label_of_one_value_is_fine(tmp_path, value):
    path = save(tmp_path / "a.tif", np.full((4, 4), value, np.uint8))
    assert (read_classes(path, Coding()) == value // 255).all()


def test_grey_saved_as_rgb_and_one_bit_are_read_alike(tmp_path):
    truth = np.eye(6, dtype=bool)
    Image.fromarray(truth).save(tmp_path / "bit.png")
    save(tmp_path / "rgb.tif", np.repeat(truth[..., None] * np.uint8(255), 3, axis=2))
    for name in ("bit.png", "rgb.tif"):
        assert (read_classes(tmp_path / name, Coding()) == truth).all()


def test_other_values_are_refused_with_file_value_count_and_remedy(tmp_path):
    label = np.zeros((6, 6), np.uint8)
    label[0, :4], label[1, 1] = 37, 1
    path = save(tmp_path / "odd_label.tif", label)
    with pytest.raises(
        ValueError, match=r"odd_label\.tif: unknown value 37 in 4 pixels; known are 0 and 255.*--classes"
    ):
        read_classes(path, Coding())


def test_1_beside_255_is_ambiguous(tmp_path):
    path = save(tmp_path / "a.tif", np.array([[0, 1, 255]], np.uint8))
    with pytest.raises(ValueError, match=r"a\.tif: holds 1 as well as 255.*ignore: 255"):
        read_classes(path, Coding())
    coding = read_coding(classes_file(tmp_path, "background: 0\nroof: 1\nignore: 255\n"))
    assert read_classes(path, coding).tolist() == [[0, 1, 255]]


@pytest.mark.parametrize("colors", [[0, 0, 0, 200, 30, 30], [0, 0, 0, 255, 255, 255]])
def test_a_palette_png_needs_a_file_of_classes(tmp_path, colors):
    picture = Image.fromarray(np.array([[0, 1, 1]], np.uint8))
    picture.putpalette(colors)
    picture.save(tmp_path / "p_label.png")
    with pytest.raises(ValueError, match=r"p_label\.png: is a palette picture.*grey 0 / 255.*--classes"):
        read_classes(tmp_path / "p_label.png", Coding())
    by_color = read_coding(classes_file(tmp_path, f"ground: [0, 0, 0]\nroof: {colors[3:]}\n"))
    assert read_classes(tmp_path / "p_label.png", by_color).tolist() == [[0, 1, 1]]
    by_index = read_coding(classes_file(tmp_path, "ground: 0\nroof: 1\n"))
    assert read_classes(tmp_path / "p_label.png", by_index).tolist() == [[0, 1, 1]]


def test_colors_without_a_file_of_classes_are_refused(tmp_path):
    path = save(tmp_path / "c.tif", np.full((3, 3, 3), (9, 8, 7), np.uint8))
    with pytest.raises(ValueError, match=r"c\.tif: is in color.*--classes"):
        read_classes(path, Coding())


def test_colors_by_list_or_hexadecimal(tmp_path):
    coding = read_coding(classes_file(tmp_path, 'ground: [0, 0, 0]\nflat: "#ff8000"\nignore: [1, 2, 3]\n'))
    assert coding.names == ("ground", "flat")
    assert coding.palette == {0: (0, 0, 0), 1: (255, 128, 0)}
    label = np.array([[(0, 0, 0), (255, 128, 0), (1, 2, 3)]], np.uint8)
    assert read_classes(save(tmp_path / "a.tif", label), coding).tolist() == [[0, 1, 255]]
    label[0, 0] = (5, 5, 5)
    with pytest.raises(
        ValueError, match=r"unknown value \(5, 5, 5\) in 1 pixels; known are \(0, 0, 0\), \(255, 128, 0\)"
    ):
        read_classes(save(tmp_path / "a.tif", label), coding)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ground: 0\n", "names 1 class"),
        ("ground: 0\nroof: 0\n", "same value"),
        ("ground: 0\nroof: [255, 0, 0]\n", "mixes colors"),
        ("ground: 0\nroof: red\n", "roof: 'red'"),
        ("ground: 0\nroof: true\n", "roof: 'true'"),
        ("ground: 0\nroof: [300, 0, 0]\n", "300"),
        ("- ground\n", "no mapping"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_a_bad_file_of_classes_says_what_is_wrong(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read_coding(classes_file(tmp_path, text))
    assert "classes.yaml" in str(error.value)


def test_a_missing_file_of_classes(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--classes .*no\.yaml does not exist"):
        read_coding(tmp_path / "no.yaml")


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_any_coding_is_read_back(tmp_path_factory, data):
    colored = data.draw(st.booleans())
    values = data.draw(st.lists(st.integers(0, 2**24 - 1 if colored else 65535), min_size=3, max_size=6, unique=True))
    coding = Coding(tuple(f"c{i}" for i in range(len(values) - 1)), tuple(values[:-1]), colored, values[-1])
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    truth = np.random.default_rng(values[0]).integers(0, len(values), (height, width))
    truth[truth == len(values) - 1] = 255
    codes = np.array([*values[:-1], *[0] * (256 - len(values)), values[-1]], np.int64)[truth]
    label = codes.astype(np.uint16)
    if colored:
        label = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1).astype(np.uint8)
    path = save(tmp_path_factory.mktemp("coding") / "a.tif", label)
    assert (read_classes(path, coding) == truth).all()


def test_roofs_are_white_also_where_white_is_zero(tmp_path):
    roof = np.eye(9, dtype=bool)
    tifffile.imwrite(tmp_path / "a.tif", np.where(roof, 0, 255).astype(np.uint8), photometric="miniswhite")
    Image.fromarray(roof).save(tmp_path / "b.tif", tiffinfo={262: 0})
    for name in ("a.tif", "b.tif"):
        np.testing.assert_array_equal(read_classes(tmp_path / name, Coding()), roof)
