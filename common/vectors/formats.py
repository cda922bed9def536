"""Which vector files are opened: those that hold their own shapes, told by their first bytes and not by their names.

OGR knows many more, among them texts that name other files, databases and web services; opened by itself it would
follow them.
"""

from __future__ import annotations

from pathlib import Path

FORMATS = "GeoPackage, shapefile, GeoJSON or FlatGeobuf"
GEOPACKAGE_IDS = (b"GPKG", b"GP10", b"GP11")
PIPELINE = b"gdal_streamed_alg"
"""A JSON that is a list of commands to GDAL."""
BLOCK = 1 << 20


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
            tail = block[-len(PIPELINE) :]
        return PIPELINE not in tail
