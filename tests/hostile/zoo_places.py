"""Odd georeferences and files that point elsewhere: coordinate systems, control points, virtual rasters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from tests.hostile.kit import PLACE
from tests.hostile.zoo import ALPHA, ANY, BAD, DEEP, GOOD, GREY, RGB, Specimen, geotiff, raw

LOCAL = 'LOCAL_CS["site",UNIT["metre",1]]'
SPHERE = (
    'PROJCS["sphere",GEOGCS["s",DATUM["d",SPHEROID["s",6378137,0]],PRIMEM["Greenwich",0],UNIT["degree",0.01745329]],'
    'PROJECTION["Mercator_1SP"],PARAMETER["scale_factor",1],UNIT["metre",1]]'
)
DEGREES = Affine(1e-6, 0, 15.0, 0, -1e-6, 45.0)
REAL = RGB.astype(np.float32) / 255


def placed(transform: Affine, crs: str | None = "EPSG:32633") -> object:
    """A GeoTIFF with an affine map and a coordinate system."""
    return geotiff(transform=transform, crs=crs)


def control_points(path: Path) -> None:
    """Placed by four points on the ground alone."""
    geotiff(transform=Affine.identity(), crs=None)(path)
    corners = [(0, 0), (0, 56), (40, 0), (40, 56)]
    points = [GroundControlPoint(row, col, 15 + col * 1e-5, 45 - row * 1e-5, 0) for row, col in corners]
    with rasterio.open(path, "r+") as file:
        file.gcps = (points, rasterio.crs.CRS.from_epsg(4326))


def rational(path: Path) -> None:
    """Placed by rational polynomials alone."""
    geotiff(transform=Affine.identity(), crs=None)(path)
    one = [1.0] + [0.0] * 19
    with rasterio.open(path, "r+") as file:
        file.rpcs = RPC(0, 1, 45, 1, one, one, 20, 20, 15, 1, one, one, 28, 28, 0, 0)


def virtual(source: str, *, relative: int = 0, band: str = "") -> str:
    """A virtual raster of one source."""
    simple = (
        f'<SimpleSource><SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource>"
    )
    bands = "".join(f'<VRTRasterBand dataType="Byte" band="{n}">{band or simple}</VRTRasterBand>' for n in (1, 2, 3))
    return f'<VRTDataset rasterXSize="56" rasterYSize="40">{bands}</VRTDataset>'


def web_service(url: str) -> str:
    """A web map service, as GDAL describes one."""
    return (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service><DataWindow>'
        "<UpperLeftX>-20037508</UpperLeftX><UpperLeftY>20037508</UpperLeftY><LowerRightX>20037508</LowerRightX>"
        "<LowerRightY>-20037508</LowerRightY><TileLevel>0</TileLevel></DataWindow><Projection>EPSG:3857</Projection>"
        "<BandsCount>3</BandsCount></GDAL_WMS>"
    )


def elsewhere(secret: Path, port: int) -> tuple[Specimen, ...]:
    """Files that would read another file of this machine, or ask the network.

    Args:
        secret: a file that no input may reach.
        port: of the loopback, where requests are counted.
    """
    url = f"http://127.0.0.1:{port}/a"
    raw_band = (
        f"<SourceFilename>{secret}</SourceFilename><ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset>"
        "<LineOffset>56</LineOffset>"
    )
    python = "<PixelFunctionType>x</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage>"
    texts = {
        "vrt_local": virtual(str(secret)),
        "vrt_curl": virtual(f"/vsicurl/{url}.tif"),
        "vrt_stream": virtual(f"/vsicurl_streaming/{url}.tif"),
        "vrt_s3": virtual("/vsis3/bucket/key.tif"),
        "vrt_zip": virtual(f"/vsizip//vsicurl/{url}.zip/a.tif"),
        "vrt_python": virtual(str(secret), band=python),
        "vrt_raw": virtual("", band=raw_band).replace('dataType="Byte"', 'dataType="Byte" subClass="VRTRawRasterBand"'),
        "vrt_self": virtual("vrt_self.tif", relative=1),
        "wms": web_service(url),
        "wmts": f"<GDAL_WMTS><GetCapabilitiesUrl>{url}</GetCapabilitiesUrl></GDAL_WMTS>",
        "wcs": f"<WCS_GDAL><ServiceURL>{url}</ServiceURL><CoverageName>x</CoverageName></WCS_GDAL>",
        "envi_name": str(secret),
        "url": url + ".tif",
        "vsi": f"/vsicurl/{url}.tif",
        "json_stac": f'{{"stac_version":"1.0.0","assets":{{"a":{{"href":"{url}.tif","proj:epsg":4326}}}}}}',
        "pcidsk_like": "SDTS" + str(secret),
        "xyz": "0 0 1\n1 0 2\n0 -1 3\n1 -1 4\n",
        "asc": "ncols 3\nnrows 3\nxllcorner 0\nyllcorner 0\ncellsize 1\n1 2 3\n4 5 6\n7 8 9\n",
    }
    return tuple(Specimen(f"{name}{suffix}", raw(text), BAD) for name, text in texts.items() for suffix in SUFFIXES)


SUFFIXES = (".tif", ".png", ".jpg", ".jp2", ".webp")

PLACES = (
    Specimen("no_crs.tif", placed(PLACE, None), GOOD),
    Specimen("local_cs.tif", placed(PLACE, LOCAL), ANY),
    Specimen("degrees.tif", placed(DEGREES, "EPSG:4326"), GOOD),
    Specimen("grads.tif", placed(DEGREES, "EPSG:4807"), GOOD),
    *(Specimen(f"web{n}.tif", placed(Affine(0.5, 0, 2e6, 0, -0.5, 8e6), f"EPSG:{n}"), GOOD) for n in (3857, 3395)),
    Specimen("web_esri.tif", placed(Affine(0.5, 0, 2e6, 0, -0.5, 8e6), "ESRI:102113"), GOOD),
    Specimen("sphere.tif", placed(Affine(0.5, 0, 2e6, 0, -0.5, 8e6), SPHERE), GOOD),
    Specimen("compound.tif", placed(Affine(0.5, 0, 2e6, 0, -0.5, 8e6), "EPSG:6871"), GOOD),
    Specimen("feet.tif", placed(Affine(1, 0, 1e6, 0, -1, 2e5), "EPSG:2263"), GOOD),
    Specimen("rotated.tif", placed(PLACE @ Affine.rotation(30)), GOOD),
    Specimen("south_up.tif", placed(Affine(0.5, 0, 5e5, 0, 0.5, 5e6)), GOOD),
    Specimen("mirrored.tif", placed(Affine(-0.5, 0, 5e5, 0, -0.5, 5e6)), GOOD),
    Specimen("sheared.tif", placed(PLACE @ Affine.shear(20, 10)), GOOD),
    Specimen("antimeridian.tif", placed(Affine(1e-5, 0, 179.9998, 0, -1e-5, 10), "EPSG:4326"), ANY),
    Specimen("pole.tif", placed(Affine(1, 0, 0, 0, -1, 89.9), "EPSG:4326"), ANY),
    Specimen("beyond.tif", placed(Affine(10, 0, 170, 0, -10, 85), "EPSG:4326"), ANY),
    Specimen("far_away.tif", placed(Affine(0.5, 0, 1e15, 0, -0.5, 1e15)), ANY),
    Specimen("infinite_place.tif", placed(Affine(0.5, 0, np.inf, 0, -0.5, np.nan)), ANY),
    Specimen("flat.tif", placed(Affine(0, 0, 5e5, 0, 0, 5e6)), ANY),
    Specimen("singular.tif", placed(Affine(1, 1, 5e5, 1, 1, 5e6)), ANY),
    Specimen("tiny_pixels.tif", placed(Affine(1e-300, 0, 0, 0, -1e-300, 0)), ANY),
    Specimen("geocentric.tif", placed(PLACE, "EPSG:4978"), ANY),
    Specimen("vertical.tif", placed(PLACE, "EPSG:5773"), ANY),
    Specimen("control_points.tif", control_points, ANY),
    Specimen("rational.tif", rational, ANY),
    *(Specimen(f"nodata_{n}.tif", geotiff(nodata=n), GOOD) for n in (0, 255)),
    Specimen("nodata_nan.tif", geotiff(REAL, nodata=np.nan), GOOD),
    Specimen("nodata_lowest.tif", geotiff(REAL, nodata=-3.4028234663852886e38), GOOD),
    Specimen("nodata_alpha.tif", geotiff(ALPHA, nodata=255, photometric="rgb", alpha="yes"), GOOD),
    Specimen("nodata_all.tif", geotiff(np.zeros_like(RGB), nodata=0), GOOD),
    Specimen("wide_values.tif", geotiff(DEEP, nodata=65535), GOOD),
    Specimen("one_band.tif", geotiff(GREY), GOOD),
    Specimen("line.tif", geotiff(RGB[:1]), GOOD),
    Specimen("column.tif", geotiff(RGB[:, :1]), GOOD),
    Specimen("one_pixel.tif", geotiff(RGB[:1, :1]), GOOD),
)
