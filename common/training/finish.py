"""The end of a training: curves, example pictures, test metrics and the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.command.cli import say
from common.command.config import TrainConfig, config_values
from common.data.pairs import Facts
from common.files import write_text
from common.images.display import colorize, stretch, strip
from common.metrics.split_scores import SplitScores
from common.networks.checkpoint import ModelCard
from common.report.page import Report, write_report
from common.report.plots import curves, grid, grid_figure
from common.training.runs import RunFolder

Example = tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.uint8]]
"""Image (C, H, W), truth (H, W) and prediction (H, W) of one sample; 255 = ignored."""

SHOWN = 4
"""Best and worst samples in the report, each."""
HEADLINE = ("miou", "pixel_accuracy", "f1", "auc")
"""Scores of the line that ends a training, before the classes'."""
FILES = {
    "best_iou.pt": "weights of the best validation mIoU: what infer.py takes",
    "best_loss.pt": "weights of the lowest validation loss",
    "last.pt": "the last state, to resume from",
    "metrics.csv": "one row per epoch",
    "curves.png": "the same as curves",
    "predictions.png": "input, truth and prediction of some samples",
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
    """As evaluate.py prints them."""
    detail: SplitScores
    """What was accumulated behind ``scores``: calibration, ROC, single images."""
    example: Callable[[str], Example]
    """Sample id -> pictures."""


def finish_run(
    run: RunFolder, config: TrainConfig, audit: Facts, history: Sequence[Mapping[str, Any]], outcome: Outcome
) -> None:
    """Write curves.png, predictions.png, report.html, TensorBoard figures and, if tested, test_metrics.json.

    Args:
        run: the run folder.
        config: the resolved configuration.
        audit: what was found in the data.
        history: rows of metrics.csv.
        outcome: scores of the best network.
    """
    card, scores, detail, part = outcome.card, outcome.scores, outcome.detail, outcome.part
    if history:
        curves(history, run.path / "curves.png")
    if part == "test":
        write_text(
            run.path / "test_metrics.json",
            json.dumps({"task": card.task, "split": part, **scores}, indent=1, allow_nan=False) + "\n",
        )
    examples = _examples(run, outcome, len(history))
    run.close()
    bins = [b for b in detail.curve.calibration() if b["count"]] if detail.binary else []
    calibration = [(float(b["mean_predicted"] or 0), float(b["observed"] or 0), int(b["count"] or 0)) for b in bins]
    roc = detail.curve.roc() if detail.binary else None
    report = Report(
        title=f"{card.task}: {card.arch}",
        summary={
            "scored on": f"{part} part, {scores['n_images']} images",
            "epochs": len(history),
            "threshold": card.threshold,
            "weights": "best_iou.pt",
        },
        config=config_values(config),
        audit=[{"what": name, "found": value} for name, value in audit],
        history=history,
        scores=scores,
        calibration=calibration,
        roc=list(zip(*roc, strict=True)) if roc else (),
        examples=examples,
        palette=card.palette,
        files={name: meaning for name, meaning in FILES.items() if (run.path / name).exists()},
    )
    write_report(run.path / "report.html", report)
    say(f"report: {run.path / 'report.html'}")
    named = {name: scores[name] for name in HEADLINE} | scores["per_class_iou"]
    say(f"{part}: " + ", ".join(f"{name} {value:.4f}" for name, value in named.items() if value is not None))


def _examples(run: RunFolder, outcome: Outcome, epochs: int) -> dict[str, list[tuple[str, float, NDArray[np.uint8]]]]:
    """Write predictions.png and its TensorBoard figure; return the best and worst samples as picture strips."""
    card, ranked = outcome.card, sorted(outcome.detail.per_image, key=lambda item: item[1])
    shown = min(SHOWN, (len(ranked) + 1) // 2)  # of few samples, half are the best
    chosen = {"best": ranked[-shown:][::-1], "worst": ranked[: min(shown, len(ranked) - shown)]}
    pictures = {name: _row(outcome.example(name), card.palette) for some in chosen.values() for name, _ in some}
    if pictures:
        legend = {name: card.palette[index] for index, name in enumerate(card.classes)}
        titles = ("input", "truth", "prediction")
        rows = [list(zip(titles, pictures[name], strict=True)) for some in chosen.values() for name, _ in some[:2]]
        grid(rows, run.path / "predictions.png", legend)
        run.writer.add_figure("predictions", grid_figure(rows, legend), epochs)
    return {
        heading: [(name, score, strip(pictures[name])) for name, score in some]
        for heading, some in chosen.items()
        if some
    }


def _row(example: Example, palette: Mapping[int, tuple[int, int, int]]) -> list[NDArray[np.uint8]]:
    image, truth, prediction = example
    return [stretch(image), colorize(truth, palette), colorize(prediction, palette)]
