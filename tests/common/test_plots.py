from __future__ import annotations

import csv
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from common import plots

PALETTE = {0: (0, 0, 0), 1: (200, 100, 50)}
HISTORY = [
    {"epoch": 1, "lr": 1e-3, "train_loss": 0.9, "val_loss": 0.8, "pixel_accuracy": 0.7, "miou": 0.5, "iou_sky": 0.5},
    {"epoch": 2, "lr": 1e-3, "train_loss": 0.5, "val_loss": 0.4, "pixel_accuracy": 0.9, "miou": 0.8, "iou_sky": 0.8},
    {"epoch": 3, "lr": 1e-4, "train_loss": 0.4, "val_loss": 0.3, "pixel_accuracy": 0.8, "miou": 0.7, "iou_sky": None},
]


def size_of(path):
    with Image.open(path) as picture:
        picture.load()
        return picture.size


def panels(history):
    return {title: figure.axes[0] for title, figure in plots.curve_figures(history)}


def test_stretch_keeps_8_bit_values_and_takes_the_first_three_channels():
    image = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3)
    np.testing.assert_array_equal(plots.stretch(image), image[:3].transpose(1, 2, 0))


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (2, 5, 7)])
def test_stretch_shows_few_channels_as_grey(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    first = image if image.ndim == 2 else image[0]
    for channel in range(3):
        np.testing.assert_array_equal(plots.stretch(image)[..., channel], first)


def test_stretch_maps_the_percentiles_of_all_channels_together():
    image = np.random.default_rng(0).normal(1000, 100, (3, 40, 40)) + np.array([0, 50, 300]).reshape(3, 1, 1)
    low, high = np.percentile(image, (2, 98))
    expected = np.rint(255 * np.clip((image - low) / (high - low), 0, 1)).transpose(1, 2, 0)
    assert np.abs(plots.stretch(image.astype(np.float32)) - expected).max() <= 1


def test_stretch_falls_back_to_the_extremes_for_a_few_bright_spots():
    frame = np.zeros((100, 100), np.uint16)
    frame[3, 4] = 40_000
    shown = plots.stretch(frame)
    assert shown[3, 4].tolist() == [255, 255, 255]
    assert shown.sum() == 3 * 255


def test_stretch_shows_non_finite_pixels_black():
    image = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    image[10, 10:13] = np.nan, np.inf, -np.inf
    shown = plots.stretch(image)
    assert not shown[10, 10:13].any()
    assert shown[10, 13].all()


@settings(deadline=None, max_examples=40)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)), elements=st.floats(width=32))
)
def test_stretch_takes_any_values(image):
    shown = plots.stretch(image)
    assert shown.shape == (*image.shape[1:], 3)
    assert shown.dtype == np.uint8
    bad = ~np.isfinite(image[:3] if len(image) >= 3 else image[:1])
    assert not shown.transpose(2, 0, 1)[: len(bad)][bad & np.isnan(image[: len(bad)])].any()


@pytest.mark.parametrize("shape", [(4,), (0, 4, 4), (1, 1, 4, 4)])
def test_stretch_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="shape"):
        plots.stretch(np.zeros(shape))


def test_colorize_is_exact():
    painted = plots.colorize(np.array([[0, 1], [1, 0]], np.uint8), PALETTE)
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[[0, 0, 0], [200, 100, 50]], [[200, 100, 50], [0, 0, 0]]]


def test_colorize_hatches_ignored_pixels_in_dark_grey():
    mask = np.full((16, 16), 255, np.uint8)
    mask[0, 0] = 1
    painted = plots.colorize(mask, PALETTE)
    assert painted[0, 0].tolist() == [200, 100, 50]
    assert np.unique(painted[mask == 255]).tolist() == [56, 76]
    assert (painted[0, 1:8, 0] == [76, 56, 56, 56, 56, 56, 56]).all()
    assert plots.colorize(mask, {**PALETTE, 255: (1, 2, 3)})[5, 5].tolist() == [1, 2, 3]


def test_colorize_names_a_value_without_color():
    with pytest.raises(ValueError, match=r"value 7, the palette knows \[0, 1\]"):
        plots.colorize(np.array([[0, 7]], np.uint8), PALETTE)


@pytest.mark.parametrize("mask", [np.zeros((2, 2)), np.full((2, 2), 300), np.full((2, 2), -1), np.zeros(4, np.uint8)])
def test_class_maps_are_whole_numbers_of_one_byte(mask):
    with pytest.raises(ValueError, match="class map"):
        plots.colorize(mask, PALETTE)


