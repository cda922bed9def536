"""Labels in which 0 is white: palette pictures and TIFFs, in training and in crops."""

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image

from common.data.pairs import Pair
from common.images.gdal import quiet
from common.images.rasters import read_raster
from common.images.windows import Window
from footprints.data import load_scenes
from tests.footprints.towns import roofs


def palette_label(path, building):
    """A palette PNG whose index 0 is white, 1 black: buildings are white."""
    picture = Image.fromarray(np.where(building, 0, 1).astype(np.uint8))
    picture.putpalette([255, 255, 255, 0, 0, 0])
    picture.save(path)


def white_is_zero(path, building):
    tifffile.imwrite(path, np.where(building, 0, 255).astype(np.uint8), photometric="miniswhite")


def one_bit(path, building):
    Image.fromarray(building).save(path, tiffinfo={262: 0})


LABELS = [("a.png", palette_label), ("a.tif", white_is_zero), ("a.tif", one_bit)]


def write_town(folder, name, write):
    image, mask = roofs(96, 96)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    tifffile.imwrite(folder / "images" / "a.tif", image, photometric="rgb")
    write(folder / "labels" / name, mask > 0)
    return image, mask > 0


@pytest.mark.parametrize(("name", "write"), LABELS)
@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_buildings_are_what_is_seen_white(tmp_path, name, write, memory):
    _, building = write_town(tmp_path, name, write)
    pair = Pair("a", tmp_path / "images" / "a.tif", tmp_path / "labels" / name)
    (scene,), problems = load_scenes([pair], memory)[0].scenes, load_scenes([pair], memory)[1]
    assert not problems
    np.testing.assert_array_equal(scene.read(Window(0, 0, 96, 96))[1], building)


@pytest.mark.parametrize(("name", "write"), LABELS)
def test_crops_keep_what_is_seen_white(call, tmp_path, name, write):
    image, building = write_town(tmp_path / "src", name, write)
    result = call("crop", tmp_path / "src", tmp_path / "dst", "--size", "48", "--split", "none")
    assert result.code == 0, result.err
    for path in (tmp_path / "dst" / "labels").iterdir():
        row, col = map(int, path.stem.split("_")[1:])
        label = read_raster(path).data
        np.testing.assert_array_equal((label > 0).any(axis=0), building[row : row + 48, col : col + 48])
        np.testing.assert_array_equal(
            read_raster(tmp_path / "dst" / "images" / path.name).data,
            image[row : row + 48, col : col + 48].transpose(2, 0, 1),
        )


@pytest.mark.parametrize("nodata", [None, 0, 7, 255])
def test_crops_of_a_transparent_image_are_as_valid_as_it_is(call, tmp_path, nodata):
    image, _ = write_town(tmp_path / "src", "a.tif", white_is_zero)
    bands = np.concatenate([image.transpose(2, 0, 1), np.full((1, 96, 96), 255, np.uint8)])
    bands[3, :20], bands[:3, 30:40] = 0, 255
    path = tmp_path / "src" / "images" / "a.tif"
    options = {"driver": "GTiff", "count": 4, "height": 96, "width": 96, "dtype": "uint8", "photometric": "RGB"}
    with quiet(), rasterio.open(path, "w", alpha="YES", nodata=nodata, **options) as file:
        file.write(bands)
    whole = read_raster(path)
    assert not whole.valid[:20].any() and whole.valid[20:30].all() and whole.valid[30:40].all() == (nodata != 255)
    result = call("crop", tmp_path / "src", tmp_path / "dst", "--size", "48", "--split", "none")
    assert result.code == 0, result.err
    for path in (tmp_path / "dst" / "images").iterdir():
        row, col = map(int, path.stem.split("_")[1:])
        crop = read_raster(path)
        np.testing.assert_array_equal(crop.data, whole.data[:, row : row + 48, col : col + 48])
        np.testing.assert_array_equal(crop.valid, whole.valid[row : row + 48, col : col + 48])
