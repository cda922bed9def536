from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from common.images.windows import Window
from common.inference import tiling
from common.inference.tiling import Tiling, predict_windows
from common.inference.windows import BlendWeights, blend_profile, cheapest_tile
from common.networks.padding import pad_to_multiple


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost more than they bring on arrays this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def predict_array(image, predict, *, num_outputs, **options):
    return tiling.predict_array(image, predict, num_outputs, Tiling(**options))


def plan_windows(height, width, tile, overlap):
    return Tiling(tile, overlap, stride=1).windows((height, width))


sides = st.integers(1, 90)
tiles = st.integers(1, 48)
coarse_tiles = st.integers(12, 48)
overlaps = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9])
seeds = st.integers(0, 2**16)


def random_image(channels, height, width, seed=0):
    return np.random.default_rng(seed).random((channels, height, width), dtype=np.float32)


# Planning


@settings(deadline=None, max_examples=150)
@given(height=sides, width=sides, tile=tiles, overlap=overlaps)
def test_windows_cover_every_pixel_and_stay_inside(height, width, tile, overlap):
    windows = plan_windows(height, width, tile, overlap)
    cover = np.zeros((height, width), int)
    for window in windows:
        assert (window.height, window.width) == (min(tile, height), min(tile, width))
        assert window.row >= 0 and window.row + window.height <= height
        assert window.col >= 0 and window.col + window.width <= width
        cover[window.slices] += 1
    assert cover.min() >= 1
    assert len(set(windows)) == len(windows)
    assert windows == sorted(windows, key=lambda window: (window.row, window.col))


