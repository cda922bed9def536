"""Small rasters with buildings whose place is known."""

import numpy as np
import rasterio
from affine import Affine

GRID = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)


def write_raster(path, array, grid=GRID, crs="EPSG:32633", **options):
    """Write (H, W) or (H, W, C) as a small GeoTIFF."""
    bands = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff", "count": len(bands), "height": bands.shape[1], "width": bands.shape[2],
        "dtype": bands.dtype, "transform": grid, "crs": crs, "tiled": True, "blockxsize": 64, "blockysize": 64,
    }  # fmt: skip
    with rasterio.open(path, "w", **{**profile, **options}) as file:
        file.write(bands)
    return path


def roofs(height, width, seed=0, count=None):
    """Red roofs on green ground, that color alone tells: image (H, W, 3) and mask (H, W) of 0 and 255."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(count or max(2, height * width // 1500)):
        row, col = rng.integers(0, height - 8), rng.integers(0, width - 8)
        mask[row : row + rng.integers(8, 20), col : col + rng.integers(8, 20)] = 255
    colors = np.where(mask[..., None] > 0, [170, 80, 60], [80, 120, 60]) + rng.normal(0, 15, (height, width, 3))
    return np.clip(colors, 0, 255).astype(np.uint8), mask
