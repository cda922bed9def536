"""Splitting data into train, validation and test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PARTS = ("train", "val", "test")


def split_ids(ids: Sequence[str], val_fraction: float, test_fraction: float, seed: int) -> dict[str, list[str]]:
    """Split ids at random; the same ids and seed give the same split in whatever order the ids come.

    A part with a fraction above 0 gets at least one id as long as training keeps one.

    Raises:
        ValueError: fewer than two ids, or duplicates.
    """
    names = sorted(ids)
    if len(set(names)) != len(names):
        raise ValueError("two samples have the same name; names must be unique to split the data")
    if len(names) < 2:
        raise ValueError(f"{len(names)} usable sample(s) found; training needs at least 2, one of them for validation")
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    val = max(1, round(val_fraction * len(names)))
    test = min(max(1, round(test_fraction * len(names))) if test_fraction > 0 else 0, len(names) - val - 1)
    return {"train": sorted(order[val + test :]), "val": sorted(order[:val]), "test": sorted(order[val : val + test])}
