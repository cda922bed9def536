"""Odd text files: configurations, class lists, tables of points, vector files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.hostile.zoo import ANY, BAD, GOOD, Specimen, raw

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
MERGES = "m0: &m0 {k: 1}\n" + "".join(f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}\n" for n in range(1, 28))
YAML = {
    "laughs": LAUGHS,
    "merges": MERGES,
    "loop": "epochs: &a [*a]\n",
    "deep": "epochs: " + "[" * 20_000,
    "deep_closed": "epochs: " + "[" * 1000 + "]" * 1000,
    "deep_keys": "".join(" " * n + "k:\n" for n in range(1500)),
    "tag_python": "epochs: !!python/object/apply:os.system ['touch code-ran']\n",
    "tag_name": "lr: !!python/name:os.system\n",
    "tag_binary": "epochs: !!binary aGVsbG8=\n",
    "tag_own": "epochs: !mine 3\n",
    "tag_int": "epochs: !!int '3'\n",
    "alias_plain": "epochs: &n 1\nbatch_size: *n\n",
    "list": "- epochs\n- 3\n",
    "text": "epochs\n",
    "number": "3\n",
    "two_documents": "epochs: 1\n---\nepochs: 2\n",
    "twice": "epochs: 1\nepochs: 2\n",
    "mapping": "epochs: {a: 1}\n",
    "nested_list": "widths: [[1, 2], [3]]\n",
    "list_of_maps": "widths: [{a: 1}]\n",
    "null": "epochs: null\n",
    "empty_value": "epochs:\n",
    "text_value": "epochs: many\n",
    "float": "epochs: 1.5\n",
    "huge": "epochs: " + "9" * 5000 + "\n",
    "nan": "lr: .nan\n",
    "infinite": "lr: .inf\n",
    "negative": "batch_size: -1\n",
    "zero": "epochs: 0\n",
    "boolean": "epochs: true\n",
    "unknown": "epoch: 1\n",
    "number_key": "1: 2\n",
    "null_key": "null: 2\n",
    "list_key": "[1, 2]: 3\n",
    "map_key": "{a: 1}: 3\n",
    "flag_like": "epochs: --help\n",
    "flag_key": "--epochs: 3\n",
    "help": "help: true\n",
    "config_in": "config: other.yaml\n",
    "tabs": "epochs:\t1\n\tbatch_size: 2\n",
    "binary": "\x00\x01\x02",
    "control": "epochs: '\x07'\n",
    "unclosed": "epochs: [1\n",
    "quote": "loss: 'ce\n",
    "long_line": "loss: " + "a" * 1_000_000 + "\n",
    "long_sum": "loss: " + "+".join(["ce"] * 5000) + "\n",
    "many_keys": "".join(f"k{n}: {n}\n" for n in range(20_000)),
    "resume_null": "resume: null\nepochs: x\n",
    "loss_code": "loss: __import__('os').system('touch code-ran')\n",
    "loss_power": "loss: 9e999*ce\n",
    "amp": "amp: perhaps\n",
    "device": "device: '/dev/zero'\n",
    "root": "data_root: ''\n",
    "newline": 'loss: "ce\\ndice"\n',
    "nul": 'data_root: "a\\0b"\n',
}
"""Configurations that must be refused: one line, exit 2."""
HARMLESS = ("alias_plain", "twice", "tag_int", "empty_value", "tabs", "null", "config_in", "boolean", "root", "nul")


def configurations() -> Iterator[Specimen]:
    """Files for ``--config``."""
    for name, text in YAML.items():
        yield Specimen(f"{name}.yaml", raw(text), ANY if name in HARMLESS else BAD)
    yield Specimen("latin.yaml", raw("loss: 'é'\n".encode("latin-1")), BAD)
    yield Specimen("utf16.yaml", raw("epochs: 1\n".encode("utf-16")), ANY)
    yield Specimen("null_bytes.yaml", raw(bytes(1000)), BAD)
    yield Specimen("folder.yaml", lambda path: path.mkdir(), BAD)
    yield Specimen("zero_device.yaml", lambda path: path.symlink_to("/dev/zero"), BAD)


def class_lists() -> Iterator[Specimen]:
    """Files for rooftops' ``--classes``: none of these says what it should."""
    texts = {
        "laughs": LAUGHS,
        "deep": "a: " + "[" * 20_000,
        "empty": "",
        "list": "- a\n- b\n",
        "one": "a: 0\n",
        "text": "a: many\n",
        "same_value": "a: 0\nb: 0\n",
        "negative": "a: -1\nb: 0\n",
        "float": "a: 0.5\nb: 1\n",
        "huge": "a: 0\nb: " + "9" * 400 + "\n",
        "nested": "a: {b: 1}\nc: 2\n",
        "three": "a: [1, 2]\nb: [0, 0]\n",
        "colors_out": "a: [0, 0, 300]\nb: [1, 1, 1]\n",
        "many": "".join(f"c{n}: {n}\n" for n in range(300)),
        "tag": "a: !!python/name:os.system\nb: 1\n",
    }
    for name, text in texts.items():
        yield Specimen(f"classes_{name}.yaml", raw(text), BAD)


