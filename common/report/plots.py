"""Pictures of images, class maps and training runs.

Figures are built from 8-bit RGB pictures (see images/display.py) or from numbers. They use matplotlib's object
interface only, so that nothing here depends on a display or on global state; every file is written atomically.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from common.files import atomic_path
from common.images.display import COLORS, RGB, Palette, Pixels, colorize, stretch

INK = "#1f2933"
"""Color of text and axes; the report replaces it by the page's own."""
GRID = "#d3d9df"
"""Color of grid lines; the report replaces it too."""
DASHES = ("-", "--", ":", "-.")
DPI = 120
PANEL_INCHES = (5.0, 3.4)

History = Sequence[Mapping[str, object]]


# Grids of pictures ----------------------------------------------------------------------------------------------------


def predictions(
    samples: Sequence[Sequence[NDArray[Any]]],
    path: Path,
    palette: Palette,
    titles: Sequence[str] = ("input", "truth", "prediction"),
    class_names: Sequence[str] = (),
) -> None:
    """Draw rows of input | truth | prediction (or other columns) with a legend of the classes.

    Args:
        samples: per row the input image as ``stretch`` takes it, then class maps (H, W). An array (H, W, 3) uint8 is
            shown as it is.
        path: the picture to write.
        palette: RGB by class index.
        titles: one per column.
        class_names: names by class index, for the legend.
    """
    rows = [
        [
            (title, _cell(array, column, palette))
            for column, (title, array) in enumerate(zip(titles, sample, strict=True))
        ]
        for sample in samples
    ]
    legend = {name: palette[index] for index, name in enumerate(class_names) if index in palette}
    grid(rows, path, legend)


def _cell(array: NDArray[Any], column: int, palette: Palette) -> Pixels:
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[-1] == 3 and array.dtype == np.uint8:
        return array
    return stretch(array) if column == 0 or array.ndim == 3 else colorize(array, palette)


def grid(rows: Sequence[Sequence[tuple[str, Pixels]]], path: Path, legend: Mapping[str, RGB] | None = None) -> None:
    """Write rows of titled (H, W, 3) uint8 pictures, and below them a legend, as one picture."""
    save(grid_figure(rows, legend), path)