@settings(deadline=None, max_examples=150)
@given(size=st.integers(1, 5000), tile=st.integers(1, 700), overlap=overlaps)
def test_an_axis_has_the_fewest_windows_and_even_strides(size, tile, overlap):
    starts = [window.col for window in plan_windows(1, size, tile, overlap)]
    strides = [after - before for before, after in pairwise(starts)]
    stride = max(1, round(tile * (1 - overlap)))
    needed = 1
    while tile + (needed - 1) * stride < size:
        needed += 1
    assert len(starts) == needed
    assert all(1 <= step <= stride for step in strides)
    assert not strides or max(strides) - min(strides) <= max(1, stride // 2)


def test_windows_begin_where_a_network_with_strides_takes_the_same_pixels_together():
    for size, stride in ((4000, 256), (21817, 384), (700, 64), (1100, 128)):
        *starts, last = [window.col for window in plan_windows(1, size, 512, 1 - stride / 512)]
        assert last == size - 512 and all(start % 16 == 0 for start in starts), (size, starts)
        assert len(starts) < 2 or max(np.diff(starts)) - min(np.diff(starts)) <= 32


def test_windows_of_a_network_with_strides_agree_exactly_where_nothing_else_is_seen():
    """Blocks of 16 x 16 are averaged, as by a stack of strided layers: tiles give just what the whole image does."""
    image = random_image(3, 512, 832)

    def predict(images):
        return F.interpolate(F.avg_pool2d(images.mean(dim=1, keepdim=True), 16), scale_factor=16, mode="nearest")

    whole = predict(torch.from_numpy(image)[None])[0].numpy()
    tiled = predict_array(image, predict, num_outputs=1, tile=128, overlap=0.25, stride=16)
    np.testing.assert_allclose(tiled, whole, atol=1e-6)


def test_windows_of_a_known_case():
    windows = plan_windows(5, 10, 4, 0.5)
    assert [window.row for window in windows[::4]] == [0, 1]
    assert [window.col for window in windows[:4]] == [0, 2, 4, 6]
    assert windows[0] == Window(0, 0, 4, 4) and len(windows) == 8


def test_an_image_no_larger_than_a_tile_is_one_window():
    assert plan_windows(30, 40, 40, 0.5) == [Window(0, 0, 30, 40)]


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap", "message"),
    [
        (9, 9, 0, 0.5, "--tile-size.*got 0"),
        (9, 9, -5, 0.5, "--tile-size.*got -5"),
        (9, 9, 4, -0.1, "--overlap.*got -0.1"),
        (9, 9, 4, 0.95, "--overlap.*got 0.95"),
        (9, 9, 4, 1, "--overlap.*got 1"),
        (9, 9, 4, 2.5, "--overlap.*got 2.5"),
        (9, 9, 4, 4, "--overlap 4 .*0.9 of a tile, whose side is 4"),
        (9, 9, 4, float("nan"), "--overlap.*got nan"),
        (0, 9, 4, 0.5, "0 x 9"),
    ],
)
def test_bad_plans_are_refused_with_the_value_seen(height, width, tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        plan_windows(height, width, tile, overlap)
    if height:
        with pytest.raises(ValueError, match=message):
            predict_array(
                np.zeros((1, height, width), np.float32), lambda x: x, num_outputs=1, tile=tile, overlap=overlap
            )


def test_overlaps_are_shares_or_pixels():
    assert plan_windows(90, 200, 40, 10) == plan_windows(90, 200, 40, 0.25) != plan_windows(90, 200, 40, 20)
    assert plan_windows(90, 200, 40, 0) == plan_windows(90, 200, 40, 0.0)


@settings(deadline=None, max_examples=200)
@given(
    size=st.tuples(st.integers(1, 9000), st.integers(1, 30000)),
    shared=st.sampled_from([2, 16, 64, 128, 300]),
    most=st.sampled_from([1 << 18, 3 << 18, 1 << 21]),
)
def test_planned_tiles_cover_an_image_share_what_they_must_and_are_small_enough(size, shared, most):
    planned = Tiling(0, shared, most=most)
    windows = planned.windows(size)
    rows, cols = sorted({window.row for window in windows}), sorted({window.col for window in windows})
    height, width = windows[0].height, windows[0].width
    assert height * width <= max(most, (4 * shared + 64) ** 2) and len(windows) == len(rows) * len(cols)
    assert rows[0] == cols[0] == 0 and (rows[-1] + height, cols[-1] + width) == size
    for starts, side in ((rows, height), (cols, width)):
        assert all(before + side - after >= shared for before, after in pairwise(starts))
    square = Tiling(int(most**0.5) // 32 * 32, shared)
    if min(size) > most**0.5 > 4 * shared:
        assert planned.redundancy(size) <= 1.05 * square.redundancy(size)


def test_planned_tiles_of_known_cases():
    assert cheapest_tile((700, 1100), 64, 1 << 20) == (700, 1100), "an image that fits is one tile"
    assert cheapest_tile((9000, 1000), 64, 3 << 18)[1] == 1000, "strips of the whole width"
    assert cheapest_tile((1000, 9000), 64, 3 << 18)[0] == 1000
    height, width = cheapest_tile((15899, 21817), 64, 3 << 18)
    assert height % 32 == width % 32 == 0 and height <= width
    assert (
        1.1 < Tiling(0, 64, most=3 << 18).redundancy((15899, 21817)) < 1.2 < 1.7 < Tiling().redundancy((15899, 21817))
    )


# Blending


@settings(deadline=None, max_examples=60)
@given(height=sides, width=sides, tile=coarse_tiles, overlap=overlaps)
def test_parts_of_a_window_have_its_weights(height, width, tile, overlap):
    windows = plan_windows(height, width, tile, overlap)
    weights = BlendWeights(windows)
    for window in windows:
        whole = torch.zeros(window.height, window.width)
        for rows, cols, part in weights.parts(window):
            assert (whole[rows, cols] == 0).all(), "parts do not overlap"
            whole[rows, cols] = 1.0 if part is None else part
        torch.testing.assert_close(whole, weights(window), rtol=0, atol=0)


@pytest.mark.parametrize("length", [1, 2, 7, 64, 1024])
def test_profiles_are_positive_and_symmetric(length):
    profile = blend_profile(length, length // 2)
    assert profile.shape == (length,) and profile.min() > 0
    np.testing.assert_allclose(profile, profile[::-1], rtol=1e-9)


def test_the_ramp_leaves_the_rim_to_the_neighbor():
    inner = blend_profile(64, shared=32)
    assert (inner[:12] < 1e-5).all() and (inner[20:44] == 1).all()
    assert (np.diff(inner[12:20]) > 0).all()
    np.testing.assert_allclose(inner + np.roll(inner, 32), 1, atol=1e-4)  # its neighbors add up to one with it
    assert (blend_profile(64, shared=32, ends=(True, False))[:44] == 1).all()
    assert (blend_profile(64, shared=32, ends=(True, True)) == 1).all()


@settings(deadline=None, max_examples=60)
@given(height=sides, width=sides, tile=tiles, overlap=overlaps)
def test_weights_of_a_grid_sum_to_one_and_are_never_zero(height, width, tile, overlap):
    windows = plan_windows(height, width, tile, overlap)
    weights = BlendWeights(windows)
    total = np.zeros((height, width))
    for window in windows:
        part = weights(window).numpy()
        assert part.shape == (window.height, window.width) and part.min() > 0
        total[window.slices] += part
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


def test_half_a_grid_is_refused():
    with pytest.raises(ValueError, match="full grid"):
        BlendWeights(plan_windows(9, 9, 4, 0.5)[:-1])


# Padding


@settings(deadline=None, max_examples=60)
@given(height=st.integers(1, 40), width=st.integers(1, 40), multiple=st.sampled_from([1, 2, 8, 32]))
def test_padding_mirrors_where_it_can_and_repeats_the_edge_where_not(height, width, multiple):
    image = random_image(2, height, width)
    padded = pad_to_multiple(torch.from_numpy(image)[None], multiple)[0].numpy()
    expected = image
    for axis, size in ((1, height), (2, width)):
        missing = -size % multiple
        pad = [(0, missing if index == axis else 0) for index in range(3)]
        expected = np.pad(expected, pad, mode="reflect" if missing < size else "edge")
    np.testing.assert_array_equal(padded, expected)


def blur(x):
    """Box filter: the same for every symmetry of the square."""
    return F.avg_pool2d(x, 3, stride=1, padding=1)


# Whole prediction


@settings(deadline=None, max_examples=60)
@given(
    height=sides,
    width=sides,
    tile=coarse_tiles,
    overlap=overlaps,
    batch_size=st.integers(1, 5),
    stride=st.sampled_from([1, 8, 32]),
    seed=seeds,
)
def test_a_pointwise_predictor_is_reproduced_everywhere(height, width, tile, overlap, batch_size, stride, seed):
    image = random_image(3, height, width, seed)
    result = predict_array(
        image,
        lambda x: torch.stack([x.sum(1), x[:, 0] * x[:, 1]], 1),
        num_outputs=2,
        tile=tile,
        overlap=overlap,
        batch=batch_size,
        stride=stride,
    )
    assert result.shape == (2, height, width) and result.dtype == np.float32
    np.testing.assert_allclose(result, np.stack([image.sum(0), image[0] * image[1]]), atol=1e-5)


KERNEL = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 3, 5, 5)))


