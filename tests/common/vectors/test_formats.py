"""Vector files are opened by their content, and nothing else is."""

import json
import os
import socket

import numpy as np
import pyogrio
import pytest
import shapely

from common.vectors.burn import PolygonLayer
from common.vectors.formats import require_shapes

SHAPE = shapely.box(0, 0, 1, 1)


def save(path, driver):
    geometry = np.array([shapely.to_wkb(SHAPE)], object)
    pyogrio.raw.write(path, geometry, [], [], geometry_type="Polygon", crs="EPSG:4326", driver=driver)
    return path


@pytest.mark.parametrize(
    ("name", "driver"),
    [("a.gpkg", "GPKG"), ("a.shp", "ESRI Shapefile"), ("a.geojson", "GeoJSON"), ("a.fgb", "FlatGeobuf"),
     ("a.gdb", "OpenFileGDB")],
)  # fmt: skip
def test_formats_that_hold_their_own_shapes_are_read(tmp_path, name, driver):
    assert PolygonLayer(save(tmp_path / name, driver)).bounds == (0, 0, 1, 1)


def test_a_byte_order_mark_before_geojson_is_no_matter(tmp_path):
    path = save(tmp_path / "a.json", "GeoJSON")
    path.write_bytes(b"\xef\xbb\xbf\n " + path.read_bytes())
    assert PolygonLayer(path).bounds == (0, 0, 1, 1)


def other_formats(folder):
    secret = save(folder / "secret.gpkg", "GPKG")
    layer = f'<OGRVRTLayer name="secret"><SrcDataSource>{secret}</SrcDataSource></OGRVRTLayer>'
    yield f"<OGRVRTDataSource>{layer}</OGRVRTDataSource>"
    yield "id,WKT\n1,POLYGON((0 0,0 1,1 1,0 0))\n"
    yield '<?xml version="1.0"?><kml xmlns="http://www.opengis.net/kml/2.2"></kml>'
    pipeline = {"type": "gdal_streamed_alg", "command_line": f"gdal vector pipeline ! read {secret}"}
    yield json.dumps(pipeline)
    yield json.dumps({"fill": " " * (3 << 20), **pipeline})
    yield "<OGRWFSDataSource><URL>http://127.0.0.1:9/</URL></OGRWFSDataSource>"
    yield ""


@pytest.mark.parametrize("name", ["a.gpkg", "a.shp", "a.geojson", "a.fgb"])
@pytest.mark.parametrize("number", range(7))
def test_other_formats_under_their_names_are_refused(tmp_path, name, number):
    (tmp_path / name).write_text(list(other_formats(tmp_path))[number])
    with pytest.raises(ValueError, match=f"{name}: is no GeoPackage, shapefile, GeoJSON or FlatGeobuf"):
        PolygonLayer(tmp_path / name)


def test_a_database_that_is_no_geopackage_is_refused(tmp_path):
    path = save(tmp_path / "a.sqlite", "SQLite").rename(tmp_path / "a.gpkg")
    with pytest.raises(ValueError, match="is no GeoPackage"):
        require_shapes(path)


def test_a_pipe_is_no_vector_file(tmp_path):
    os.mkfifo(tmp_path / "a.gpkg")
    with pytest.raises(ValueError, match="no regular file"):
        require_shapes(tmp_path / "a.gpkg")
    with pytest.raises(FileNotFoundError, match="no such file"):
        require_shapes(tmp_path / "b.gpkg")


@pytest.mark.parametrize("key", ["crs", "c\\u0072s"])
def test_a_coordinate_system_behind_a_link_is_not_fetched(tmp_path, monkeypatch, key):
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        href = f"http://127.0.0.1:{server.getsockname()[1]}/a"
        linked = json.dumps({"type": "link", "properties": {"href": href}})
        corners = "[[[0,0],[1,0],[0,1],[0,0]]]"
        feature = f'{{"type":"Feature","properties":{{}},"geometry":{{"type":"Polygon","coordinates":{corners}}}}}'
        path = tmp_path / "a.geojson"
        path.write_text(f'{{"type":"FeatureCollection", "{key}" : {linked}, "features":[{feature}]}}')
        if key == "crs":
            with pytest.raises(ValueError, match=r"a\.geojson: names its coordinate system by a link"):
                PolygonLayer(path)
        else:
            PolygonLayer(path)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert os.environ["NO_PROXY"] == "*" and pyogrio.get_gdal_config_option("GDAL_HTTP_PROXY") is None
