"""Pictures and sessions for the tests of the labeling page."""

import time

import numpy as np
import rasterio
import torch
from affine import Affine

from common.networks.checkpoint import ModelCard
from common.networks.precision import Precision
from common.networks.unet_small import UNetSmall
from potsdam_points.labeling.learner import Learner
from potsdam_points.labeling.session import Session
from potsdam_points.labeling.store import PointStore
from potsdam_points.labeling.tiles import TileSource

CLASSES = ["dark", "bright"]
CPU = Precision(torch.device("cpu"), None)
SECONDS = 60


def wait_for(condition, what):
    """Poll until another process is so far."""
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {SECONDS} s"
        time.sleep(0.05)
    return found


def write_picture(path, data, **options):
    """A GeoTIFF of bands (C, H, W)."""
    options = {"count": len(data), "height": data.shape[1], "width": data.shape[2], "dtype": data.dtype} | options
    place = {"crs": "EPSG:25832", "transform": Affine(0.1, 0, 5e5, 0, -0.1, 5e6)}
    with rasterio.open(path, "w", driver="GTiff", **place, **options) as dataset:
        dataset.write(data)
    return path


def disc_picture(side=300):
    """A bright disc on dark ground, both noisy; and its truth."""
    rows, columns = np.indices((side, side))
    truth = ((rows - side / 2) ** 2 + (columns - side / 2) ** 2 < (side / 4) ** 2).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 12, (3, side, side))
    return np.clip(70 + 110 * truth + noise, 0, 255).astype(np.uint8), truth


def open_session(folder, data=None):
    """A session over one picture called ``disc``."""
    path = write_picture(folder / "disc.tif", disc_picture()[0] if data is None else data)
    sources = {"disc": TileSource(path, folder / "cache")}
    store = PointStore(folder / "points.csv", CLASSES, {"disc": (sources["disc"].height, sources["disc"].width)})
    torch.manual_seed(0)
    args = {"outputs": 2, "widths": [8, 16, 32], "stem": 1}
    card = ModelCard("potsdam_points", "unet_small", args, CLASSES, {0: (0, 0, 0), 1: (250, 200, 60)})
    learner = Learner(UNetSmall(**args), card, store, sources, folder / "run", CPU)
    return Session(sources, store, learner, [card.palette[0], card.palette[1]])
