"""Small georeferenced sheets and masks with a known answer."""

import numpy as np
import rasterio
from affine import Affine

from permeability.data import Join, Mask, join_sites

LEFT, TOP = 440_000.0, 4_470_000.0
CRS = "EPSG:25830"


def write_raster(path, bands, *, left=LEFT, top=TOP, pixel=0.5, crs=CRS, nodata=None, turn=0.0, **options):
    """Write (H, W) or (C, H, W) with its upper left corner at a place; returns the path."""
    data = bands[None] if bands.ndim == 2 else bands
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "dtype": data.dtype.name, "count": len(data), "nodata": nodata, "crs": crs}
    place = Affine.translation(left, top) @ Affine.rotation(turn) @ Affine.scale(pixel, -pixel)
    with rasterio.open(
        path, "w", **profile, height=data.shape[1], width=data.shape[2], transform=place, **options
    ) as file:
        file.write(data)
    return path


def patches(height, width, seed=0):
    """A green and grey picture (3, H, W), and 1 where it is green."""
    rng = np.random.default_rng(seed)
    cells = rng.random((height // 16 + 1, width // 16 + 1)) < 0.7
    green = np.kron(cells, np.ones((16, 16), bool))[:height, :width]
    colors = np.where(green, np.array([60, 120, 50])[:, None, None], np.array([150, 145, 140])[:, None, None])
    noisy = colors + rng.normal(0, 12, colors.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), green.astype(np.uint8)


def write_pair(root, name, part, number, size=(112, 128)):
    """A sheet, and its mask under another name."""
    image, mask = patches(*size, seed=number)
    left = LEFT + 1000 * number
    write_raster(root / "INSUMOS" / "ORTOFOTOS" / f"{name}.tif", image, left=left)
    write_raster(root / "DATA" / "OUTPUT" / "MASCARAS" / part / f"suelo{number}.tif", mask, left=left, nodata=255)


def join(photos, masks, **how):
    return join_sites(photos, [mask if isinstance(mask, Mask) else Mask(mask) for mask in masks], Join(**how))


def one(tmp_path, mask, *, image=None, how=None, photo_options=None, **options):
    """The only site of a sheet of 60 x 80 and a mask."""
    image = patches(60, 80)[0] if image is None else image
    photo = write_raster(tmp_path / "photo.tif", image, **(photo_options or {}))
    path = write_raster(tmp_path / "mask.tif", mask, **options)
    sites, problems, _ = join([photo], [path], **(how or {}))
    assert not problems, problems
    (site,) = sites
    return site, image
