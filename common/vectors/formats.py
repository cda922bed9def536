"""Which vector files are opened: those that hold their own shapes, told by their first bytes and not by their names.

OGR knows many more, among them texts that name other files, databases and web services; opened by itself it would
follow them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

VectorFormat = Literal["gpkg", "shp", "geojson"]
"""What is written."""
SIDECARS = {"shp": ("shx", "dbf", "prj", "cpg")}
"""Endings of the files beside one of a format."""
FORMATS = "GeoPackage, shapefile, GeoJSON or FlatGeobuf"
GEOPACKAGE_IDS = (b"GPKG", b"GP10", b"GP11")
PIPELINE = b"gdal_streamed_alg"
"""A JSON that is a list of commands to GDAL."""
LINKED = re.compile(rb'"crs"\s*:\s*\{\s*"type"\s*:\s*"link"')
"""A coordinate system that a GeoJSON names by an address in the network."""
OVERLAP = 100
BLOCK = 1 << 20
NOWHERE: dict[str, str | None] = {"GDAL_HTTP_PROXY": "127.0.0.1:0", "GDAL_HTTPS_PROXY": "127.0.0.1:0"}
"""A proxy that cannot be: port 0."""


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep OGR from asking the network for what a file only names."""
    import pyogrio

    exempt = {name: os.environ.pop(name) for name in ("no_proxy", "NO_PROXY") if name in os.environ}
    pyogrio.set_gdal_config_options(NOWHERE)
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options(dict.fromkeys(NOWHERE))
        os.environ.update(exempt)


def require_shapes(path: Path) -> None:
    """Refuse a file that is none of the known formats (a file geodatabase is a folder ``.gdb``).

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: it is another format, or no regular file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    if path.is_dir() and path.suffix.lower() == ".gdb":
        return
    if not path.is_file():
        raise ValueError(f"{path}: is no regular file; name a {FORMATS}")
    if not _is_known(path):
        raise ValueError(f"{path}: is no {FORMATS}; convert it with ogr2ogr")


def _is_known(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(100)
        if head.startswith(b"SQLite format 3\0"):
            return head[68:72] in GEOPACKAGE_IDS
        if head.startswith((b"\x00\x00\x27\x0a", b"fgb\x03")):
            return True
        if not head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
            return False
        tail = head
        while block := file.read(BLOCK):
            if PIPELINE in tail + block:
                return False
            if LINKED.search(tail + block):
                raise ValueError(
                    f"{path}: names its coordinate system by a link, which is not followed; convert it with ogr2ogr"
                )
            tail = block[-OVERLAP:]
        return PIPELINE not in tail
