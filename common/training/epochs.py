"""The end of an epoch: its row of the history, its checkpoints, its line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from common.command.cli import say
from common.metrics.counts import ConfusionMatrix
from common.metrics.split_scores import SplitScores, standard_error
from common.networks.checkpoint import ModelCard
from common.training.runs import RunFolder
from common.training.state import TrainState


class Speed(NamedTuple):
    """What an epoch's optimization took."""

    seconds: float
    samples: int
    memory_mb: float | None
    """Peak so far, where it is counted."""

    def row(self) -> dict[str, float | None]:
        """Its columns of metrics.csv."""
        return {
            "seconds": round(self.seconds, 2),
            "samples_per_second": round(self.samples / max(self.seconds, 1e-9), 2),
            "peak_memory_mb": None if self.memory_mb is None else round(self.memory_mb, 1),
        }


def end_epoch(
    state: TrainState,
    scores: SplitScores,
    run: RunFolder,
    card: ModelCard,
    speed: Speed,
    images: int,
    *,
    one_standard_error: bool,
) -> None:
    """Book an epoch: its row in the history, the best checkpoints, then ``last.pt``.

    In that order a kill in between repeats the epoch, and with it what was written. ``images`` should have been scored;
    an epoch that was judged by fewer can be the best only if it is the first, since the others may be harder.
    With ``one_standard_error`` an epoch also counts as best if its mIoU lies less below the best one than a
    standard error of their difference: few images cannot tell the two apart, and the later one has learned more.
    """
    result = scores.result()
    row = _history_row(state, result, card.classes)
    comparable = scores.n_images == images or not state.history
    better = comparable and row["miou"] > state.best_iou
    without = scores.without_parts() if one_standard_error else []
    row["kept"] = int(comparable and row["miou"] > state.best_iou - standard_error(state.best_without, without))
    timed = {**row, **speed.row()}
    state.history = [*({**dict.fromkeys(timed), **past} for past in state.history), timed]  # older runs have less
    state.epoch, state.batch, state.loss_sum, state.hits = state.epoch + 1, 0, 0.0, []
    state.threshold = result["threshold"] if result["threshold"] is not None else 0.5
    state.schedule.end_epoch(row["val_loss"])
    card = replace(card, threshold=state.threshold, scores=row)
    state.epochs_without_better += 1
    if better:
        state.best_iou, state.best_without, state.epochs_without_better = row["miou"], without, 0
    if row["kept"]:
        run.save_best("best_iou.pt", state, card)
    if comparable and row["val_loss"] < state.best_loss:
        state.best_loss = row["val_loss"]
        run.save_best("best_loss.pt", state, card)
    run.save_last(state, card)
    run.log_epoch(state.history)
    threshold = f" at {row['threshold']:.3f}" if row["threshold"] is not None else ""
    say(
        f"epoch {state.epoch:3d}/{state.schedule.epochs}  train {row['train_loss']:.4f}  val {row['val_loss']:.4f}  "
        f"mIoU {row['miou']:.4f}{threshold}  lr {row['lr']:.2e}  {speed.seconds:.0f} s  "
        f"{speed.row()['samples_per_second']:.1f} samples/s"
    )
    if scores.n_images < images:
        say(f"note: {scores.n_images} of {images} validation images judged this epoch: the time is up")


def _history_row(state: TrainState, result: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """What an epoch is judged by; of the training, how its batches were predicted while the network learned them."""
    seen = ConfusionMatrix(len(classes))
    seen.counts += torch.tensor(state.hits)
    trained = seen.scores(classes)
    return {
        "epoch": state.epoch + 1,
        "lr": state.optimizer.param_groups[0]["lr"],
        "train_loss": state.loss_sum / state.batch,
        "val_loss": result["loss"],
        "pixel_accuracy": result["pixel_accuracy"],
        "miou": result["miou"] or 0.0,
        "f1": result["f1"],
        "train_miou": trained["miou"],
        "train_accuracy": trained["pixel_accuracy"],
        "val_images": result["n_images"],
        **{f"iou_{name}": value for name, value in result["per_class_iou"].items()},
        "threshold": result["threshold"],
    }