def test_overlay_tints_inside_and_draws_the_boundary_solid():
    image = np.full((5, 5, 3), 100, np.uint8)
    mask = np.zeros((5, 5), np.uint8)
    mask[1:4, 1:4] = 1
    shown = plots.overlay(image, mask, {1: (200, 100, 50)}, alpha=0.5)
    assert shown[2, 2].tolist() == [150, 100, 75]
    ring = mask.astype(bool)
    ring[2, 2] = False
    assert (shown[ring] == [200, 100, 50]).all()
    assert (shown[mask == 0] == 100).all()
    assert (image == 100).all()


def test_overlay_leaves_ignored_pixels_and_can_go_without_contours():
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    mask = np.random.default_rng(1).choice([0, 1, 255], (6, 8)).astype(np.uint8)
    shown = plots.overlay(image, mask, PALETTE, alpha=0.3, contours=False)
    colors = np.array([PALETTE[0], PALETTE[1]])[np.minimum(mask, 1)]
    expected = np.where((mask == 255)[..., None], image, np.rint(0.7 * image + 0.3 * colors))
    np.testing.assert_array_equal(shown, expected)


def test_overlay_draws_wider_boundaries_on_large_images():
    mask = np.zeros((2000, 2000), np.uint8)
    mask[:, 1000:] = 1
    shown = plots.overlay(np.zeros((2000, 2000, 3), np.uint8), mask, {1: (255, 255, 255)}, alpha=0.0)
    assert (shown[..., 0] == 255).sum(axis=1).tolist() == [2] * 2000


def test_overlay_refuses_another_size():
    with pytest.raises(ValueError, match="same pixels"):
        plots.overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.uint8), PALETTE)


def test_strip_joins_pictures_with_a_grey_bar():
    left, right = np.full((3, 2, 3), 10, np.uint8), np.full((3, 4, 3), 20, np.uint8)
    assert plots.strip([left, right], gap=1)[1, :, 0].tolist() == [10, 10, 128, 20, 20, 20, 20]


def test_predictions_show_every_column_in_its_colors(tmp_path):
    rng = np.random.default_rng(0)
    truth = np.zeros((40, 60), np.uint8)
    truth[:, 30:] = 1
    points = np.where(rng.random((40, 60)) < 0.2, truth, 255).astype(np.uint8)
    image = rng.integers(0, 65_535, (1, 40, 60)).astype(np.uint16)
    path = tmp_path / "new" / "predictions.png"
    palette = {0: (10, 20, 30), 1: (250, 130, 40)}
    plots.predictions([(image, points, truth, 1 - truth)] * 2, path, palette, "abcd", ["ground $x$ $y$", "_roof"])
    width, height = size_of(path)
    assert width == pytest.approx(plots.DPI * (4 * 2.8 + 5 * 0.08), abs=2)
    assert height > 2 * plots.DPI * 2.8 * 40 / 60
    pixels = np.asarray(Image.open(path).convert("RGB"))
    row = round(plots.DPI * (0.08 + 0.32 + 2.8 / 3))
    at = [
        pixels[row, round(plots.DPI * (0.08 + column * 2.88 + inch))].tolist()
        for column in (2, 3)
        for inch in (0.7, 2.1)
    ]
    assert at == [[10, 20, 30], [250, 130, 40], [250, 130, 40], [10, 20, 30]]
    assert list(path.parent.iterdir()) == [path]


def test_grid_repeats_no_title_and_refuses_nothing():
    picture = np.zeros((4, 4, 3), np.uint8)
    figure = plots.grid_figure(
        [[("input", picture), ("a$b$c_" * 9, picture)], [("input", picture), ("other", picture)]]
    )
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "input" and titles[2:] == ["", "other"]
    assert len(titles[1]) == 34
    with pytest.raises(ValueError, match="no pictures"):
        plots.grid_figure([])


def test_curves_have_four_panels_and_mark_the_best_epoch(tmp_path):
    plots.curves(HISTORY, tmp_path / "curves.png")
    assert size_of(tmp_path / "curves.png") == tuple(round(2 * side * plots.DPI) for side in plots.PANEL_INCHES)
    assert plots.best_epoch(HISTORY) == 1
    axes = panels(HISTORY)
    assert list(axes) == ["Loss", "Validation scores", "Validation IoU by class", "Learning rate"]
    assert all(a.get_title("right") == "best epoch: 2" for a in axes.values())
    lines = {
        tuple(np.atleast_1d(line.get_xdata())): line.get_ydata()
        for line in axes["Loss"].lines
        if len(line.get_xdata()) == 3
    }
    assert lines[1, 2, 3].tolist() == [0.4 + 0.4, 0.4, 0.3]  # the last of both lines is the validation loss
    assert [text.get_text() for text in axes["Loss"].get_legend().get_texts()] == ["training", "validation"]


def test_curves_read_the_text_of_metrics_csv(tmp_path):
    path = tmp_path / "metrics.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(HISTORY[0]))
        writer.writeheader()
        writer.writerows(HISTORY)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    line = panels(rows)["Validation IoU by class"].lines[1]
    np.testing.assert_array_equal(line.get_ydata(), [0.5, 0.8, np.nan])


