"""Spoiled bytes, and commands that are killed: what chance does to them."""

import numpy as np
import pytest

from tests.hostile import kill
from tests.hostile.fuzz import Seeds, fuzz

pytestmark = pytest.mark.filterwarnings("ignore")  # makers of odd files make libraries complain

SPOILED = 300


def test_spoiled_bytes(bench, holds):
    seeds = Seeds.make(bench, bench.root / "seeds")
    holds(*fuzz(bench, seeds, SPOILED, seed=7))


@pytest.mark.parametrize("name", [name for name in kill.COMMANDS if name not in ("graph", "search")])
def test_a_killed_command_leaves_whole_files(bench, holds, name):
    moment = float(np.random.default_rng(len(name)).uniform(0.2, 2.0))
    holds(kill.killed(bench, name, moment))
