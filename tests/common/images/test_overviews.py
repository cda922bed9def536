from __future__ import annotations

import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from rasterio.enums import Resampling

from common.images.overviews import factors, halve_classes, halve_means
from common.images.write import Arrays, Layout, write_mask, write_probability

PLACE = (rasterio.CRS.from_epsg(25830), Affine(0.25, 0, 430000, 0, -0.25, 4580000))


def by_gdal(path, rows, resampling, nodata):
    """Rows at a half, a quarter and an eighth of their size, as GDAL makes them."""
    profile = {"driver": "GTiff", "count": len(rows), "height": rows.shape[1], "width": rows.shape[2]}
    with rasterio.open(path, "w", dtype=rows.dtype, nodata=nodata, transform=PLACE[1], **profile) as dataset:
        dataset.write(rows)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4, 8], resampling)
    return levels(path, 3)


def levels(path, count):
    """The overviews of a file."""
    found = []
    for level in range(count):
        with rasterio.open(path, overview_level=level) as dataset:
            found.append(dataset.read())
    return found


@pytest.mark.parametrize("classes", [2, 3, 250])
@pytest.mark.parametrize("hole", [0.0, 0.3])
def test_classes_are_halved_as_gdal_halves_them(tmp_path, classes, hole):
    rng = np.random.default_rng(classes)
    rows = rng.integers(0, classes, (1, 64, 128)).astype(np.uint8)
    rows[:, :16] = 1
    rows[rng.random(rows.shape) < hole] = 255
    rows[:, -16:, -16:] = 255 if hole else 0
    for expected in by_gdal(tmp_path / "a.tif", rows, Resampling.mode, 255):
        rows = halve_classes(rows, 255)
        np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize(("kind", "nodata"), [("uint8", 255), ("uint16", 65535), ("float32", np.nan)])
@pytest.mark.parametrize("hole", [0.0, 0.3])
def test_probabilities_are_halved_as_gdal_halves_them(tmp_path, kind, nodata, hole):
    rng = np.random.default_rng(0)
    rows = rng.random((2, 64, 128)).astype("float32")
    rows = rows if kind == "float32" else np.rint(rows * (nodata - 1)).astype(kind)
    rows[:, rng.random(rows.shape[1:]) < hole] = nodata
    rows[:, -16:, -16:] = nodata
    for expected in by_gdal(tmp_path / "a.tif", rows, Resampling.average, nodata):
        rows = halve_means(rows, nodata)
        np.testing.assert_allclose(rows, expected, rtol=1e-6 if kind == "float32" else 0)


def test_the_last_row_and_column_of_an_odd_number_stand_for_two():
    rows = np.arange(15, dtype=np.uint8).reshape(1, 3, 5)
    assert halve_means(rows, 255)[0].tolist() == [[3, 5, 7], [11, 13, 14]]
    assert halve_classes(rows, 255)[0].tolist() == [[0, 2, 4], [10, 12, 14]]
    assert factors((700, 530), 256) == [2, 4] and factors((256, 9), 256) == []


@pytest.mark.parametrize("cog", [False, True])
def test_files_hold_halves_of_halves_whatever_is_written_at_once(tmp_path, cog):
    rng = np.random.default_rng(0)
    mask, probability = rng.integers(0, 3, (1, 1301, 2051)).astype(np.uint8), rng.random((2, 1301, 2051), np.float32)
    mask[:, :600] = probability[:, :600] = 255
    probability[:, :600] = np.nan
    rows, layout = Arrays(mask=mask, probability=probability), Layout(overviews=True, cog=cog)
    write_mask(tmp_path / "mask.tif", rows, PLACE, layout=layout)
    write_probability(tmp_path / "prob.tif", rows, PLACE, layout=layout)
    for name, whole, halve, nodata in (
        ("mask.tif", mask, halve_classes, 255),
        ("prob.tif", probability, halve_means, np.nan),
    ):
        with rasterio.open(tmp_path / name) as dataset:
            np.testing.assert_array_equal(dataset.read(), whole)
            count = len(dataset.overviews(1))
            assert dataset.overviews(1) == factors((1301, 2051), 512 if cog else 256)
        for small in levels(tmp_path / name, count):
            whole = halve(whole, nodata)
            np.testing.assert_array_equal(small, whole)
        with tifffile.TiffFile(tmp_path / name) as file:
            packed = {page.compression.name for page in file.pages}
        assert packed == {"ADOBE_DEFLATE"} | ({"LZW"} if name == "prob.tif" and not cog else set())
    assert {path.name for path in tmp_path.iterdir()} == {"mask.tif", "prob.tif"}