@pytest.mark.parametrize(
    "history",
    [
        HISTORY[:1],
        [{"epoch": 1, "lr": 0.1, "train_loss": 0.3, "val_loss": None, "miou": None, "iou_a": None}],
        [{"epoch": 1}],
        [{"epoch": e, "lr": 10.0**-e, "train_loss": float("nan"), "val_loss": 100.0**-e} for e in range(1, 40)],
        [
            {"epoch": e, "lr": 0.0, "miou": None if e % 2 else 0.0, **{f"iou__c$x$_{c}": 1.0 for c in range(9)}}
            for e in range(40)
        ],
        [],
    ],
)
def test_curves_take_short_long_and_empty_histories(tmp_path, history):
    plots.curves(history, tmp_path / "curves.png")
    assert size_of(tmp_path / "curves.png")[0] == round(2 * plots.PANEL_INCHES[0] * plots.DPI)


def test_panels_without_values_are_left_out():
    assert list(panels([{"epoch": 1, "lr": 0.1, "val_loss": None, "miou": None}])) == ["Learning rate"]


def test_epoch_ticks_are_whole_numbers():
    for history in (HISTORY[:1], HISTORY):
        assert all(tick == round(tick) for axes in panels(history).values() for tick in axes.get_xticks())


def test_best_epoch_falls_back_to_the_lowest_loss():
    assert plots.best_epoch([{"val_loss": 0.5}, {"val_loss": 0.2, "miou": None}, {"val_loss": ""}]) == 1
    assert plots.best_epoch([{"epoch": 1}]) is None


def test_a_class_keeps_its_color_when_another_has_no_values():
    history = [{"epoch": 1, "iou_a": None, "iou_b": 0.5}]
    assert panels(history)["Validation IoU by class"].lines[0].get_color() == plots.COLORS[1]


def test_roc_reliability_and_confusion_are_written(tmp_path):
    plots.roc([(0.5, 0.9), (0.0, 0.0), (1.0, 1.0)], tmp_path / "roc.png", auc=0.8)
    bins = [(0.1, 0.2, 30), (float("nan"), float("nan"), 0), (0.9, 0.8, 10)]
    plots.reliability(bins, tmp_path / "reliability.png")
    plots.confusion([[5, 1], [0, 0]], ["sky & <sea>", "a very long name of $a$ $class$"], tmp_path / "confusion.png")
    assert size_of(tmp_path / "roc.png") == tuple(round(side * plots.DPI) for side in plots.PANEL_INCHES)
    assert size_of(tmp_path / "reliability.png")[0] == round(plots.PANEL_INCHES[0] * plots.DPI)
    assert size_of(tmp_path / "confusion.png") == (round(plots.DPI * 4.1), round(plots.DPI * 3.0))
    assert len(list(tmp_path.iterdir())) == 3


def test_bins_without_pixels_are_not_drawn():
    line = plots.reliability_figure([(0.1, 0.2, 30), (0.5, 0.0, 0), (0.9, 0.8, 10)]).axes[0].lines[-1]
    assert line.get_xdata().tolist() == [0.1, 0.9]


def test_names_are_taken_literally():
    history = [{"epoch": 1, "iou__$x$_a": 0.5, "iou_b": 0.5}]
    texts = panels(history)["Validation IoU by class"].get_legend().get_texts()
    assert [text.get_text() for text in texts] == ["$x$_a", "b"]
    assert not any(text.get_parse_math() for text in texts)


def test_roc_points_are_drawn_in_order():
    curve = plots.roc_figure([(1.0, 1.0), (0.0, 0.0), (0.5, 0.9)]).axes[0].lines[-1]
    assert curve.get_xdata().tolist() == [0, 0.5, 1]
    assert curve.get_ydata().tolist() == [0, 0.9, 1]


def test_calibration_error_weighs_bins_by_pixels():
    assert plots.calibration_error([(0.1, 0.2, 30), (0.9, 0.7, 10), (float("nan"), 0.0, 0)]) == pytest.approx(
        (3 + 2) / 40
    )
    assert plots.calibration_error([]) == 0


def test_confusion_refuses_wrong_names(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(2, 2\) but there are 1"):
        plots.confusion([[1, 2], [3, 4]], ["only"], tmp_path / "c.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (9999, "9999"),
        (12_345, "12.3 k"),
        (999_499, "999 k"),
        (999_950, "1 M"),
        (4_560_000, "4.56 M"),
        (2 * 10**9, "2 G"),
    ],
)
def test_compact_counts(count, text):
    assert plots.compact(count) == text


def test_letters_that_the_font_lacks_raise_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.grid([[("\u6f22\u5b57", np.zeros((4, 4, 3), np.uint8))]], tmp_path / "grid.png")
    assert size_of(tmp_path / "grid.png")[0] > 300