def grid_figure(rows: Sequence[Sequence[tuple[str, Pixels]]], legend: Mapping[str, RGB] | None = None) -> Figure:
    """Arrange titled (H, W, 3) uint8 pictures in rows; a title equal to the one above it is not repeated.

    Raises:
        ValueError: there is nothing to show.
    """
    if not rows or not any(rows):
        raise ValueError("there are no pictures to put into the grid; pass at least one row")
    names = [_plain(name) for name in legend or {}]
    columns, gap, header, side = max(map(len, rows)), 0.08, 0.32, 2.8
    heights = [max(side * min(image.shape[0] / image.shape[1], 2.5) for _, image in row) for row in rows]
    shown = [any(_is_new(rows, r, c) for c in range(len(row))) for r, row in enumerate(rows)]
    width = columns * side + (columns + 1) * gap
    per_line = max(1, int(width / (0.6 + 0.11 * max(map(len, names), default=1))))
    footer = 0.1 + 0.28 * -(-len(names) // per_line) if names else 0.0
    height = sum(heights) + sum(header if title else 0 for title in shown) + (len(rows) + 1) * gap + footer
    figure = _figure((width, height), arranged=False)
    top = height - gap
    for r, row in enumerate(rows):
        top -= (header if shown[r] else 0) + heights[r]
        for c, (title, image) in enumerate(row):
            axes = figure.add_axes(((gap + c * (side + gap)) / width, top / height, side / width, heights[r] / height))
            axes.set_axis_off()
            axes.imshow(image, aspect="equal")
            if _is_new(rows, r, c):
                axes.set_title(_plain(title, 34), fontsize=11, color=INK, pad=5, parse_math=False)
        top -= gap
    if names and legend:
        patches = [Patch(facecolor=(r / 255, g / 255, b / 255), edgecolor="#808080") for r, g, b in legend.values()]
        lines = -(-len(names) // per_line)
        style: dict[str, Any] = {"loc": "lower center", "frameon": False, "fontsize": 10, "labelcolor": INK}
        _literal(figure.legend(patches, names, ncols=-(-len(names) // lines), **style).get_texts())
    return figure


def _is_new(rows: Sequence[Sequence[tuple[str, Pixels]]], row: int, column: int) -> bool:
    title = rows[row][column][0]
    above = rows[row - 1][column][0] if row and column < len(rows[row - 1]) else None
    return bool(title) and title != above


# Training curves ------------------------------------------------------------------------------------------------------


def curves(history: History, path: Path, colors: Mapping[str, RGB] | None = None) -> None:
    """Draw losses, IoU and accuracy, IoU per class and learning rate against the epoch.

    Args:
        history: the rows of ``metrics.csv``: epoch, lr, train_loss, val_loss, miou, train_miou, f1, iou_<class> ...
            Values may be numbers, their text, empty or None; whatever is not a finite number leaves a gap.
        path: the picture to write.
        colors: of classes by name, as their maps are painted; those too pale for white paper are darkened.
    """
    figure = _figure((2 * PANEL_INCHES[0], 2 * PANEL_INCHES[1]))
    for axes, (title, series) in zip(np.ravel(figure.subplots(2, 2)), _panels(history), strict=True):
        _draw_curves(axes, title, series, history, colors or {})
    save(figure, path)


def curve_figures(history: History, colors: Mapping[str, RGB] | None = None) -> list[tuple[str, Figure]]:
    """One titled figure for each panel of ``curves`` that has values."""
    figures = []
    for title, series in _panels(history):
        if any(np.isfinite(values).any() for values in series.values()):
            figure = _figure(PANEL_INCHES)
            _draw_curves(figure.subplots(), title, series, history, colors or {})
            figures.append((title, figure))
    return figures


def best_epoch(history: History) -> int | None:
    """Position in ``history`` of the epoch that was kept, else of the best.

    Without a column ``kept`` it is the (first) highest ``miou``, else the lowest ``val_loss``; None without any.
    """
    kept, miou, loss = (_column(history, name) for name in ("kept", "miou", "val_loss"))
    if (kept == 1).any():
        return int(np.flatnonzero(kept == 1)[-1])
    if np.isfinite(miou).any():
        return int(np.nanargmax(miou))
    return int(np.nanargmin(loss)) if np.isfinite(loss).any() else None


def _panels(history: History) -> list[tuple[str, dict[str, NDArray[np.float64]]]]:
    classes = list(dict.fromkeys(key for row in history for key in row if key.startswith("iou_")))
    columns = {
        "Loss": {"training": "train_loss", "validation": "val_loss"},
        "Scores": {
            "mean IoU": "miou",
            "pixel accuracy": "pixel_accuracy",
            "F1": "f1",
            "mean IoU, training": "train_miou",
            "accuracy, training": "train_accuracy",
        },
        "Validation IoU by class": {key.removeprefix("iou_"): key for key in classes},
        "Learning rate": {"learning rate": "lr"},
    }
    return [(title, {label: _column(history, key) for label, key in keys.items()}) for title, keys in columns.items()]


def _draw_curves(
    axes: Axes, title: str, series: Mapping[str, NDArray[np.float64]], history: History, colors: Mapping[str, RGB]
) -> None:
    epochs = _column(history, "epoch")
    epochs = np.where(np.isfinite(epochs), epochs, np.arange(1, len(history) + 1))
    lines = {label: values for label, values in series.items() if np.isfinite(values).any()}
    _decorate(axes, title, "epoch")
    if not lines:
        axes.text(0.5, 0.5, "no values", ha="center", va="center", color=INK, transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    best = best_epoch(history)
    if best is not None and len(history) > 1:
        axes.axvline(epochs[best], color=INK, linewidth=1, linestyle=(0, (2, 3)))
    if best is not None:
        axes.set_title(f"epoch kept: {epochs[best]:g}", loc="right", fontsize=10, color=INK)
    handles = []
    for position, (label, values) in enumerate(series.items()):
        if label not in lines:
            continue  # a class never seen keeps its place, so that the others keep their colors from figure to figure
        color, dash = COLORS[position % len(COLORS)], DASHES[position // len(COLORS) % len(DASHES)]
        if label.endswith(", training"):  # the colors of the same scores in validation
            color, dash = COLORS[position - 3], "--"
        if "by class" in title and label in colors:
            color, dash = _on_white(colors[label]), "-"
        handles += axes.plot(epochs, values, color=color, linestyle=dash, linewidth=1.8, **_markers(values))
        if best is not None:
            axes.plot(
                epochs[best], values[best], "o", color=color, markersize=7, markeredgecolor=INK, markeredgewidth=1
            )
    _scale(axes, np.concatenate(list(lines.values())), bounded="IoU" in title or "Scores" in title)
    axes.set_xlim(*((epochs[0] - 1, epochs[0] + 1) if len(history) == 1 else (None, None)))
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))
    if len(lines) > 1:
        _legend(axes, handles, list(lines))


def _on_white(color: RGB) -> str:
    """A class color as a line color: the same hue, dark enough (luminance of 0.45 at most) to be seen on white."""
    red, green, blue = color
    luminance = (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255
    return "#" + "".join(f"{round(value * min(1.0, 0.45 / max(luminance, 1e-6))):02x}" for value in color)


def _markers(values: NDArray[np.float64]) -> dict[str, Any]:
    """Points are drawn where a line would hide them: short runs, and values with a gap on both sides."""
    finite = np.concatenate([[False], np.isfinite(values), [False]])
    lonely = finite[1:-1] & ~finite[:-2] & ~finite[2:]
    return {"marker": "o", "markersize": 4, "markevery": None if len(values) <= 30 else np.flatnonzero(lonely).tolist()}


def _scale(axes: Axes, values: NDArray[np.float64], bounded: bool) -> None:
    """Scores end at 1 and start at a round tenth; other values become logarithmic once they span a factor of 20."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if bounded:
        axes.set_ylim(np.floor(max(low, 0.0) * 10 - 0.2) / 10 if low > 0.02 else -0.02, max(1.0, high) + 0.01)
        return
    if low > 0 and high > 20 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 200 * low else (1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif low == high:
        axes.set_ylim(0, 2 * high) if high > 0 else None
    axes.yaxis.set_major_formatter(FuncFormatter(tick))


def tick(value: float, position: object = None) -> str:
    """A number on an axis: 0.05, but 6e-5 instead of 6e-05 or 0.00006."""
    text = f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.2e}"
    mantissa, e, exponent = text.partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if e else text


def _column(history: History, key: str) -> NDArray[np.float64]:
    return np.array([number(row.get(key)) for row in history], dtype=np.float64)


def number(value: object) -> float:
    """A finite number from a table cell (number, text, empty, None), else NaN."""
    try:
        result = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")
    return result if np.isfinite(result) else float("nan")


# Figures about scores -------------------------------------------------------------------------------------------------


def roc(points: Sequence[tuple[float, float]], path: Path, auc: float | None = None) -> None:
    """Draw a receiver operating characteristic from (false positive rate, true positive rate) pairs."""
    save(roc_figure(points, auc), path)


def roc_figure(points: Sequence[tuple[float, float]], auc: float | None = None) -> Figure:
    """The figure that ``roc`` writes."""
    figure = _figure(PANEL_INCHES)
    axes = figure.subplots()
    _decorate(axes, "ROC curve", "false positive rate", "true positive rate")
    if np.isfinite(number(auc)):
        axes.set_title(f"area: {number(auc):.3f}", loc="right", fontsize=10, color=INK)
    false_positive, true_positive = np.array(sorted(points), dtype=np.float64).reshape(-1, 2).T
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (2, 3)))
    axes.plot(false_positive, true_positive, color=COLORS[0], linewidth=2)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    return figure


def reliability_figure(bins: Sequence[tuple[float, float, int]]) -> Figure:
    """Observed frequency against predicted probability from (mean predicted, observed, pixel count) bins.

    The diagram above, the share of pixels by predicted probability below.
    """
    table = np.array([row for row in bins if row[2] > 0], dtype=np.float64).reshape(-1, 3)
    share = table[:, 2] / max(table[:, 2].sum(), 1)
    figure = _figure((PANEL_INCHES[0], 4.4))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _decorate(upper, "Reliability", "", "observed frequency")
    upper.set_title(f"calibration error: {calibration_error(bins):.3f}", loc="right", fontsize=10, color=INK)
    upper.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (2, 3)))
    upper.plot(table[:, 0], table[:, 1], "o-", color=COLORS[0], linewidth=1.8, markersize=5)
    upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _decorate(lower, "", "predicted probability", "% of pixels")
    lower.bar(table[:, 0], 100 * share, width=0.8 / max(len(bins), 1), color=COLORS[5])
    return figure


def calibration_error(bins: Sequence[tuple[float, float, int]]) -> float:
    """Pixel-weighted mean of |observed - predicted|, the ECE of Naeini et al. (2015); 0 without pixels."""
    total = sum(count for _, _, count in bins)
    return sum(count * abs(observed - predicted) for predicted, observed, count in bins if count) / max(total, 1)


def compact(count: int) -> str:
    """A count in three or four digits: 9500, 12.3 k, 4.56 M, 1.2 G."""
    for unit, size in (("k", 1e3), ("M", 1e6), ("G", 1e9)):
        if count < 999.5 * size:
            return f"{count / size:.3g} {unit}" if count >= 1e4 else str(count)
    return f"{count / 1e12:.3g} T"


# Figure plumbing ------------------------------------------------------------------------------------------------------


def save(figure: Figure, path: Path) -> None:
    """Write a figure atomically, in the format of the path's suffix."""
    with atomic_path(path) as temporary, quiet_glyphs():
        figure.savefig(temporary, dpi=DPI)


@contextlib.contextmanager
def quiet_glyphs() -> Iterator[None]:
    """Names in scripts that the font lacks are drawn as boxes; that is no reason for a warning per letter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*Glyph .* missing from")
        yield


def _figure(size: tuple[float, float], arranged: bool = True) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12) if arranged else None
    figure = Figure(figsize=size, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _decorate(axes: Axes, title: str, x: str, y: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK)
    axes.set_xlabel(x, fontsize=11, color=INK)
    axes.set_ylabel(y, fontsize=11, color=INK)
    axes.tick_params(labelsize=10, colors=INK, which="both", length=3)
    for name, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(name in ("left", "bottom"))
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _legend(axes: Axes, handles: Sequence[Line2D], labels: Sequence[str]) -> None:
    """A legend below the axes: it never covers a curve."""
    names = [_plain(label, 26) for label in labels]
    columns = min(len(names), 2 if max(map(len, names)) > 16 else 3)
    style: dict[str, Any] = {"loc": "upper center", "frameon": False, "fontsize": 10, "labelcolor": INK}
    box = axes.legend(list(handles), names, bbox_to_anchor=(0.5, -0.2), ncols=columns, **style)
    _literal(box.get_texts())


def _literal(texts: Sequence[Text]) -> None:
    """Keep ``$`` in names from being read as mathematics."""
    for text in texts:
        text.set_parse_math(False)


def _plain(name: str, limit: int = 30) -> str:
    """A name fit for a label: cut to ``limit`` letters, without the leading underscore that hides legend entries."""
    name = name.lstrip("_") or "-"
    return name if len(name) <= limit else name[: limit - 1] + "\u2026"
