from __future__ import annotations

import csv
import warnings

import numpy as np
import pytest
from PIL import Image

from common.images.display import COLORS
from common.report import plots

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
    assert list(axes) == ["Loss", "Scores", "Validation IoU by class", "Learning rate"]
    assert all(a.get_title("right") == "epoch kept: 2" for a in axes.values())
    lines = {
        tuple(np.atleast_1d(line.get_xdata())): line.get_ydata()
        for line in axes["Loss"].lines
        if len(line.get_xdata()) > 2
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


def test_training_scores_lie_beside_those_of_the_validation_in_their_colors():
    rows = [{**row, "train_miou": row["miou"] + 0.1, "train_accuracy": 0.9} for row in HISTORY]
    lines = [line for line in panels(rows)["Scores"].lines if len(line.get_xdata()) == len(rows) > 1]
    shown = {(line.get_color(), line.get_linestyle()): line.get_ydata()[0] for line in lines}
    assert shown[COLORS[0], "-"] == 0.5 and shown[COLORS[0], "--"] == 0.6, "mean IoU"
    assert shown[COLORS[1], "-"] == 0.7 and shown[COLORS[1], "--"] == 0.9, "pixel accuracy"


def test_epoch_ticks_are_whole_numbers():
    for history in (HISTORY[:1], HISTORY):
        assert all(tick == round(tick) for axes in panels(history).values() for tick in axes.get_xticks())


def test_the_best_epoch_is_the_one_whose_weights_were_kept():
    rows = [(0.5, 1), (0.7, "1"), (0.69, "1"), (0.6, 0)]  # as read from metrics.csv, too
    assert plots.best_epoch([{"miou": miou, "kept": kept} for miou, kept in rows]) == 2
    assert plots.best_epoch([{"miou": 0.7}, {"miou": 0.6}]) == 0


def test_best_epoch_falls_back_to_the_lowest_loss():
    assert plots.best_epoch([{"val_loss": 0.5}, {"val_loss": 0.2, "miou": None}, {"val_loss": ""}]) == 1
    assert plots.best_epoch([{"epoch": 1}]) is None


def test_a_class_keeps_its_color_when_another_has_no_values():
    history = [{"epoch": 1, "iou_a": None, "iou_b": 0.5}]
    assert panels(history)["Validation IoU by class"].lines[0].get_color() == COLORS[1]


def test_roc_is_written(tmp_path):
    plots.roc([(0.5, 0.9), (0.0, 0.0), (1.0, 1.0)], tmp_path / "roc.png", auc=0.8)
    assert size_of(tmp_path / "roc.png") == tuple(round(side * plots.DPI) for side in plots.PANEL_INCHES)


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
