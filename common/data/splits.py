"""Splitting data into train, validation and test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from common.data.inputs import natural_key

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


def split_groups(groups: Mapping[str, Sequence[str]], val_fraction: float, test_fraction: float, seed: int) -> Split:
    """Split at random by groups, whose ids stay together, in natural order.

    Args:
        groups: ids by the name of their group.
        val_fraction: share of the groups for validation.
        test_fraction: share of the groups for the test.
        seed: of the draw.

    Raises:
        ValueError: see `split_ids`.
    """
    parts = split_ids(list(groups), val_fraction, test_fraction, seed)
    return {part: sorted((i for name in some for i in groups[name]), key=natural_key) for part, some in parts.items()}


def split_by_folders(ids: Sequence[str], draw: Callable[[Sequence[str], bool], tuple[Split, str]]) -> tuple[Split, str]:
    """Split as the folders say (ids such as ``train/a``), else at random; a missing ``val`` is split from ``train``.

    Args:
        ids: all of them.
        draw: splits ids at random, with a test part or without, and says how.

    Returns:
        The ids of train, val and test, and a phrase that says how they were chosen.

    Raises:
        ValueError: the folders leave nothing to train on.
    """
    named = {part: [name for name in ids if name.startswith(f"{part}/")] for part in PARTS}
    if not any(named.values()):
        return draw(ids, True)
    if not named["train"]:
        raise ValueError("there is nothing usable in the folder train/, which training needs")
    if named["val"]:
        return named, "as the folders say"
    parts, how = draw(named["train"], False)
    return {**parts, "test": named["test"]}, f"val split from train, {how}"