def point_tables() -> Iterator[Specimen]:
    """Files for potsdam_points' ``--points-file``."""
    texts = {
        "empty": "",
        "header": "id,x,y,class\n",
        "no_header": "0,1,1,2\n",
        "names": "a,b,c\n0,1,2\n",
        "short": "id,x,y,class\n0,1\n",
        "long": "id,x,y,class\n0,1,1,1,1,1\n",
        "text": "id,x,y,class\n0,a,b,1\n",
        "outside": "id,x,y,class\n0,1000,1000,1\n",
        "negative": "id,x,y,class\n0,-1,-1,1\n",
        "nan": "id,x,y,class\n0,nan,1,1\n",
        "infinite": "id,x,y,class\n0,inf,1,1\n",
        "class": "id,x,y,class\n0,1,1,99\n",
        "class_name": "id,x,y,class\n0,1,1,zebra\n",
        "unknown_id": "id,x,y,class\nnowhere,1,1,1\n",
        "huge": "id,x,y,class\n0,1e400,1,1\n",
        "quote": 'id,x,y,class\n"0,1,1,1\n',
        "field": "id,x,y,class\n" + "9" * 200_000 + ",1,1,1\n",
        "nul": "id,x,y,class\n0,1,\x001,1\n",
        "semicolon": "id;x;y;class\n0;1;1;1\n",
        "twice": "id,id,x,y,class\n0,0,1,1,1\n",
    }
    for name, text in texts.items():
        yield Specimen(f"points_{name}.csv", raw(text), BAD)
    yield Specimen("points_latin.csv", raw("id,x,y,class\né,1,1,1\n".encode("latin-1")), BAD)
    yield Specimen("points_binary.csv", raw(bytes(range(256))), BAD)
    yield Specimen("points_folder.csv", lambda path: path.mkdir(), BAD)
    yield Specimen("points_device.csv", lambda path: path.symlink_to("/dev/zero"), BAD)


def feature(geometry: Any) -> str:
    """GeoJSON of one polygon in WGS 84."""
    one = {"type": "Feature", "properties": {"class": "x"}, "geometry": geometry}
    return json.dumps({"type": "FeatureCollection", "features": [one]})


def ring(*points: tuple[Any, ...]) -> dict[str, Any]:
    """A polygon."""
    return {"type": "Polygon", "coordinates": [list(points)]}


def vectors(port: int, secret: Path) -> Iterator[Specimen]:
    """Files where polygons are asked for (``make_masks.py``, ``crop.py --labels``)."""
    corner = (15.0, 45.0)
    shapes: dict[str, Any] = {
        "point": {"type": "Point", "coordinates": corner},
        "none": None,
        "line": {"type": "LineString", "coordinates": [corner, (16, 46)]},
        "two_points": ring(corner, (15.1, 45.1), corner),
        "open": ring(corner, (15.1, 45), (15.1, 45.1)),
        "bow": ring(corner, (15.1, 45.1), (15.1, 45), (15, 45.1), corner),
        "same": ring(*[corner] * 5),
        "beyond": ring((-500, -500), (500, -500), (500, 500), (-500, -500)),
        "huge": ring((0, 0), (1e300, 0), (0, 1e300), (0, 0)),
        "pole": ring((0, 90), (90, 90), (180, 90), (0, 90)),
        "world": ring((-180, -90), (180, -90), (180, 90), (-180, 90), (-180, -90)),
        "collection": {"type": "GeometryCollection", "geometries": [ring(corner, (15.1, 45), (15, 45.1), corner)]},
        "empty_polygon": {"type": "Polygon", "coordinates": []},
        "three_d": ring((*corner, 5), (15.1, 45, 5), (15, 45.1, 5), (*corner, 5)),
        "text": ring(("a", "b"), ("c", "d"), ("e", "f"), ("a", "b")),
    }
    for name, shape in shapes.items():
        yield Specimen(f"{name}.geojson", raw(feature(shape)), ANY)
    for text in ("NaN", "Infinity", "-Infinity", "1e999"):
        yield Specimen(
            f"value_{text}.geojson", raw(feature(ring(corner, ("@", 45), (15, 46), corner)).replace('"@"', text)), ANY
        )
    url = f"http://127.0.0.1:{port}/a"
    virtual = (
        '<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource>{}</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>'
    )
    texts = {
        "nothing.geojson": "",
        "list.geojson": "[]",
        "cut.geojson": feature(ring(corner))[:60],
        "html.geojson": "<html></html>",
        "deep.geojson": '{"type":' + "[" * 5000,
        "empty.geojson": '{"type":"FeatureCollection","features":[]}',
        "crs.geojson": feature(ring(corner, (16, 45), (15, 46), corner))[:-1]
        + ',"crs":{"type":"link","properties":{"href":"'
        + url
        + '"}}}',
        "vrt.gpkg": virtual.format(secret),
        "vrt_curl.gpkg": virtual.format(f"/vsicurl/{url}.gpkg"),
        "vrt.shp": virtual.format(secret),
        "vrt.geojson": virtual.format(f"/vsicurl/{url}.geojson"),
        "url.geojson": url,
        "service.geojson": f'{{"type":"ESRI","url":"{url}"}}',
        "wfs.geojson": f"<OGRWFSDataSource><URL>{url}</URL></OGRWFSDataSource>",
        "text.gpkg": "hello",
        "text.shp": "hello",
        "nothing.gpkg": "",
        "kml.geojson": f"<kml><Document><NetworkLink><Link><href>{url}</href></Link></NetworkLink></Document></kml>",
        "table.csv": "a,b\n1,2\n",
        "sql.sql": "select 1;",
        "sqlite.gpkg": "SQLite format 3\0" + "\0" * 84,
        "name\nline.geojson": "x",
        "gml.geojson": "<gml/>",
    }
    harmless = ("empty.geojson", "crs.geojson")
    for name, text in texts.items():
        yield Specimen(name, raw(text), ANY if name in harmless else BAD)
    yield Specimen("folder.gpkg", lambda path: path.mkdir(), BAD)
    yield Specimen("device.gpkg", lambda path: path.symlink_to("/dev/zero"), BAD)
    yield Specimen("good.geojson", raw(feature(ring((14.9, 44.9), (15.1, 44.9), (15.1, 45.2), (14.9, 44.9)))), GOOD)
