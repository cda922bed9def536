import pytest

from common.scenes.aerial import write_permeability
from tests.commands import command_fixtures, training_fixtures
from tests.permeability.sheets import write_pair

started, command, call = command_fixtures("permeability")


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """Generated sheets and masks in the source's layout, to be left as they are: 3, 1 and 1 of 128 x 160."""
    folder = tmp_path_factory.mktemp("aerial") / "scene"
    write_permeability(folder, sheets=(3, 1, 1), seed=3, height=128, width=160)
    return folder


@pytest.fixture(scope="session")
def easy(tmp_path_factory):
    """Sheets that color alone solves, to be left as they are: green is permeable."""
    folder = tmp_path_factory.mktemp("easy") / "data"
    for number, part in enumerate(("train", "train", "train", "val", "test")):
        write_pair(folder, f"sheet{number}", part, number)
    return folder


SMALL = (
    "--arch", "fpn", "--encoder", "resnet18", "--normalization", "measured", "--crop-size", "64", "--batch-size", "4",
    "--lr", "2e-3", "--loss", "ce+dice", "--scheduler", "constant", "--grad-accum", "1", "--label-smoothing", "0",
)  # fmt: skip

small, trained = training_fixtures(
    "easy", SMALL, "--epochs", "4", "--samples-per-epoch", "40", "--balance", "0.5", "--flips",
    "--rotate", "20", "--zoom", "0.2", "--color", "0.2",
)  # fmt: skip
