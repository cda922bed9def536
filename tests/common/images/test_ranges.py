"""Values as 0-1, by a range that is known: given, stored in training, or the number type's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.images.ranges import ValueRanges, to_channels, to_numbers, to_pixels
from common.networks.normalize import to_unit

EVERYWHERE = np.ones((2, 3), bool)


def test_what_is_given_holds_for_all_types_and_what_is_stored_for_those_of_the_training():
    stored = {"range": [10, 2000], "range_types": ["uint16"]}
    assert [ValueRanges(None, stored).of(kind) for kind in ("uint16", "float32", "uint8")] == [(10, 2000)] * 2 + [None]
    assert ValueRanges((1, 2), stored).of("uint8") == ValueRanges((1, 2), stored).of("uint16") == (1, 2)
    of_bytes = ValueRanges(None, {"range": [10, 200], "range_types": ["uint8"]})
    assert of_bytes.of("uint8") == (10, 200) and of_bytes.of("uint16") is None
    assert ValueRanges(None, {"range": "minimum to maximum of each frame"}).of("uint16") is None
    own = ValueRanges(None, {"range": [0, 65535], "range_types": ["uint16"]})
    assert own.of("uint16") == (0, 65535) and own.of("float32") is ValueRanges().of("float32") is None


@pytest.mark.parametrize("limits", [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)])
def test_what_is_no_range_is_refused(limits):
    with pytest.raises(ValueError, match="LO < HI"):
        ValueRanges(limits)
    with pytest.raises(ValueError, match="LO < HI"):
        ValueRanges(None, {"range": limits})


@pytest.mark.parametrize("stored", [{"range": [1]}, {"range": 5}, {"range": ["a", 2]}, {"range": {"a": 1}},
                                    {"range": [0, 1], "range_types": ["nonsense"]}])  # fmt: skip
def test_a_checkpoint_with_another_thing_for_a_range_is_refused(stored):
    with pytest.raises(ValueError, match="the checkpoint's range of values"):
        ValueRanges(None, stored)


def test_valid_values_are_measured_over_all_images_by_type():
    ranges, rng = ValueRanges(), np.random.default_rng(0)
    images = [rng.integers(100, 4000, (3, 8, 9)).astype(np.uint16) for _ in range(3)]
    for image in images:
        valid = rng.random((8, 9)) < 0.8
        image[:, ~valid] = 65535
        ranges.see(image, valid)
    ranges.see(np.full((1, 2, 3), 0.25, np.float32), EVERYWHERE)
    every = np.concatenate([image[image != 65535] for image in images])
    described = "float32 0.25 to 0.25, read with the range 0 to 1; "
    assert ranges.describe() == f"{described}uint16 {every.min()} to {every.max()}, read with the range 0 to 65535"
    assert ranges.card() == {}  # of several types each has its own
    assert [w.split(" are read")[0] for w in ranges.warnings()] == [
        f"values {every.min()} to {every.max()}", "values 0.25 to 0.25",
    ]  # fmt: skip


def test_a_checkpoint_says_by_which_range_more_than_8_bits_were_read():
    plain, deep, given = ValueRanges(), ValueRanges(), ValueRanges((0, 100))
    for ranges, kind in ((plain, np.uint8), (deep, np.int16), (deep, np.uint8), (given, np.uint8)):
        ranges.see(np.ones((1, 2, 3), kind), EVERYWHERE)
    assert plain.card() == {}
    assert deep.card() == {"range": [0.0, 32767.0], "range_types": ["int16"]}
    assert given.card() == {"range": [0, 100], "range_types": ["uint8"]}


def test_values_mostly_outside_of_the_range_are_spoken_of():
    ranges = ValueRanges()
    ranges.see(np.array([[[0, 0.5, 1], [90, 91, 92]]], np.float32), EVERYWHERE)
    assert ranges.warnings() == []
    ranges.see(np.full((1, 2, 3), 100, np.float32), EVERYWHERE)
    (warning,) = ranges.warnings()
    assert "75% of them lie outside" in warning and "--input-range 0 100" in warning


def test_without_any_valid_pixel_there_is_nothing_to_say():
    ranges = ValueRanges()
    ranges.see(np.zeros((1, 2, 3), np.float32), ~EVERYWHERE)
    assert ranges.warnings() == [] and ranges.describe().startswith("float32 without any valid pixel")


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_8_bits_are_kept_as_they_are(bands):
    data = np.arange(bands * 6, dtype=np.uint8).reshape(bands, 2, 3) + 7
    valid = np.array([[True, True, False], [True, True, True]])
    pixels = to_pixels(data, valid)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.rint(to_channels(data, valid) * 255))
    stretched = to_pixels(data, valid, 3, (7, 107))
    np.testing.assert_array_equal(stretched, to_channels(data, valid, 3, (7, 107)))
    assert stretched.dtype == np.float32


def test_other_numbers_of_bands_are_refused_where_they_do_not_fit():
    assert to_pixels(np.zeros((5, 2, 3), np.uint8), EVERYWHERE, 4).shape == (4, 2, 3)
    with pytest.raises(ValueError, match="2 bands, the network reads 4"):
        to_pixels(np.zeros((2, 2, 3), np.uint8), EVERYWHERE, 4)


@settings(deadline=None, max_examples=80)
@given(
    dtype=st.sampled_from(["uint8", "uint16", "int16", "int32", "float32"]),
    value_range=st.sampled_from([None, (0.0, 200.0), (10.5, 90.0), (-3.0, 90.0), (100.0, 60000.0)]),
    bands=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_numbers_become_on_the_device_what_they_become_here(dtype, value_range, bands, channels, seed):
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 120 if dtype == "int16" else 250, (bands, 7, 9)).astype(dtype)
    data = data / np.float32(250) if dtype == "float32" else data
    valid = rng.random((7, 9)) > (seed % 3) * 0.3
    if channels > len(data) and channels != 3:
        return
    expected = to_channels(data, valid, channels, value_range)
    numbers = to_numbers(data, valid, channels, value_range)
    assert numbers.dtype == (dtype if dtype.startswith("uint") and (value_range or (0,))[0] >= 0 else np.float32)
    found = to_unit(torch.from_numpy(numbers)[None], value_range)
    np.testing.assert_array_equal(found[0].numpy(), expected)
