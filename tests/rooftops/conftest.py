import numpy as np
import pytest
import tifffile
from PIL import Image

from common.scenes.aerial import write_rooftops
from tests.commands import command_fixtures, training_fixtures

started, command, call = command_fixtures("rooftops")


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """Generated aerial pictures, to be left as they are: 8 of 96 x 96."""
    folder = tmp_path_factory.mktemp("aerial") / "scene"
    write_rooftops(folder, count=8, seed=3, size=96, gsd=0.3)
    return folder


def write_roofs(folder, count=12, size=(96, 112), seed=0):
    """Pictures that a few seconds of training solve: reddish rectangles on green ground; the last one has none."""
    rng = np.random.default_rng(seed)
    images, labels = folder / "images" / "images", folder / "label" / "label"
    for path in (images, labels):
        path.mkdir(parents=True)
    for number in range(count):
        roofs = np.zeros(size, bool)
        for _ in range(4 if number < count - 1 else 0):
            y, x = rng.integers(0, size[0] - 30), rng.integers(0, size[1] - 30)
            roofs[y : y + rng.integers(16, 30), x : x + rng.integers(16, 30)] = True
        colors = np.where(roofs[..., None], [180, 80, 70], [80, 130, 70]) + rng.normal(0, 12, (*size, 3))
        Image.fromarray(np.clip(colors, 0, 255).astype(np.uint8)).save(images / f"town{number // 3}_{number % 3}.png")
        label = np.where(roofs, 255, 0).astype(np.uint8)
        tifffile.imwrite(labels / f"town{number // 3}_{number % 3}_label.tif", label, photometric="minisblack")
    return folder


@pytest.fixture(scope="session")
def roofs(tmp_path_factory):
    return write_roofs(tmp_path_factory.mktemp("roofs") / "data")


SMALL = (
    "--encoder", "resnet18", "--crop-size", "64", "--batch-size", "6", "--lr", "1e-3", "--val-fraction", "0.25",
    "--test-fraction", "0.25", "--scheduler", "constant", "--dropout", "0.1", "--early-stopping", "0", "--amp", "off",
)  # fmt: skip

small, trained = training_fixtures(
    "roofs", SMALL, "--epochs", "2", "--samples-per-epoch", "48", "--augment", "--zoom", "0.2", "--color", "0.2",
)  # fmt: skip
