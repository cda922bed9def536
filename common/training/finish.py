"""The end of a training: curves, example pictures, test metrics and the report."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from common.command.cli import STARTED, VERSION, say
from common.command.config import TrainConfig, config_values
from common.command.progress import Work
from common.data.labeled import LabeledImage, Sample
from common.data.pairs import Facts
from common.files import write_text
from common.images.display import RGB, Pixels, stretch, strip
from common.metrics.split_scores import SplitScores, score_table
from common.networks.checkpoint import ModelCard
from common.networks.precision import Precision
from common.report.examples import choose, error_legend, panels
from common.report.page import Report, write_report
from common.report.plots import curves, grid, grid_figure
from common.training.budget import end_of
from common.training.predicted import Predicted
from common.training.runs import RunFolder
from common.training.suspects import FILE as SUSPECTS
from common.training.suspects import Suspect, find_suspects, write_suspects

SHOWN = 4
"""Ordinary, best and worst samples in the report, each."""
DRAWN = 2
"""Of those in predictions.png."""
SEARCH_SECONDS, SEARCH_SHARE = 20.0, 0.1
"""Label errors are looked for for so long, or this share of the time that the run took."""
LATER = 20.0
"""Seconds after --max-minutes until which label errors are looked for."""
UNSEEN = {
    "test": "of the test part: unseen in training and in the choice of epoch and threshold",
    "val": "of the validation part: not trained on, but epoch and threshold were chosen with it",
}
FILES = {
    "best_iou.pt": "weights of the best validation mIoU (or as good, --one-standard-error): what infer.py takes",
    "best_loss.pt": "weights of the lowest validation loss",
    "last.pt": "the last state, to resume from",
    "metrics.csv": "one row per epoch",
    "curves.png": "the same as curves",
    "predictions.png": "input, truth, prediction and errors of ordinary, best and worst samples",
    SUSPECTS: "suspected label errors, worst first; --skip-suspects takes the list",
    "test_metrics.json": "scores on the test part, if there is one",
    "config.yaml": "the resolved configuration, readable with --config",
}


@dataclass(frozen=True)
class Outcome:
    """How the best network of a run did."""

    part: str
    """``test``, or ``val`` where there is no test part."""
    card: ModelCard
    """Of the best checkpoint."""
    scores: Mapping[str, Any]
    """As evaluate.py prints them; images are counted anew, where samples are tiles of them."""
    detail: SplitScores
    """What was accumulated behind ``scores``: calibration, ROC, single images."""
    predicted: Predicted
    """Of the samples that were scored."""
    samples: Mapping[str, Sequence[Sample]]
    """Of each part; among all of them label errors are looked for."""
    predict: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    """Image (C, H, W) in 0...1 -> probabilities (1 or K, H, W)."""
    points: Callable[[LabeledImage], NDArray[np.uint8]] | None = None
    """The labeled points (H, W) of a sample, to be drawn, where a task has them."""


def finish_run(
    run: RunFolder,
    config: TrainConfig,
    audit: Facts,
    history: Sequence[Mapping[str, Any]],
    precision: Precision,
    outcome: Outcome,
) -> None:
    """Write curves.png, predictions.png, report.html, TensorBoard figures and, if tested, test_metrics.json.

    Args:
        run: the run folder.
        config: the resolved configuration.
        audit: what was found in the data.
        history: rows of metrics.csv.
        precision: where it was computed.
        outcome: scores of the best network.
    """
    card, detail, part = outcome.card, outcome.detail, outcome.part
    by_id = {sample.id: sample for some in outcome.samples.values() for sample in some}
    scores = {**outcome.scores, "n_images": len({by_id[name].image_id for name in detail.ids})}
    missing = ""
    if detail.left_out:
        scores["left_out"], missing = detail.left_out, f", {detail.left_out} left out: --max-minutes was used up"
        say(f"note: scored on {len(detail.ids)} images or tiles of the {part} part{missing}; evaluate.py scores all")
    if history:
        curves(history, run.path / "curves.png", {name: card.palette[i] for i, name in enumerate(card.classes)})
    if part == "test":
        values = {"task": card.task, "split": part, **scores}
        write_text(run.path / "test_metrics.json", json.dumps(values, indent=1, allow_nan=False) + "\n")
    with Work("drawing examples"):
        examples, legend = _examples(run, outcome, by_id, len(history))
    now = time.monotonic()
    until = min(end_of(config) + LATER, now + max(SEARCH_SECONDS, SEARCH_SHARE * (now - STARTED)))
    suspects = find_suspects(outcome.samples, outcome.predicted, outcome.predict, until)
    write_suspects(run.path / SUSPECTS, suspects, card.classes)
    examples["suspected label errors"] = [_disputed(one, outcome) for one in suspects[:SHOWN]]
    run.close()
    report = Report(
        title=f"{card.task}: {card.arch}",
        summary=_summary(f"{part} part, {scores['n_images']} images{missing}", card, history, precision),
        config=config_values(config),
        audit=[{"what": name, "found": value} for name, value in audit],
        history=history,
        scores=scores,
        **_binary_charts(detail),
        examples=examples,
        examples_note=f"Samples {UNSEEN[part]}. Left to right: {', '.join(legend.columns)}; numbers are mean IoU.",
        legend=legend.colors,
        palette=card.palette,
        files={name: meaning for name, meaning in FILES.items() if (run.path / name).exists()},
    )
    write_report(run.path / "report.html", report)
    say(f"report: {run.path / 'report.html'}")
    say(score_table(part, scores))


def _summary(
    scored_on: str, card: ModelCard, history: Sequence[Mapping[str, Any]], precision: Precision
) -> dict[str, Any]:
    """What the report says first."""
    return {
        "scored on": scored_on,
        "data": card.data_root,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "duration": _duration(history),
        "device": str(precision),
        "versions": versions(),
        "epochs": len(history),
        "threshold": card.threshold,
        "weights": "best_iou.pt",
    }


def _binary_charts(detail: SplitScores) -> dict[str, Sequence[Any]]:
    """Calibration and ROC curve of the report, which two classes have."""
    if not detail.binary:
        return {}
    bins = [one for one in detail.curve.calibration() if one["count"]]
    calibration = [(float(b["mean_predicted"] or 0), float(b["observed"] or 0), int(b["count"] or 0)) for b in bins]
    roc = detail.curve.roc()
    return {"calibration": calibration, "roc": list(zip(*roc, strict=True)) if roc else ()}


def _duration(history: Sequence[Mapping[str, Any]]) -> str:
    """Time in the epochs' optimization, those of a resumed run included."""
    seconds = sum(float(row.get("seconds") or 0) for row in history)
    return f"{seconds / 60:.1f} min of optimization in {len(history)} epochs"


