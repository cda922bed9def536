"""The ground under a coordinate system: what its units measure there, and coordinates in which areas are true."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pyproj
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from common.images.grids import Bounds, bounds

Points = NDArray[np.float64]
Convert = Callable[[Points], Points]

EARTH = 6.4e6
"""Metres of a radian, roughly."""
NEAR = 0.01
"""Areas of a projection that are this close to those on the ellipsoid are taken as they are."""
STEP = 10.0
"""Side in metres of the squares by which a projection is compared with the ground."""
WEB_MERCATOR_RADIUS = 6378137.0
"""Of the sphere that Web Mercator computes on under its many names; the latitudes are those of WGS 84 all the same."""


class Ground:
    """The ground under coordinates of one system; heights and ways to other systems do not matter.

    Args:
        crs: the system; None = coordinates are pixels, whose unit stays.

    Raises:
        ValueError: the system cannot be interpreted.
    """

    def __init__(self, crs: CRS | None) -> None:
        self.crs = _horizontal(crs.to_wkt()) if crs else None
        units = [axis.unit_conversion_factor or 1.0 for axis in self.crs.axis_info[:2]] if self.crs else []
        self.unit = units[0] if units else 1.0
        """Metres of a unit in the plane; of a geographic system radians."""
        geodetic = self.crs.geodetic_crs if self.crs and (self.crs.is_geographic or self.crs.is_projected) else None
        self._geod = _geod(geodetic) if geodetic else None
        self._to_geodetic: pyproj.Transformer | None = None
        self._radians = self.unit
        if self.crs and geodetic and self.crs.is_projected:
            self._to_geodetic = pyproj.Transformer.from_crs(self.crs, geodetic, always_xy=True)
            self._radians = geodetic.axis_info[0].unit_conversion_factor

    @property
    def is_projected(self) -> bool:
        """Whether coordinates are those of a map."""
        return self._to_geodetic is not None

    def equal_area(self, box: Bounds) -> Convert | None:
        """The map from coordinates in a box to metres in which areas are those on the ellipsoid.

        Returns:
            None = planar areas are as good: there is no ellipsoid, or the projection is near-true in the box.
        """
        if self._geod is None:
            return None
        pole = self._pole(box)
        convert = self._disc(pole) if pole else self._cylinder(box)
        return None if self.is_projected and self._is_true(box, convert) else convert

    def metres_per_unit(self, box: Bounds) -> tuple[float, float]:
        """Metres on the ground of one unit along x and along y, in the middle of a box; pixels without a system."""
        if self._geod is None or self.equal_area(box) is None:
            return self.unit, self.unit
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        half = self._step() / 2
        cross = np.array([[x - half, y], [x + half, y], [x, y - half], [x, y + half]])
        longitude, latitude = np.degrees(self._geodetic(cross)).T
        _, _, metres = self._geod.inv(longitude[::2], latitude[::2], longitude[1::2], latitude[1::2])
        return float(metres[0] / (2 * half)), float(metres[1] / (2 * half))

    def _step(self) -> float:
        """`STEP` in units."""
        return STEP / self.unit / (1.0 if self.is_projected else EARTH)

    def _geodetic(self, points: Points) -> Points:
        """Longitude and latitude in radians; not finite beyond the edge of the projection."""
        if self._to_geodetic is not None:
            points = np.column_stack(self._to_geodetic.transform(points[:, 0], points[:, 1]))
        return np.asarray(points * self._radians)

    def _pole(self, box: Bounds) -> int:
        """1 or -1 where a projected box holds the north or the south pole, else 0."""
        if self._to_geodetic is None:
            return 0
        for sign in (1, -1):
            x, y = self._to_geodetic.transform(0.0, sign * np.pi / 2 / self._radians, direction="INVERSE")
            if box[0] <= x <= box[2] and box[1] <= y <= box[3]:
                return sign
        return 0

    def _q(self, latitude: Points) -> Points:
        """Twice the authalic sine; Snyder, Map Projections: A Working Manual (1987), equation 3-12."""
        assert self._geod is not None
        sine, e = np.sin(latitude), np.sqrt(self._geod.es)
        return np.asarray((1 - e**2) * (sine / (1 - (e * sine) ** 2) + np.arctanh(e * sine) / e) if e else 2 * sine)

    def _cylinder(self, box: Bounds) -> Convert:
        """Lambert's cylindrical projection, equations 10-14 to 10-17, cut on the other side of the earth."""
        geod = self._geod
        assert geod is not None
        middle = self._geodetic(np.array([[(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]]))[0, 0]

        def convert(points: Points) -> Points:
            longitude, latitude = self._geodetic(points).T
            with np.errstate(invalid="ignore"):  # infinite beyond the edge of the projection
                if self.is_projected and np.isfinite(middle):  # geographic ones are not wrapped around
                    longitude = (longitude - middle + np.pi) % (2 * np.pi) - np.pi
                return np.column_stack([geod.a * longitude, geod.a * self._q(latitude) / 2])

        return convert

    def _disc(self, sign: int) -> Convert:
        """Lambert's azimuthal projection around a pole, equations 24-14 and 24-23."""
        geod = self._geod
        assert geod is not None
        pole = self._q(np.array(np.pi / 2))

        def convert(points: Points) -> Points:
            longitude, latitude = self._geodetic(points).T
            radius = geod.a * np.sqrt(np.maximum(pole - self._q(sign * latitude), 0))
            return np.column_stack([radius * np.sin(longitude), radius * np.cos(longitude)])

        return convert

    def _is_true(self, box: Bounds, convert: Convert) -> bool:
        """Whether small squares all over a box are as large in the plane as on the ground."""
        x, y = np.meshgrid(np.linspace(box[0], box[2], 3), np.linspace(box[1], box[3], 3))
        half = self._step() / 2
        corners = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
        squares = np.column_stack([x.ravel(), y.ravel()])[:, None] + corners
        there = convert(squares.reshape(-1, 2)).reshape(squares.shape)
        with np.errstate(invalid="ignore"):
            across, along = there[:, 2] - there[:, 0], there[:, 3] - there[:, 1]
            ground = np.abs(across[:, 0] * along[:, 1] - across[:, 1] * along[:, 0]) / 2
        return bool((np.abs(ground / STEP**2 - 1) <= NEAR).all())


@lru_cache(32)
def metres_per_pixel(grid: Affine | None, crs: CRS | None, size: tuple[int, int]) -> float | None:
    """The root of a pixel's area on the ground, of a raster of a height and width; None without a coordinate system."""
    if grid is None or crs is None:
        return None
    across, along = Ground(crs).metres_per_unit(bounds(grid, *size))
    return math.sqrt(abs(grid.determinant) * across * along)


def _horizontal(wkt: str) -> pyproj.CRS:
    """The part of a coordinate system that says where things lie."""
    try:
        crs = pyproj.CRS.from_wkt(wkt)
    except pyproj.exceptions.CRSError as error:
        raise ValueError(f"the coordinate system {' '.join(wkt.split())[:60]} cannot be used: {error}") from error
    while part := crs.source_crs if crs.is_bound else crs.sub_crs_list[0] if crs.is_compound else None:
        crs = part
    return crs


def _geod(crs: pyproj.CRS) -> pyproj.Geod:
    found = crs.get_geod()
    is_web_mercator = found is not None and found.sphere and found.a == WEB_MERCATOR_RADIUS
    return pyproj.Geod(ellps="WGS84") if is_web_mercator or found is None else found
