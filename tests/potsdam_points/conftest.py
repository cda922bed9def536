import numpy as np
import pytest
import tifffile

from common.scenes.aerial import write_potsdam
from potsdam_points.labels import decode
from tests.commands import command_fixtures, training_fixtures

started, command, call = command_fixtures("potsdam_points")


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """Generated aerial patches, to be left as they are: 8 of 96 x 96."""
    folder = tmp_path_factory.mktemp("aerial") / "scene"
    write_potsdam(folder, count=8, seed=3, size=96)
    return folder


def write_blobs(folder, count=10, side=96, seed=0):
    """Patches that color alone solves: green discs (trees) and red squares (clutter) on light ground."""
    rng = np.random.default_rng(seed)
    for name in ("Images", "Labels"):
        (folder / name).mkdir(parents=True)
    y, x = np.mgrid[:side, :side]
    for number in range(count):
        classes = np.zeros((side, side), np.uint8)
        for _ in range(4):
            cy, cx = rng.integers(10, side - 10, 2)
            classes[(y - cy) ** 2 + (x - cx) ** 2 < 11**2] = 3
            cy, cx = rng.integers(10, side - 10, 2)
            classes[(abs(y - cy) < 8) & (abs(x - cx) < 8)] = 5
        colors = np.array([[190, 180, 170], [0] * 3, [0] * 3, [60, 120, 50], [0] * 3, [170, 70, 60]])[classes]
        image = np.clip(colors + rng.normal(0, 12, colors.shape), 0, 255).astype(np.uint8)
        classes[:2] = 255
        tifffile.imwrite(folder / "Images" / f"Image_{number}.tif", image, photometric="rgb")
        tifffile.imwrite(folder / "Labels" / f"Label_{number}.tif", decode(classes), photometric="rgb")
    return folder


@pytest.fixture(scope="session")
def blobs(tmp_path_factory):
    """Easy patches that a few seconds of training solve."""
    return write_blobs(tmp_path_factory.mktemp("blobs") / "patches")


SMALL = (
    "--arch", "unet_small", "--widths", "12", "16", "24", "32", "32", "--crop-size", "64", "--batch-size", "8",
    "--points", "60", "--val-last", "3", "--loss", "partial_ce+dice", "--gamma", "0", "--weight-power", "0.5",
    "--lr", "1e-2",
)  # fmt: skip

small, trained = training_fixtures(
    "blobs", SMALL, "--epochs", "4", "--samples-per-epoch", "128", "--ema", "0.9", "--color",
    "0.2", "--balance", "0.5", "--augment",
)  # fmt: skip