def versions() -> str:
    """Such as ``plain-segmentation 0.1.0, Python 3.12.1, PyTorch 2.9.0, Linux``."""
    python = platform.python_version()
    return f"plain-segmentation {VERSION}, Python {python}, PyTorch {torch.__version__}, {platform.system()}"


class Legend(NamedTuple):
    """What the panels of the examples are, and what their colors mean."""

    columns: list[str]
    colors: dict[str, RGB]


def _examples(
    run: RunFolder, outcome: Outcome, by_id: Mapping[str, Sample], epochs: int
) -> tuple[dict[str, list[tuple[str, float | None, Pixels]]], Legend]:
    """Write predictions.png and its TensorBoard figure; return samples as picture strips, by group."""
    card, columns = outcome.card, list[str]()
    colors = {name: card.palette[index] for index, name in enumerate(card.classes)}
    colors |= error_legend(len(card.classes))
    strips: dict[str, list[tuple[str, float | None, Pixels]]] = {}
    rows: list[list[tuple[str, Pixels]]] = []
    for group, samples in choose(outcome.detail.per_image, SHOWN).items():
        strips[group] = []
        for number, (name, score, _) in enumerate(samples):
            row = _panels(by_id[name], outcome)
            columns = [title for title, _ in row]
            strips[group].append((name, score, strip([picture for _, picture in row])))
            if number < DRAWN:
                rows.append([(f"{group} {score:.3f}: {name}", row[0][1]), *row[1:]])
    if rows:
        grid(rows, run.path / "predictions.png", colors)
        run.writer.add_figure("predictions", grid_figure(rows, colors), epochs)
    return strips, Legend(columns, colors)


def _disputed(suspect: Suspect, outcome: Outcome) -> tuple[str, None, Pixels]:
    """A suspected label error as a picture strip, and what is disputed."""
    card, (sample, part, why) = outcome.card, suspect
    names = f"{card.classes[why.label]}, or {card.classes[why.prediction]}?"
    row = _panels(sample, outcome)
    return f"{sample.id} ({part}): {names} {why.share:.0%}", None, strip([picture for _, picture in row])


def _panels(sample: Sample, outcome: Outcome) -> list[tuple[str, Pixels]]:
    card, pair = outcome.card, sample.read()
    palette = {index: card.palette[index] for index in range(len(card.classes))}
    points = {} if outcome.points is None else {"points": outcome.points(pair)}
    maps = {**points, "truth": pair.classes, "prediction": outcome.predicted.mask(sample.id)}
    return panels(stretch(pair.image), maps, palette)
