"""Splits into train, validation and test."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.data.splits import PARTS, split_ids

fraction = st.floats(0, 0.99)


@example(count=3, val=0.0, test=0.1, seed=0)
@example(count=2, val=0.9, test=0.9, seed=0)
@example(count=3, val=0.9, test=0.1, seed=0)
@given(count=st.integers(2, 60), val=fraction, test=fraction, seed=st.integers(0, 9))
@settings(deadline=None)
def test_parts_are_disjoint_complete_and_never_empty_without_need(count, val, test, seed):
    ids = [f"tile{i}" for i in range(count)]
    split = split_ids(ids, val, test, seed)
    assert tuple(split) == PARTS
    assert sorted(name for part in split.values() for name in part) == sorted(ids)
    assert split["train"] and split["val"]
    assert bool(split["test"]) == (test > 0 and count > 2)


@given(st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_the_order_of_the_ids_does_not_matter(shuffle):
    ids = [f"tile{i}" for i in range(20)]
    mixed = list(ids)
    random.Random(shuffle).shuffle(mixed)
    assert split_ids(mixed, 0.2, 0.1, 7) == split_ids(ids, 0.2, 0.1, 7)


def test_fractions_and_seeds():
    ids = [f"{i:03d}" for i in range(100)]
    split = split_ids(ids, 0.05, 0.1, 0)
    assert [len(split[part]) for part in PARTS] == [85, 5, 10]
    assert split["val"] == sorted(split["val"]) and split != split_ids(ids, 0.05, 0.1, 1)
    assert split["val"] != ids[:5]


@pytest.mark.parametrize(("ids", "message"), [(["a"], "1 usable"), ([], "0 usable"), (["b", "a", "b"], "same name b")])
def test_what_cannot_be_split(ids, message):
    with pytest.raises(ValueError, match=message):
        split_ids(ids, 0.1, 0.1, 0)