def positional(x):
    """A convolution that also sees where in its window a pixel lies, so that a misplaced window shows."""
    rows = torch.linspace(0, 1, x.shape[-2], dtype=x.dtype)[:, None]
    cols = torch.linspace(0, 2, x.shape[-1], dtype=x.dtype)[None, :]
    return F.conv2d(x, KERNEL.to(x.dtype), padding=2) * (1 + rows) + cols


def ramp(pixel, start, starts, length):
    """Weight of a pixel of a window by its distance from the nearest border that another window overlaps."""
    borders = [pixel + 0.5] * (start != starts[0]) + [length - pixel - 0.5] * (start != starts[-1])
    if not borders:
        return 1.0
    shared = min(before + length - after for before, after in pairwise(starts))
    eighths = 8 * min(borders) / max(shared, 1)
    if eighths <= 3:
        return 1e-6
    return 1.0 if eighths >= 5 else max(1e-6, 0.5 - 0.5 * np.cos(np.pi * (eighths - 3) / 2))


def reference(image, tile, overlap, stride):
    """All windows at once in float64: sum of weighted predictions over the sum of weights."""
    tile = int(np.ceil(tile / stride)) * stride
    height, width = image.shape[1:]
    windows = plan_windows(height, width, tile, overlap)
    starts = sorted({window.row for window in windows}), sorted({window.col for window in windows})

    def profile(start, starts, length):
        return np.array([ramp(pixel, start, starts, length) for pixel in range(length)])

    total, norm = np.zeros((2, height, width)), np.zeros((height, width))
    for window in windows:
        part = image[:, window.slices[0], window.slices[1]].astype(np.float64)
        for axis in (1, 2):
            size, missing = part.shape[axis], -part.shape[axis] % stride
            pad = [(0, missing if index == axis else 0) for index in range(3)]
            part = np.pad(part, pad, mode="reflect" if missing < size else "edge")
        output = positional(torch.from_numpy(part)[None])[0].numpy()[:, : window.height, : window.width]
        weight = np.outer(profile(window.row, starts[0], window.height), profile(window.col, starts[1], window.width))
        total[:, window.slices[0], window.slices[1]] += weight * output
        norm[window.slices] += weight
    return total / norm


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    tile=coarse_tiles,
    overlap=st.sampled_from([0.0, 0.1, 0.5, 0.75]),
    batch_size=st.integers(1, 5),
    stride=st.sampled_from([1, 4, 16]),
    seed=seeds,
)
def test_blending_equals_a_naive_float64_reference(height, width, tile, overlap, batch_size, stride, seed):
    image = random_image(3, height, width, seed)
    result = predict_array(
        image,
        positional,
        num_outputs=2,
        tile=tile,
        overlap=overlap,
        batch=batch_size,
        stride=stride,
    )
    np.testing.assert_allclose(result, reference(image, tile, overlap, stride), atol=2e-4)


