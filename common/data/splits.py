"""Splitting data into train, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

PARTS = ("train", "val", "test")
Split = dict[str, list[str]]
"""Ids of each part."""


def count_parts(split: Split) -> str:
    """``train 60, val 10, test 10``."""
    return ", ".join(f"{part} {len(ids)}" for part, ids in split.items())


def split_ids(ids: Sequence[str], val_fraction: float, test_fraction: float, seed: int) -> dict[str, list[str]]:
    """Split ids at random; the same ids and seed give the same split in whatever order the ids come.

    Validation always gets at least one id, the test part too if its fraction is above 0, as long as training keeps one.

    Raises:
        ValueError: fewer than two ids, or duplicates.
    """
    names = sorted(ids)
    twice = next((name for name, following in pairwise(names) if name == following), None)
    if twice is not None:
        raise ValueError(f"two samples have the same name {twice}; names must be unique to split the data")
    if len(names) < 2:
        raise ValueError(f"{len(names)} usable sample(s) found; training needs at least 2, one of them for validation")
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    least = int(test_fraction > 0 and len(names) > 2)
    val = min(max(1, round(val_fraction * len(names))), len(names) - 1 - least)
    test = min(max(least, round(test_fraction * len(names))), len(names) - 1 - val)
    return {"train": sorted(order[val + test :]), "val": sorted(order[:val]), "test": sorted(order[val : val + test])}
