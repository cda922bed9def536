import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning

from common.images.rasters import read_label, read_raster
from common.images.write import Arrays, Layout, mask_suffix, quantize, write_mask, write_picture, write_probability

TRANSFORM = Affine(0.25, 0.0, 430000.0, 0.0, -0.25, 4580000.0)
PLACE = (CRS.from_epsg(25830), TRANSFORM)
PALETTE = {0: (200, 200, 200), 1: (0, 160, 60)}
TAGS = {"checkpoint": "abc", "threshold": "0.45"}


def classes(*shape, hole=0):
    """A mask without data in its first columns."""
    mask = np.random.default_rng(0).integers(0, 2, shape).astype(np.uint8)
    mask[:, :hole] = 255
    return Arrays(mask=mask[None])


def probabilities(*shape, hole=0):
    values = np.random.default_rng(0).random(shape, np.float32)
    values[..., :hole] = np.nan
    return Arrays(probability=values)


def only_file(folder):
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 1, names
    return names[0]


@pytest.mark.parametrize("layout", [Layout(), Layout(overviews=True), Layout(cog=True)])
def test_a_georeferenced_mask_has_the_frame_colors_nodata_and_tags(tmp_path, layout):
    rows = classes(700, 530, hole=40)
    path = tmp_path / "out" / f"S_mask{mask_suffix(PLACE)}"
    write_mask(path, rows, PLACE, palette=PALETTE, tags=TAGS, layout=layout)
    assert only_file(path.parent) == "S_mask.tif"
    with rasterio.open(path) as dataset:
        assert dataset.crs.to_epsg() == 25830 and dataset.transform == TRANSFORM
        assert dataset.nodata == 255 and dataset.dtypes == ("uint8",)
        assert dataset.profile["tiled"] and dataset.profile["compress"] == "deflate"
        assert dataset.tags().items() >= TAGS.items()
        assert dataset.colormap(1)[0][:3] == PALETTE[0] and dataset.colormap(1)[1][:3] == PALETTE[1]
        assert dataset.overviews(1) == {Layout(): []}.get(layout, [2, 4] if layout.overviews else [2])
        assert (dataset.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG") == layout.cog
        np.testing.assert_array_equal(dataset.dataset_mask() > 0, rows.layers["mask"][0] != 255)
        np.testing.assert_array_equal(dataset.read(), rows.layers["mask"])
    np.testing.assert_array_equal(read_label(path), rows.layers["mask"][0])


def test_a_png_mask_is_a_palette_picture_transparent_at_nodata(tmp_path):
    rows = classes(20, 30, hole=6)
    path = tmp_path / "out" / f"in_mask{mask_suffix((None, None))}"
    write_mask(path, rows, palette=PALETTE, tags=TAGS)
    assert only_file(path.parent) == "in_mask.png"
    mask = rows.layers["mask"][0]
    np.testing.assert_array_equal(read_label(path, colors=False), mask)
    back = read_raster(path)
    np.testing.assert_array_equal(back.valid, mask != 255)
    colors = np.array([PALETTE[0], PALETTE[1]])[mask % 255].transpose(2, 0, 1)
    np.testing.assert_array_equal(back.data[:, back.valid], colors[:, back.valid])
    with Image.open(path) as image:
        assert image.text == TAGS


def test_a_png_mask_without_palette_is_grey(tmp_path):
    rows = Arrays(mask=np.eye(20, dtype=np.uint8)[None] * 255)
    write_mask(tmp_path / "x.png", rows)
    np.testing.assert_array_equal(read_label(tmp_path / "x.png"), rows.layers["mask"][0])
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode == "L"


@pytest.mark.parametrize("layout", [Layout(), Layout(overviews=True), Layout(cog=True)])
def test_probabilities_have_the_frame_and_nan_for_nodata(tmp_path, layout):
    rows = probabilities(2, 600, 280, hole=11)
    path = tmp_path / "out" / "S_prob.tif"
    write_probability(path, rows, PLACE, tags=TAGS, layout=layout)
    assert only_file(path.parent) == "S_prob.tif"
    with rasterio.open(path) as dataset:
        assert dataset.dtypes == ("float32", "float32") and np.isnan(dataset.nodata)
        assert dataset.crs.to_epsg() == 25830 and dataset.transform == TRANSFORM
        assert dataset.profile["tiled"] and dataset.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "3"
        assert dataset.profile["compress"] == "deflate" and dataset.tags().items() >= TAGS.items()
        np.testing.assert_array_equal(dataset.read(), rows.layers["probability"])


def test_results_without_georeference_are_written_without_it(tmp_path):
    write_probability(tmp_path / "x.tif", probabilities(1, 9, 11))
    write_mask(tmp_path / "y.tif", classes(9, 11))
    for name in ("x.tif", "y.tif"):
        with pytest.warns(NotGeoreferencedWarning), rasterio.open(tmp_path / name) as dataset:
            assert dataset.crs is None and dataset.transform.is_identity


def test_bad_results_are_refused_and_leave_the_old_file(tmp_path):
    path = tmp_path / "out" / "x.tif"
    write_mask(path, classes(20, 30), PLACE)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="uint8, got int64"):
        write_mask(path, Arrays(mask=np.zeros((1, 20, 30), np.int64)))
    with pytest.raises(ValueError, match=r"x\.png: would lose the georeference; write \.tif"):
        write_mask(path.with_suffix(".png"), classes(20, 30), PLACE)
    with pytest.raises(TypeError):
        write_mask(path, classes(20, 30), palette={0: ("red", 0, 0)})
    assert path.read_bytes() == before and only_file(path.parent) == "x.tif"


