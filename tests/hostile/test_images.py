"""Odd images through inference: what is good is done, what is bad is named, nothing else changes."""

import pytest

from tests.hostile import zoo, zoo_places
from tests.hostile.cases import infer

pytestmark = pytest.mark.filterwarnings("ignore")  # makers of odd files make libraries complain

GROUPS = {"formats": zoo.FORMATS, "tiffs": zoo.TIFFS, "names": zoo.NAMES, "places": zoo_places.PLACES}


@pytest.mark.parametrize(("task", "group"), [*(("footprints", group) for group in GROUPS), ("hela_nuclei", "formats")])
def test_a_batch_of_odd_images(bench, holds, task, group):
    holds(infer(bench, task, GROUPS[group]))
