"""The report of a run: one HTML page that stands alone.

Charts are inline SVG that takes its ink from the page, so they follow light and dark mode; pictures are data URIs,
scaled down until the page fits its budget. Nothing is loaded from elsewhere and no script runs: the file can be mailed,
printed, and opened in ten years.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from common.files import write_text
from common.images.display import COLORS, RGB, Palette, Pixels
from common.report import plots
from common.report.plots import History

PICTURE_BUDGET = 2_200_000
"""Bytes of base64 that all example pictures together may take; charts and text need well under 0.5 MB."""
PICTURE_STEPS = ((1200, 88), (1000, 85), (800, 82), (640, 78), (480, 72), (360, 65), (240, 55), (160, 45))
"""Widest side in pixels and JPEG quality, tried in turn until the budget holds."""
HEADLINES = {
    "iou_foi": "IoU in the field of interest",
    "seg": "SEG",
    "det": "DET",
    "miou": "mean IoU",
    "iou": "foreground IoU",
    "pixel_accuracy": "pixel accuracy",
    "f1": "F1",
    "boundary_f1": "boundary F1",
    "auc": "ROC area",
}
"""Scores shown large, in this order; every other number among the scores goes into the table below them."""
LABELS = {
    "n_images": "images",
    "n_pixels": "valid pixels",
    "kappa": "Cohen's kappa",
    "iou_mean_per_image": "IoU, mean over images",
}

Example = tuple[str, float | None, Pixels]
Bins = Sequence[tuple[float, float, int]]


@dataclass(frozen=True)
class ClassRow:
    """One line of the per-class table; scores are shares 0-1 or None where undefined."""

    name: str
    color: str | None
    iou: float | None
    precision: float | None
    recall: float | None
    truth: int | None
    share: float | None


@dataclass(frozen=True)
class Cell:
    """One cell of the confusion matrix: its count, and its share of the truth class (None without truth pixels)."""

    count: int
    share: float | None


@dataclass(frozen=True)
class Report:
    """What a run's report shows; sections without data are left out."""

    title: str
    """Heading of the page."""
    summary: Mapping[str, object]
    """What was trained on what, name by value."""
    config: Mapping[str, object]
    """The resolved configuration; nested mappings are shown with dotted names."""
    audit: Sequence[str] | Sequence[Mapping[str, object]] = ()
    """What the data look like: sentences, or table rows whose keys are the columns."""
    history: History = ()
    """Rows of ``metrics.csv`` as ``plots.curves`` takes them."""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """The keys that evaluate.py prints. Class names are the keys of ``per_class_iou``; rows of ``confusion_matrix`` are
    the truth."""
    calibration: Bins = ()
    """(mean predicted probability, observed frequency, pixels) bins."""
    roc: Sequence[tuple[float, float]] = ()
    """(false positive rate, true positive rate) points."""
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    """(id, score, (H, W, 3) uint8 picture) by heading, such as "best" and "worst"; ``plots.strip`` makes them."""
    examples_note: str = ""
    """What they are, and what their panels show."""
    legend: Mapping[str, RGB] = field(default_factory=dict)
    """Meaning of the panels' colors."""
    palette: Palette | None = None
    """RGB by class index, for the swatches beside class names."""
    files: Mapping[str, str] = field(default_factory=dict)
    """What the run folder holds, meaning by file name."""


def write_report(path: Path, report: Report) -> None:
    """Write a run's report as an HTML file.

    Raises:
        ValueError: the confusion matrix does not fit the class names.
    """
    scores, roc, calibration, audit = report.scores, report.roc, report.calibration, report.audit
    judged = [("ROC curve", plots.roc_figure(roc, scores.get("auc")))] if roc else []
    if any(count for *_, count in calibration):
        judged.insert(0, ("Reliability", plots.reliability_figure(calibration)))
    rows, columns = _audit_table(audit)
    palette = report.palette or {}
    named = {name: palette[index] for index, name in enumerate(_class_names(scores)) if index in palette}
    page = _template().render(
        title=report.title,
        summary={key: _text(value) for key, value in report.summary.items()},
        headlines=[(label, scores[key]) for key, label in HEADLINES.items() if _applies(key, scores)],
        numbers=_other_numbers(scores),
        part=scores.get("split"),
        audit=[line for line in audit if isinstance(line, str)],
        audit_columns=columns,
        audit_rows=rows,
        curves=[
            _svg(figure, name, f"c{i}") for i, (name, figure) in enumerate(plots.curve_figures(report.history, named))
        ],
        classes=class_table(scores, report.palette),
        absent=scores.get("absent_classes") or [],
        names=_class_names(scores),
        confusion=confusion_rows(scores.get("confusion_matrix")),
        calibration=[_svg(figure, name, f"p{i}") for i, (name, figure) in enumerate(judged)],
        examples=_pictures(report.examples),
        examples_note=report.examples_note,
        legend={name: _css(color) for name, color in report.legend.items()},
        config={key: _text(value) for key, value in _flatten(report.config).items()},
        files=report.files,
    )
    write_text(path, page)


def _class_names(scores: Mapping[str, Any]) -> list[str]:
    names = list(scores.get("per_class_iou") or {})
    matrix = scores.get("confusion_matrix")
    if matrix is not None and any(len(row) != len(names) for row in [matrix, *matrix]):
        raise ValueError(
            f"the confusion matrix has {len(matrix)} rows, per_class_iou {len(names)} classes; both must list all"
        )
    return names