@pytest.mark.parametrize("layout", [Layout(), Layout(cog=True)])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, layout):
    rows, real = classes(1100, 30), Arrays.read

    def read(self, name, first, last):
        if first >= 512:
            raise OSError(28, "No space left on device")
        return real(self, name, first, last)

    monkeypatch.setattr(Arrays, "read", read)
    with pytest.raises(OSError, match="No space left"):
        write_mask(tmp_path / "x.tif", rows, PLACE, layout=layout)
    assert not list(tmp_path.iterdir())


def test_rows_are_fetched_in_parts(tmp_path, monkeypatch):
    rows, real, asked = classes(1100, 30), Arrays.read, []
    monkeypatch.setattr(Arrays, "read", lambda self, name, a, b: asked.append(b - a) or real(self, name, a, b))
    write_mask(tmp_path / "x.tif", rows, PLACE)
    assert max(asked) == 512


def test_pictures_say_where_they_come_from(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (9, 11, 3)).astype(np.uint8)
    write_picture(tmp_path / "x.png", picture, TAGS)
    with Image.open(tmp_path / "x.png") as image:
        assert image.text == TAGS
        np.testing.assert_array_equal(np.asarray(image), picture)


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
@pytest.mark.parametrize("layout", [Layout(), Layout(overviews=True), Layout(cog=True)])
def test_probabilities_as_whole_numbers_say_what_they_mean(tmp_path, layout, kind):
    rows = probabilities(2, 600, 280, hole=11)
    expected = rows.layers["probability"]
    write_probability(tmp_path / "x.tif", rows, PLACE, layout=layout, kind=kind)
    with rasterio.open(tmp_path / "x.tif") as dataset:
        most = np.iinfo(kind).max
        assert dataset.dtypes == (kind, kind) and dataset.nodata == most
        values = dataset.read(masked=True) * np.array(dataset.scales)[:, None, None]
    np.testing.assert_array_equal(np.ma.getmaskarray(values), np.isnan(expected))
    np.testing.assert_allclose(values.filled(0), np.nan_to_num(expected), atol=0.51 / (most - 1))
    np.testing.assert_array_equal(quantize(np.float32([0, 1, np.nan]), kind), [0, most - 1, most])
