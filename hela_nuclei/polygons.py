"""Nuclei as polygons in pixel coordinates: GeoJSON, and ROI files that ImageJ opens.

A polygon follows the edges of its pixels: x to the right and y down from the frame's upper left corner, so that the
area of a polygon without holes is its number of pixels.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import shapes
from scipy import ndimage

from common.files import atomic_path, write_text


@dataclass(frozen=True)
class Nucleus:
    """One nucleus in one frame."""

    label: int
    frame: int
    area: int
    """Pixels."""
    mean_prob: float
    outline: shapely.Polygon | shapely.MultiPolygon


def nuclei_of(frame: int, labels: NDArray[np.integer], probability: NDArray[np.float32]) -> list[Nucleus]:
    """The nuclei of a frame in the order of their labels.

    Args:
        frame: its number.
        labels: (H, W), 0 = background.
        probability: (H, W), P(nucleus).
    """
    parts: dict[int, list[shapely.Geometry]] = {}
    found = labels.astype(np.int32)
    for outline, value in shapes(found, mask=found > 0):
        parts.setdefault(int(value), []).append(shapely.geometry.shape(outline))
    ids = sorted(parts)
    counts = np.bincount(found.ravel())
    means = np.atleast_1d(ndimage.mean(probability, found, ids)) if ids else np.zeros(0)
    whole = (shapely.normalize(shapely.union_all(parts[label])) for label in ids)
    return [
        Nucleus(label, frame, int(counts[label]), round(float(mean), 4), outline)
        for label, mean, outline in zip(ids, means, whole, strict=True)
    ]


def write_geojson(path: Path, nuclei: Sequence[Nucleus], tags: Mapping[str, str]) -> None:
    """Write a feature for each nucleus with ``id, frame, area, mean_prob``; provenance is in ``properties``."""
    features = [
        {
            "type": "Feature",
            "properties": {"id": one.label, "frame": one.frame, "area": one.area, "mean_prob": one.mean_prob},
            "geometry": json.loads(shapely.to_geojson(one.outline)),
        }
        for one in nuclei
    ]
    about = {"coordinates": "pixels, x to the right, y down", **tags}
    lines = ",\n".join(json.dumps(feature) for feature in features)
    head = json.dumps({"type": "FeatureCollection", "properties": about})[:-1]
    write_text(path, f'{head}, "features": [\n{lines}\n]}}\n')


def write_rois(path: Path, nuclei: Sequence[Nucleus], *, stack: bool) -> None:
    """Write a zip of ROI files, one for each nucleus: its outline without holes, of its largest part.

    Args:
        path: the zip; ImageJ's ROI manager opens it.
        nuclei: of one or more frames.
        stack: whether the frames are those of one stack: a ROI then belongs to its time point.
    """
    from roifile import ROI_TYPE, ImagejRoi

    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in nuclei:
            largest = max(shapely.get_parts(one.outline), key=shapely.area)
            corners = np.asarray(largest.exterior.coords[:-1], np.int32)
            name = f"{one.frame:04d}-{one.label:05d}"
            place = {"position": one.frame, "t": one.frame} if stack else {}
            roi = ImagejRoi.frompoints(corners, name=name, **place)
            roi.roitype = ROI_TYPE.POLYGON  # its corners are pixels' corners; a freehand line's would be their middles
            roi.right, roi.bottom = map(int, corners.max(axis=0))
            archive.writestr(f"{name}.roi", roi.tobytes())