def class_table(scores: Mapping[str, Any], palette: Palette | None = None) -> list[ClassRow]:
    """Per-class scores from the confusion matrix (rows = truth); only the IoU where there is none."""
    ious: Mapping[str, float | None] = scores.get("per_class_iou") or {}
    matrix = scores.get("confusion_matrix")
    total = sum(sum(row) for row in matrix) if matrix is not None else 0
    rows = []
    for index, (name, iou) in enumerate(ious.items()):
        color = _css(palette[index]) if palette and index in palette else None
        precision = recall = truth = share = None
        if matrix is not None:
            hit, truth = int(matrix[index][index]), int(sum(matrix[index]))
            precision, recall = _ratio(hit, sum(int(row[index]) for row in matrix)), _ratio(hit, truth)
            share = _ratio(truth, total)
        rows.append(ClassRow(name, color, iou, precision, recall, truth, share))
    return rows


def _css(color: RGB) -> str:
    return f"rgb({', '.join(str(int(v)) for v in color)})"


def confusion_rows(matrix: Sequence[Sequence[int]] | None) -> list[list[Cell]]:
    """The cells of the confusion matrix, empty without one."""
    return (
        [[Cell(int(count), _ratio(int(count), int(sum(row)))) for count in row] for row in matrix]
        if matrix is not None
        else []
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


# Text -----------------------------------------------------------------------------------------------------------------


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    # autoescape=True, since the suffix .j2 would not switch it on
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"score": score_text, "percent": percent_text, "count": count_text, "compact": plots.compact}
    return environment.get_template("template.html.j2")


def score_text(value: object, digits: int = 3) -> str:
    """A score with three decimals, "n/a" where it is undefined."""
    return "n/a" if math.isnan(number := plots.number(value)) else f"{number:.{digits}f}"


def percent_text(share: object) -> str:
    """A share 0-1 in percent, "n/a" where it is undefined."""
    return "n/a" if math.isnan(number := plots.number(share)) else f"{100 * number:.1f} %"


def count_text(value: int | None) -> str:
    """A whole number with narrow spaces between the thousands, "n/a" where it is undefined."""
    return "n/a" if value is None else f"{value:,}".replace(",", "\u202f")


def _text(value: object) -> str:
    """A configuration value as a person would write it."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}" if math.isfinite(value) else "n/a"
        case list() | tuple() | set() | frozenset():
            return ", ".join(_text(item) for item in value) or "(empty)"
        case _:
            return str(value)


def _flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = "(empty)" if isinstance(value, Mapping) else value
    return flat


def _applies(key: str, scores: Mapping[str, Any]) -> bool:
    """Whether a score means something here: above two classes there is no foreground, threshold or ROC curve."""
    multiclass = len(scores.get("per_class_iou") or {}) > 2
    return key in scores and not (multiclass and scores[key] is None and key in ("iou", "auc", "threshold"))


def _other_numbers(scores: Mapping[str, Any]) -> dict[str, str]:
    """Scalars that are no headline, such as kappa, loss, threshold, and the scores of one task only."""
    shown: dict[str, str] = {}
    for key, value in scores.items():
        if (
            key not in HEADLINES
            and _applies(key, scores)
            and (value is None or (isinstance(value, int | float) and not isinstance(value, bool)))
        ):
            text = count_text(value) if isinstance(value, int) else score_text(value, 4)
            shown[LABELS.get(key, key.replace("_", " "))] = text
    return shown


def _audit_table(audit: Sequence[str] | Sequence[Mapping[str, object]]) -> tuple[list[list[str]], list[str]]:
    records = [row for row in audit if isinstance(row, Mapping)]
    columns = list(dict.fromkeys(key for row in records for key in row))
    return [[_cell_text(row.get(key)) for key in columns] for row in records], columns


def _cell_text(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return count_text(value)
    return "n/a" if value is None else _text(value)


# Pictures -------------------------------------------------------------------------------------------------------------


def _svg(figure: Figure, name: str, prefix: str) -> Markup:
    """A figure as inline SVG: text in the page's font, the page's colors, ids that no other figure of the page has."""
    buffer = io.StringIO()
    figure.set_facecolor("none")
    for axes in figure.axes:
        axes.set_facecolor("none")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}), plots.quiet_glyphs():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = (
        re.sub(r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", text[: (end := text.index(">"))]) + text[end:]
    )
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for color, variable in (
        (plots.INK, "currentColor"),
        (plots.GRID, "var(--grid)"),
        (COLORS[0], "var(--series)"),
    ):
        text = text.replace(color, variable)
    return Markup(text.replace("<svg", Markup('<svg role="img" aria-label="{}"').format(name), 1))


def _pictures(examples: Mapping[str, Sequence[Example]]) -> list[dict[str, Any]]:
    """Encode all examples at the largest size whose sum keeps within the budget."""
    images = [image for group in examples.values() for _, _, image in group]
    encoded: list[str] = []
    for side, quality in PICTURE_STEPS:
        encoded = [data_uri(image, side, quality) for image in images]
        if sum(map(len, encoded)) <= PICTURE_BUDGET:
            break
    uris = iter(encoded)
    return [
        {
            "title": title,
            "items": [
                {"name": name, "score": score, "uri": next(uris), "coarse": image.shape[1] < 400}
                for name, score, image in group
            ],
        }
        for title, group in examples.items()
        if group
    ]


def data_uri(image: Pixels, side: int, quality: int) -> str:
    """An (H, W, 3) uint8 picture, at most ``side`` pixels wide and high, as a data URI: JPEG, or PNG where smaller."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    # full color resolution: class colors keep crisp edges
    options: dict[str, dict[str, Any]] = {"png": {}, "jpeg": {"quality": quality, "subsampling": 0}}
    encoded = {}
    for kind, arguments in options.items():
        buffer = io.BytesIO()
        picture.save(buffer, kind, **arguments)
        encoded[kind] = buffer.getvalue()
    kind = min(encoded, key=lambda name: len(encoded[name]))
    return f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode('ascii')}"
