"""Mosaics (``.vrt``): a text file that puts a raster together of others.

GDAL would follow it anywhere: to other folders, into archives, over the network. Here a mosaic may do nothing but place
and combine raster files that lie beside it or in folders below.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

MOSAIC = ".vrt"
LARGEST = 64 << 20
"""Bytes of the text."""
KNOWN = frozenset(
    {
        "VRTDataset", "SRS", "GeoTransform", "GCPList", "GCP", "Metadata", "MDI", "VRTRasterBand", "ColorInterp",
        "ColorTable", "Entry", "NoDataValue", "HideNoDataValue", "Description", "CategoryNames", "Category", "UnitType",
        "Offset", "Scale", "Histograms", "HistItem", "HistMin", "HistMax", "BucketCount", "IncludeOutOfRange",
        "Approximate", "HistCounts", "MaskBand", "SimpleSource", "ComplexSource", "SourceFilename", "SourceBand",
        "SourceProperties", "SrcRect", "DstRect", "NODATA", "ScaleOffset", "ScaleRatio", "LUT", "ColorTableComponent",
        "UseMaskBand", "OverviewList", "BlockXSize", "BlockYSize", "Exponent", "SrcMin", "SrcMax", "DstMin", "DstMax",
    }
)  # fmt: skip
"""Elements that do nothing else."""


_ours: set[Path] = set()


def allow(path: Path) -> None:
    """Let a mosaic that was written by us name files anywhere, in this process."""
    _ours.add(path.resolve())


def mosaic_sources(path: Path) -> list[Path]:
    """The files that a mosaic is made of.

    Raises:
        ValueError: it is no mosaic of files beside it; names the element or the source.
    """
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"{path}: is a mosaic of {size} bytes (at most {LARGEST}); divide it")
    text = path.read_bytes()
    if b"<!" in text.replace(b"<!--", b""):
        raise ValueError(f"{path}: declares entities or a document type, a mosaic needs none; remove them")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no mosaic: {error}") from error
    sources: dict[Path, None] = {}
    for element in root.iter():
        kind = element.get("subClass")
        if element.tag not in KNOWN or kind is not None:
            raise ValueError(f"{path}: a mosaic with {kind or element.tag} is not read; make a GeoTIFF of it")
        if element.tag == "SourceFilename":
            sources[_source(path, element)] = None
    return list(sources)


def _source(path: Path, element: ElementTree.Element) -> Path:
    text = (element.text or "").strip()
    named = path.parent / text if element.get("relativeToVRT") == "1" else Path(text)
    folder, file = path.parent.resolve(), named.resolve()
    beside = file.is_relative_to(folder) or path.resolve() in _ours
    if not beside or not file.is_file() or file.suffix.lower() == MOSAIC:
        raise ValueError(
            f"{path}: its source {text[:200]} is no raster file beside it; put it there, or make a GeoTIFF"
        )
    return named