@pytest.mark.parametrize("batch_size", [2, 3, 100])
def test_the_batch_size_does_not_change_the_result(batch_size):
    image = random_image(3, 70, 83)
    one, many = (
        predict_array(image, positional, num_outputs=2, tile=32, batch=size, stride=16) for size in (1, batch_size)
    )
    np.testing.assert_allclose(one, many, atol=1e-5)


def touched(size, starts, tile, reach):
    """Pixels within ``reach`` of a window border that is not the image's, where tiles cannot know the whole image."""
    near = np.zeros(size, bool)
    for start in starts:
        if start > 0:
            near[start : start + reach] = True
        if start + tile < size:
            near[start + tile - reach : start + tile] = True
    return near


@settings(deadline=None, max_examples=25)
@given(height=st.integers(32, 120), width=st.integers(32, 120), seed=seeds)
def test_tiles_differ_from_the_whole_image_only_near_window_borders(height, width, seed):
    image = random_image(1, height, width, seed)

    def network(x):  # receptive field 5 x 5, zero padding
        return F.avg_pool2d(F.avg_pool2d(x, 3, 1, 1), 3, 1, 1)

    whole = network(torch.from_numpy(image)[None])[0].numpy()
    tiled = predict_array(image, network, num_outputs=1, tile=32, overlap=0.5, stride=32)
    windows = plan_windows(height, width, 32, 0.5)
    rows = touched(height, {window.row for window in windows}, 32, 2)
    cols = touched(width, {window.col for window in windows}, 32, 2)
    np.testing.assert_allclose(tiled[0][~rows][:, ~cols], whole[0][~rows][:, ~cols], atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(20, 130),
    width=st.integers(20, 130),
    tile=st.integers(24, 48),
    overlap=st.sampled_from([0.25, 0.5, 0.75]),
    batch_size=st.integers(1, 5),
    seed=seeds,
)
def test_a_network_that_sees_less_than_the_overlap_shows_no_seam(height, width, tile, overlap, batch_size, seed):
    image = random_image(1, height, width, seed)
    shared = tile - round(tile * (1 - overlap))
    reach = int(shared * 3 / 8)  # receptive field of three quarters of the overlap

    def network(x):  # zero padding at the borders of tiles makes them differ there
        return F.avg_pool2d(x, 2 * reach + 1, 1, reach)

    whole = network(torch.from_numpy(image)[None])[0].numpy()
    tiled = predict_array(image, network, num_outputs=1, tile=tile, overlap=overlap, batch=batch_size, stride=1)
    np.testing.assert_allclose(tiled, whole, atol=1e-4)


def test_an_image_no_larger_than_the_tile_is_predicted_whole():
    shapes = []

    def network(x):
        shapes.append(tuple(x.shape))
        return x

    predict_array(random_image(3, 50, 70), network, num_outputs=3, tile=96, stride=32)
    assert shapes == [(1, 3, 64, 96)]


