import pytest

from common.scenes.aerial import write_footprints
from tests.commands import command_fixtures
from tests.footprints.towns import roofs, write_raster

started, command, call = command_fixtures("footprints")


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """Generated crops with named parts, to be left as they are: 6, 2 and 2 of 96 x 96."""
    folder = tmp_path_factory.mktemp("aerial") / "scene"
    write_footprints(folder, counts=(6, 2, 2), seed=3, size=96)
    return folder


@pytest.fixture(scope="session")
def town(tmp_path_factory):
    """One georeferenced raster with its label, images/ and labels/: 300 x 420."""
    folder = tmp_path_factory.mktemp("town")
    image, mask = roofs(300, 420)
    write_raster(folder / "images" / "town.tif", image)
    write_raster(folder / "labels" / "town.tif", mask)
    return folder


SMALL = (
    "--arch", "unet_small", "--widths", "8", "16", "24", "--stem", "2", "--crop-size", "64", "--batch-size", "8",
    "--normalization", "aerial", "--lr", "1e-2", "--loss", "bce+dice",
)  # fmt: skip


@pytest.fixture(scope="session")
def small():
    """Flags of a training that takes seconds."""
    return SMALL


@pytest.fixture(scope="session")
def trained(town, tmp_path_factory, command):
    """A run folder, and the crops it was trained on: cut from the town with ``crop.py``."""
    folder = tmp_path_factory.mktemp("runs")
    cropped = command("crop", town, folder / "crops", "--size", "96", cwd=folder)
    assert cropped.code == 0, cropped.err
    result = command(
        "train", "--data-root", folder / "crops", *SMALL, "--epochs", "4", "--samples-per-epoch", "96", "--ema", "0.9",
        "--balance", "0.5", "--rotate", "180", "--zoom", "0.2", "--color", "0.3", "--output-dir", folder / "run",
        cwd=folder,
    )  # fmt: skip
    assert result.code == 0, result.err
    return folder / "run", folder / "crops", result
