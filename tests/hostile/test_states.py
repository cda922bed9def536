"""Broken checkpoints, text files, vector files, data sets and flags: one line that names them, nothing started."""

import pytest

from tests.hostile import zoo, zoo_places, zoo_texts
from tests.hostile.cases_more import FLAGS, with_checkpoint, with_data, with_flags, with_text, with_vector
from tests.hostile.contract import naming_faults
from tests.hostile.fuzz import read
from tests.hostile.zoo import BAD, GOOD

pytestmark = pytest.mark.filterwarnings("ignore")  # makers of odd files make libraries complain


def check_read(bench, holds, specimens):
    """All files through the readers in one process: each bad one is refused in one line, no good one is."""
    verdict = read(bench, specimens)
    for one in specimens:
        unnamed = naming_faults(verdict.outcome, [one.name])
        if (one.expect == BAD and unnamed) or (one.expect == GOOD and not unnamed):
            verdict.faults.append(f"{one.expect} file: {one.name!r}: {unnamed}")
    holds(verdict)


def test_broken_checkpoints(bench, odd, holds):
    check_read(bench, holds, odd.checkpoints())


def test_odd_configurations(bench, holds):
    check_read(bench, holds, list(zoo_texts.configurations()))


def test_odd_vector_files(bench, odd, holds):
    check_read(bench, holds, list(zoo_texts.vectors(odd.port, odd.secret)))


WORST = ("card_threshold_3", "card_scale_1", "card_classes_1", "network_0", "weights_none", "code", "cut_5", "folder")
THROUGH = (
    *(("footprints.infer", name) for name in WORST),
    *((command, name) for command in ("footprints.evaluate", "footprints.train") for name in ("network_0", "code")),
    *(("common.checkpoint", name) for name in ("card_classes_0", "code", "pipe", "device")),
)


@pytest.mark.parametrize(("command", "name"), THROUGH)
def test_a_broken_checkpoint_through_a_command(bench, odd, holds, command, name):
    (one,) = [one for one in odd.checkpoints() if one.name == f"{name}.pt"]
    holds(with_checkpoint(bench, command, one))


@pytest.mark.parametrize("name", ["card_classes_0", "network_0", "code", "empty"])
def test_a_broken_checkpoint_through_export_and_video(bench, odd, holds, name):
    for task, command in (("rooftops", "rooftops.export"), ("hela_nuclei", "hela_nuclei.make_video")):
        (one,) = [one for one in odd.checkpoints(task) if one.name == f"{name}.pt"]
        holds(with_checkpoint(bench, command, one))


@pytest.mark.parametrize("name", ["laughs", "deep", "tag_python", "device", "latin", "unknown"])
def test_an_odd_configuration_starts_no_training(bench, holds, name):
    (one,) = [one for one in zoo_texts.configurations() if one.name == f"{name}.yaml"]
    holds(with_text(bench, "footprints.train", "--config", one))


@pytest.mark.parametrize("one", list(zoo_texts.class_lists())[::4], ids=lambda one: one.name)
def test_odd_lists_of_classes(bench, holds, one):
    holds(with_text(bench, "rooftops.evaluate", "--classes", one))


@pytest.mark.parametrize("one", list(zoo_texts.point_tables())[::2], ids=lambda one: one.name)
def test_odd_tables_of_points(bench, holds, one):
    holds(with_text(bench, "potsdam_points.train", "--points-file", one))


@pytest.mark.parametrize("command", ["permeability.make_masks", "footprints.crop"])
@pytest.mark.parametrize(
    "name", ["vrt.gpkg", "vrt_curl.gpkg", "beyond.geojson", "value_NaN.geojson", "nothing.gpkg", "device.gpkg"]
)
def test_an_odd_vector_file_through_a_command(bench, odd, holds, command, name):
    (one,) = [one for one in zoo_texts.vectors(odd.port, odd.secret) if one.name == name]
    holds(with_vector(bench, command, one))


@pytest.mark.parametrize("spoil", ["image", "label"])
@pytest.mark.parametrize("task", ["footprints", "rooftops", "hela_nuclei", "potsdam_points", "permeability"])
def test_evaluation_of_a_data_set_with_odd_files(bench, odd, holds, task, spoil):
    chosen = [*zoo.FORMATS[::4], *zoo.TIFFS[::2], *zoo_places.elsewhere(odd.secret, odd.port)[::10]]
    holds(with_data(bench, f"{task}.evaluate", chosen, spoil=spoil))


@pytest.mark.parametrize("task", ["footprints", "permeability"])
def test_training_without_odd_files(bench, odd, holds, task):
    chosen = [one for one in (*zoo.FORMATS[::4], *zoo.TIFFS[::2]) if one.expect == BAD]
    holds(with_data(bench, f"{task}.train", chosen, "--skip-bad", spoil="image"))


@pytest.mark.parametrize(
    ("command", "words"), FLAGS, ids=lambda part: " ".join(part) if isinstance(part, tuple) else part
)
def test_flags_that_cannot_be_right(bench, holds, command, words):
    holds(with_flags(bench, command, *words))