def test_inner_windows_of_an_odd_tile_size_see_no_padding():
    ramp = np.arange(128, dtype=np.float32)
    image = np.stack([np.tile(ramp, (128, 1)), np.tile(ramp[:, None], (1, 128))])

    def network(x):  # mirrored pixels would run backwards
        assert (x[:, 0].diff(dim=-1) == 1).all() and (x[:, 1].diff(dim=-2) == 1).all()
        return x

    predict_array(image, network, num_outputs=2, tile=50, overlap=0.25, stride=32)


def test_the_network_gets_float32_channels_last_batches_without_gradients():
    def network(x):
        assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
        assert torch.is_inference_mode_enabled() and len(x) <= 3
        return x

    image = torch.rand(3, 70, 70, dtype=torch.float64)
    result = predict_array(image, network, num_outputs=3, tile=32, batch=3)
    np.testing.assert_allclose(result, image.numpy(), atol=1e-6)
    assert not torch.is_inference_mode_enabled()


def test_inference_mode_does_not_leak_between_streamed_windows():
    image = torch.rand(1, 64, 64)
    windows = plan_windows(64, 64, 32, 0.0)
    for _ in predict_windows(lambda w: image[:, w.slices[0], w.slices[1]], windows, blur, Tiling(batch=2)):
        assert not torch.is_inference_mode_enabled()


def test_read_only_and_reversed_arrays_are_fine():
    image = random_image(2, 40, 40)
    view = image[:, ::-1, ::-1]
    view.flags.writeable = False
    np.testing.assert_allclose(predict_array(view, lambda x: x, num_outputs=2, tile=32), view, atol=1e-6)


def test_amp_runs_the_network_in_low_precision_and_returns_float32():
    conv = torch.nn.Conv2d(1, 1, 3, padding=1)
    seen = []

    def network(x):
        output = conv(x)
        seen.append(output.dtype)
        return output

    result = predict_array(random_image(1, 32, 32), network, num_outputs=1, tile=32, amp_dtype=torch.bfloat16)
    assert seen == [torch.bfloat16] and result.dtype == np.float32


# Memory and bad input


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA ran out"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_out_of_memory_halves_the_batch_for_good(error):
    sizes = []

    def network(x):
        sizes.append(len(x))
        if len(x) > 2:
            raise error
        return x

    image = random_image(1, 96, 160)  # 15 windows
    result = predict_array(image, network, num_outputs=1, tile=32, overlap=0.0, batch=10)
    np.testing.assert_allclose(result, image, atol=1e-6)
    assert sizes == [5, 2, 2, 1, 2, 2, 1, 2, 2, 1]


def test_out_of_memory_with_one_tile_names_the_flag():
    def network(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ValueError, match="out of memory on cpu with one tile of 32 x 32 px; lower --tile-size"):
        predict_array(random_image(1, 64, 64), network, num_outputs=1, tile=32, batch=4)


def test_other_errors_of_the_network_are_not_swallowed():
    def network(x):
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        predict_array(random_image(1, 64, 64), network, num_outputs=1, tile=32)


@pytest.mark.parametrize("nan_in", ["image", "network"])
def test_nan_is_never_passed_on_silently(nan_in):
    image = random_image(1, 40, 40)
    if nan_in == "image":
        image[0, 3, 3] = np.nan
    with pytest.raises(ValueError, match="fill its nodata" if nan_in == "image" else "--amp off"):
        predict_array(
            image, (lambda x: x) if nan_in == "image" else (lambda x: torch.log(x - 2)), num_outputs=1, tile=32
        )


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 9, 9), np.uint8), "normalized float image.*uint8"),
        (np.zeros((9, 9), np.float32), r"\(C, H, W\).*\(9, 9\)"),
        (torch.zeros(1, 3, 9, 9), r"\(1, 3, 9, 9\)"),
    ],
)
def test_images_of_another_kind_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        predict_array(image, lambda x: x, num_outputs=3, tile=8)


def test_outputs_of_another_shape_are_refused():
    image = random_image(3, 32, 32)
    with pytest.raises(ValueError, match="3 output channels, expected 2"):
        predict_array(image, lambda x: x, num_outputs=2, tile=32)
    with pytest.raises(ValueError, match=r"\(16, 16\) outputs for \(32, 32\) pixels"):
        predict_array(image, lambda x: x[..., ::2, ::2], num_outputs=3, tile=32)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        predict_array(image, lambda x: x, num_outputs=3, tile=32, batch=0)
