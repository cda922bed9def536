"""Georeferenced sheets of one grid as one raster: a mosaic (VRT) that is read like any raster."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from common.files import write_text
from common.images.gdal import open_raster, place_of
from common.images.mosaics import MOSAIC, allow

GDAL_TYPES = {
    "uint8": "Byte", "int8": "Int8", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32", "int32": "Int32",
    "float32": "Float32", "float64": "Float64",
}  # fmt: skip
OFF_GRID = 0.01
"""Pixels by which a sheet may lie beside the grid of the others."""


class Kind(NamedTuple):
    """What sheets of a mosaic have in common."""

    crs: CRS
    pixel: tuple[float, float]
    """Width and height of a pixel in units of the coordinate system."""
    dtype: str
    colors: tuple[str, ...]
    nodata: float | None


class Sheet(NamedTuple):
    """A raster and where it lies."""

    path: Path
    kind: Kind
    place: Affine
    size: tuple[int, int]
    """Height and width."""


def look_at(path: Path) -> Sheet:
    """A sheet.

    Raises:
        ValueError: it is none that can be put together with others.
    """
    with open_raster(path) as dataset:
        place = place_of(dataset)
        if place is None or dataset.crs is None:
            raise ValueError(f"--mosaic: {path} has no georeference; leave it out, or do without --mosaic")
        if place.b or place.d or place.a <= 0 or place.e >= 0:
            raise ValueError(f"--mosaic: {path} is not north-up; warp it with gdalwarp, or leave it out")
        if ColorInterp.palette in dataset.colorinterp or dataset.dtypes[0] not in GDAL_TYPES:
            raise ValueError(f"--mosaic: {path} has a color table, or {dataset.dtypes[0]} values; make it RGB")
        kind = Kind(dataset.crs, (place.a, -place.e), dataset.dtypes[0], _colors(dataset), dataset.nodata)
        return Sheet(path, kind, place, dataset.shape)


def _colors(dataset: DatasetReader) -> tuple[str, ...]:
    return tuple(meaning.name.capitalize() for meaning in dataset.colorinterp)


def build_mosaic(paths: Sequence[Path], folder: Path) -> Path:
    """Write a mosaic of sheets into a folder under a hidden name that follows from what they are now.

    Later sheets lie over earlier ones where they have data; between sheets there is none.

    Args:
        paths: the sheets.
        folder: where the mosaic goes.

    Returns:
        The mosaic; that of a run before if the sheets are the same.

    Raises:
        ValueError: a sheet differs from the first one in coordinate system, resolution, bands or grid.
    """
    sheets = [look_at(path) for path in paths]
    first = sheets[0]
    for sheet in sheets[1:]:
        for what, one, other in zip(Kind._fields, first.kind, sheet.kind, strict=True):
            if one != other and not (what == "pixel" and _close(one, other)):
                seen = f"{what} ({_told(other)} against {_told(one)})"
                raise ValueError(
                    f"--mosaic: {sheet.path} differs from {first.path} in {seen}; "
                    "a mosaic needs sheets of one coordinate system, resolution and kind of bands"
                )
        col, row = offset(first.place, sheet.place)
        if max(abs(col - round(col)), abs(row - round(row))) > OFF_GRID:
            raise ValueError(
                f"--mosaic: {sheet.path} is off the grid of {first.path} by a part of a pixel; align it with gdalwarp"
            )
    text = mosaic_text(sheets)
    name = hashlib.sha256("\n".join([text, *(_state(sheet.path) for sheet in sheets)]).encode()).hexdigest()[:16]
    target = folder / f".mosaic-{name}{MOSAIC}"
    if not (target.is_file() and target.read_text(encoding="utf-8") == text):
        write_text(target, text)
    allow(target)
    return target


def _close(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(abs(a / b - 1) < 1e-9 for a, b in zip(one, other, strict=True))


def _told(value: object) -> str:
    return " ".join(str(value).split())[:80]


def _state(path: Path) -> str:
    info = path.stat()
    return f"{path.resolve()} {info.st_size} {info.st_mtime_ns}"


def offset(grid: Affine, place: Affine) -> tuple[float, float]:
    """Column and row of a place's first pixel on a grid."""
    col, row = ~grid @ (place.c, place.f)
    return col, row


def mosaic_text(sheets: Sequence[Sheet]) -> str:
    """A VRT of sheets on one grid."""
    first = sheets[0]
    places = [tuple(map(round, offset(first.place, sheet.place))) for sheet in sheets]
    left, top = min(col for col, _ in places), min(row for _, row in places)
    width = max(col + sheet.size[1] for (col, _), sheet in zip(places, sheets, strict=True)) - left
    height = max(row + sheet.size[0] for (_, row), sheet in zip(places, sheets, strict=True)) - top
    grid = first.place @ Affine.translation(left, top)
    corner = ", ".join(map(repr, (grid.c, grid.a, 0.0, grid.f, 0.0, grid.e)))
    kind = first.kind
    masked = kind.nodata is None and "Alpha" not in kind.colors

    def sources(band: str) -> str:
        parts = []
        for (col, row), sheet in zip(places, sheets, strict=True):
            rows, cols = sheet.size
            over = f"<NODATA>{kind.nodata!r}</NODATA>" if kind.nodata is not None else "<UseMaskBand>true</UseMaskBand>"
            parts.append(
                f'<ComplexSource><SourceFilename relativeToVRT="0">{escape(str(sheet.path.resolve()))}</SourceFilename>'
                f'<SourceBand>{band}</SourceBand><SrcRect xOff="0" yOff="0" xSize="{cols}" ySize="{rows}"/>'
                f'<DstRect xOff="{col - left}" yOff="{row - top}" xSize="{cols}" ySize="{rows}"/>{over}</ComplexSource>'
            )
        return "\n".join(parts)

    bands = [
        f'<VRTRasterBand dataType="{GDAL_TYPES[kind.dtype]}" band="{number}">'
        + (f"<NoDataValue>{kind.nodata!r}</NoDataValue>" if kind.nodata is not None else "")
        + f"<ColorInterp>{color}</ColorInterp>\n{sources(str(number))}</VRTRasterBand>"
        for number, color in enumerate(kind.colors, start=1)
    ]
    if masked:
        bands.append(f'<MaskBand><VRTRasterBand dataType="Byte">\n{sources("mask,1")}</VRTRasterBand></MaskBand>')
    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>{escape(kind.crs.to_wkt())}</SRS>\n'
        f"<GeoTransform>{corner}</GeoTransform>\n" + "\n".join(bands) + "</VRTDataset>\n"
    )
