"""Nuclei as polygons: read back by GDAL, and by a reader of ImageJ's format written here from its description."""

import struct
import zipfile

import numpy as np
import pyogrio
import pytest
import shapely
from rasterio.features import rasterize

from hela_nuclei.polygons import nuclei_of, write_geojson, write_rois


@pytest.fixture
def labels():
    """Round nuclei, one with a hole, one at the edge, one of two parts, one of a single pixel; ids with gaps."""
    rows, columns = np.indices((60, 80))
    found = np.zeros((60, 80), np.uint16)
    found[(rows - 20) ** 2 + (columns - 20) ** 2 < 81] = 7
    found[18:21, 18:21] = 0
    found[50:, 70:] = 3
    found[5:10, 40:45] = found[10:14, 45:50] = 900
    found[40, 10] = 12
    return found


@pytest.fixture
def probability(labels):
    return np.where(labels > 0, 0.6 + 0.0004 * labels, 0.1).astype(np.float32)


def test_geojson_says_of_every_nucleus_what_it_is(labels, probability, tmp_path):
    nuclei = [*nuclei_of(4, labels, probability), *nuclei_of(5, np.zeros_like(labels), probability)]
    write_geojson(tmp_path / "frame.geojson", nuclei, {"version": "1"})
    meta, _, geometry, columns = pyogrio.raw.read(tmp_path / "frame.geojson")
    found = dict(zip(meta["fields"], columns, strict=True))
    assert found["id"].tolist() == [3, 7, 12, 900] and set(found["frame"].tolist()) == {4}
    shapes = shapely.from_wkb(geometry)
    assert shapely.is_valid(shapes).all()
    counts = [int((labels == label).sum()) for label in (3, 7, 12, 900)]
    assert shapely.area(shapes).tolist() == found["area"].tolist() == counts
    assert found["mean_prob"] == pytest.approx(0.6 + 0.0004 * found["id"], abs=1e-3)
    drawn = rasterize(zip(shapes, found["id"].tolist(), strict=True), labels.shape)
    np.testing.assert_array_equal(drawn, labels)


def test_no_nuclei_are_a_file_without_features(labels, probability, tmp_path):
    nuclei = nuclei_of(0, np.zeros_like(labels), probability)
    write_geojson(tmp_path / "none.geojson", nuclei, {})
    assert nuclei == [] and "[\n\n]" in (tmp_path / "none.geojson").read_text()
    assert pyogrio.read_info(tmp_path / "none.geojson")["features"] == 0
    write_rois(tmp_path / "none.zip", nuclei, stack=False)
    assert zipfile.ZipFile(tmp_path / "none.zip").namelist() == []


def read_roi(content):
    """ImageJ's ROI file: big-endian header of 64 bytes, corners relative to the upper left one, a second header."""
    assert content[:4] == b"Iout" and content[6] == 0, "a polygon"
    top, left, bottom, right, count = struct.unpack(">5h", content[8:18])
    position, second = struct.unpack(">2i", content[56:64])
    numbers = struct.unpack(f">{2 * count}h", content[64 : 64 + 4 * count])
    corners = np.column_stack([np.add(numbers[:count], left), np.add(numbers[count:], top)])
    time = struct.unpack(">i", content[second + 12 : second + 16])[0]
    offset, length = struct.unpack(">2i", content[second + 16 : second + 24])
    name = content[offset : offset + 2 * length].decode("utf-16-be")
    return (top, left, bottom, right), corners, position, time, name


@pytest.mark.parametrize("stack", [False, True])
def test_rois_are_read_back(labels, probability, tmp_path, stack):
    write_rois(tmp_path / "rois.zip", nuclei_of(4, labels, probability), stack=stack)
    with zipfile.ZipFile(tmp_path / "rois.zip") as archive:
        assert archive.namelist() == [f"0004-{label:05d}.roi" for label in (3, 7, 12, 900)]
        for name, label in zip(archive.namelist(), (3, 7, 12, 900), strict=True):
            box, corners, position, time, own = read_roi(archive.read(name))
            assert own == name.removesuffix(".roi") and (position, time) == ((5, 5) if stack else (0, 0))
            inside = labels == label
            if label == 7:
                inside[18:21, 18:21] = True  # an outline has no hole
            if label == 900:
                inside[10:14] = False  # of two parts the larger one
            drawn = rasterize([shapely.Polygon(corners)], labels.shape)
            np.testing.assert_array_equal(drawn, inside)
            rows, columns = np.nonzero(inside)
            assert box == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
