"""The training loop: ``train_one_epoch``, ``evaluate`` and ``fit``, for any network and task.

With mixed precision, moving average, time budget and exact resume.
"""

from __future__ import annotations

import math
import random
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from common.command.cli import Interrupted, NonFiniteLoss, StopRequest, say
from common.command.config import TrainConfig, config_values
from common.command.progress import Work, duration, progress
from common.data.sampling import EpochBatches
from common.metrics.counts import ConfusionMatrix
from common.metrics.split_scores import SplitScores
from common.networks.checkpoint import ModelCard, save_checkpoint
from common.networks.norm import steady_batch_norm
from common.networks.precision import Precision, peak_memory_mb
from common.training.budget import Budget, end_of
from common.training.estimate import advise, estimate, print_plan
from common.training.experiment import Batch, Engine, Experiment, SegmentationData
from common.training.pictures import WATCHED, draw_epoch
from common.training.runs import RunFolder
from common.training.schedule import Clock, Schedule
from common.training.state import MovingAverage
from common.training.state import TrainState as TrainState

Config = TypeVar("Config", bound=TrainConfig)


def seed_everything(seed: int) -> None:
    """Seed every global random generator."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def train_one_epoch(
    state: TrainState, loader: DataLoader[Batch], engine: Engine, clock: Clock, config: TrainConfig, forward: nn.Module
) -> Literal["finished", "interrupted", "expired"]:
    """Optimize over the batches that ``loader`` still has, updating ``state`` in place.

    Ends early, always after a whole optimization step, when a stop was asked for or the clock expired.

    Args:
        state: the training.
        loader: what is left of the epoch.
        engine: how batches are computed.
        clock: progress and budget.
        config: for rate, accumulation and clipping.
        forward: the network or its compiled form.

    Raises:
        NonFiniteLoss: the loss is NaN or infinite; names the batch's files and its value.
    """
    state.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    batches = iter(loader)  # its workers start before the bar
    with Work(f"epoch {state.epoch + 1}/{config.epochs}", len(loader), "batch") as work:
        work.advance(state.batch)
        for group in _groups(batches, config.grad_accum):
            state.progress = clock.progress(state.step)
            for options in state.optimizer.param_groups:
                options["lr"] = config.lr * state.schedule.value(state.step, state.progress)
            for batch in group:
                _add_gradients(state, engine.receive(batch), engine, forward, len(group))
                left = clock.left(state.step)
                note = f"loss {state.loss_sum / state.batch:.4f}"
                work.advance(1, note + (f", {duration(left)} left" if left is not None else ""))
            _optimize(state, config.clip_norm)
            if engine.interrupted:
                return "interrupted"
            if clock.expired:
                return "expired"
    return "finished"


def _add_gradients(state: TrainState, batch: Batch, engine: Engine, forward: nn.Module, group: int) -> None:
    """Add a batch's gradients, its loss and its hits to those of its group of batches and of the epoch."""
    logits = engine.logits(forward, batch)
    loss = engine.criterion(logits, batch)
    value = float(loss.detach())
    if not math.isfinite(value):
        names = ", ".join(map(str, batch["id"]))
        raise NonFiniteLoss(
            f"the loss became {value} in epoch {state.epoch + 1}, batch {state.batch + 1}; "
            f"its files: {names}; lower --lr or look at them"
        )
    torch.autograd.backward(state.scaler.scale(loss / group))
    state.loss_sum += value
    state.batch += 1
    target = batch["target"]
    with torch.no_grad():
        found = engine.classes(_at_size(logits.detach(), target.shape[-2:]), state.threshold)
    hits = ConfusionMatrix(engine.class_count, device=target.device)
    hits.update(found, target)
    state.hits = (hits.counts + torch.tensor(state.hits, device=target.device) if state.hits else hits.counts).tolist()


def _groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Successive groups of ``size`` batches; the last may be smaller."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _optimize(state: TrainState, clip_norm: float) -> None:
    if clip_norm > 0:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    if state.average:
        state.average.update(state.model)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    data: SegmentationData,
    scores: SplitScores,
    engine: Engine,
    workers: int = 0,
    *,
    what: str = "validation",
    until: float = math.inf,
) -> SplitScores:
    """Run ``model`` over ``data`` and add every image to ``scores`` (which is returned), incomplete if a stop came.

    Images go one by one. Logits of a network that saw the image at another size than its truth's are brought to that
    size. After ``until`` (on the monotonic clock) no further image is begun, but one is always seen.

    Raises:
        NonFiniteLoss: the loss of an image is NaN or infinite; names its files.
    """
    model.eval()
    for batch in progress(_loader(data, workers, batch_size=1), what, "image"):
        batch = engine.receive(batch)
        logits = _at_size(engine.logits(model, batch), batch["target"].shape[-2:])
        name, loss = str(batch["id"][0]), float(engine.criterion(logits, batch))
        if not math.isfinite(loss):
            raise NonFiniteLoss(f"the loss of {name} is {loss} in evaluation; lower --lr or look at the file")
        scores.update(engine.probabilities(logits), batch["target"], loss, [name])
        if engine.interrupted or time.monotonic() >= until:
            break
    return scores


def _at_size(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear")


def _loader(data: SegmentationData, workers: int, **batches: Any) -> DataLoader[Batch]:  # noqa: ANN401
    """Load ``data``; a generator of its own keeps the loader from drawing at the global one whenever it starts."""
    return DataLoader(
        cast("Dataset[Batch]", data),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_parent,
        generator=torch.Generator(),
        **batches,
    )


def _leave_signals_to_parent(worker: int) -> None:
    """In a data worker: a signal to the whole process group must not take the data from the batch being finished."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def fit(experiment: Experiment, config: TrainConfig, run: RunFolder, precision: Precision) -> TrainState:
    """Train a network for ``--epochs`` or ``--max-minutes``, resumable after every epoch and after a signal.

    Writes ``best_iou.pt``, ``best_loss.pt``, ``last.pt``, ``metrics.csv`` and TensorBoard events into ``run``. However
    short the budget, one optimization step is done and validated, so that these files exist.

    Args:
        experiment: network and data; the network is moved to the device.
        config: the resolved configuration.
        run: where to write, and what to resume.
        precision: device and mixed precision.

    Raises:
        ValueError: the budget is too short for a single step, or a threshold is given for more than two classes.
        NonFiniteLoss: see ``train_one_epoch``.
        Interrupted: SIGINT or SIGTERM came; ``last.pt`` holds the state in the middle of the epoch.
    """
    if config.threshold is not None and len(experiment.card.classes) != 2:
        raise ValueError(f"--threshold is for two classes, here are {len(experiment.card.classes)}; leave it out")
    sampler = EpochBatches(len(experiment.train_data), config.batch_size, config.seed)
    experiment.model.to(precision.device)
    expected = estimate(experiment, config, len(sampler), precision)
    budget = Budget(end_of(config), experiment.test_images or len(experiment.val_data))
    budget.measure(expected.image, time.monotonic())
    budget.require(expected.step, time.monotonic())
    run.create(config, experiment.card.split)
    if experiment.annotate is not None:
        experiment.annotate(run.path)
    card = replace(experiment.card, config=config_values(config))
    state = _begin(experiment.model, config, run, precision, card.task)
    if state.batch > len(sampler) or len(state.hits) != (len(card.classes) if state.batch else 0):
        raise ValueError(f"{run.resume_from} is damaged: it has done {state.batch} batches of {len(sampler)} otherwise")
    print_plan(state, config, precision, len(sampler), expected.epoch)
    if advice := advise(card.task, config, expected.epoch):
        say(f"note: {advice}")
    watched = _watched(experiment.val_data, budget, config)
    steps = config.epochs * math.ceil(len(sampler) / config.grad_accum)
    clock = Clock(steps, budget.optimization_end(len(watched)), start_progress=state.progress)
    loader = _loader(experiment.train_data, config.workers, batch_sampler=sampler)
    forward = cast(nn.Module, torch.compile(state.model)) if config.compile else state.model
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest().listening())
        stack.enter_context(run.writing())
        engine = Engine.of(experiment, precision, stop)
        while not _is_done(state, config, clock):
            sampler.epoch, sampler.first_batch = state.epoch, state.batch
            started, first = time.monotonic(), state.batch
            train_one_epoch(state, loader, engine, clock, config, forward)
            trained = time.monotonic()
            scores = SplitScores(card.classes, threshold=config.threshold, device=precision.device, quick=True)
            if not engine.interrupted:
                what, until = f"validation {state.epoch + 1}/{config.epochs}", budget.validation_end
                evaluate(state.inference_model, watched, scores, engine, config.workers, what=what, until=until)
            if engine.interrupted:
                run.save_last(state, replace(card, threshold=state.threshold))
                break
            budget.measure((time.monotonic() - trained) / scores.n_images, time.monotonic())
            speed = Speed(
                trained - started, (state.batch - first) * sampler.batch_size, peak_memory_mb(precision.device)
            )
            _end_epoch(state, scores, run, card, speed)
            if scores.n_images < len(watched):
                say(f"note: {scores.n_images} of {len(watched)} validation images judged this epoch: the time is up")
            if time.monotonic() + WATCHED * budget.image_seconds < budget.validation_end:
                draw_epoch(state, experiment, engine, run)
            clock.deadline = min(clock.deadline, budget.optimization_end(len(watched)))
    if stop.signum is not None:
        last = run.path / "last.pt"
        raise Interrupted(stop.signum, f"stopped by signal {stop.signum} and saved; go on with --resume {last}")
    return state


def _watched(data: SegmentationData, budget: Budget, config: TrainConfig) -> SegmentationData:
    """The validation images that there is time for; says so where that is not all of them."""
    indices = budget.watched(len(data), config.seed, time.monotonic())
    if len(indices) < len(data):
        say(
            f"note: epochs are judged by {len(indices)} of {len(data)} validation images, drawn at random: all would "
            f"take {duration(len(data) * budget.image_seconds)} of --max-minutes {config.max_minutes:g}"
        )
    return cast(SegmentationData, Subset(cast("Dataset[Batch]", data), indices))


def _begin(model: nn.Module, config: TrainConfig, run: RunFolder, precision: Precision, task: str) -> TrainState:
    """The state before the first step, or where the run to be resumed ended."""
    steady_batch_norm(model).to(precision.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    falls = (config.lr_factor, config.lr_step, config.lr_patience, config.lr_min / config.lr)
    schedule = Schedule(config.scheduler, config.epochs, config.warmup_steps, *falls)
    scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.needs_scaler)
    state = TrainState(model, optimizer, schedule, scaler, MovingAverage(model, config.ema) if config.ema else None)
    if config.threshold is not None:
        state.threshold = config.threshold
    if run.resume_from is not None:
        run.restore(state, task)
    return state


def _is_done(state: TrainState, config: TrainConfig, clock: Clock) -> bool:
    if config.early_stopping and state.epochs_without_better >= config.early_stopping:
        say(f"early stopping: {state.epochs_without_better} epochs without a better validation mIoU")
        return True
    return state.epoch >= config.epochs or (state.epoch > 0 and clock.expired)


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


def _end_epoch(state: TrainState, scores: SplitScores, run: RunFolder, card: ModelCard, speed: Speed) -> None:
    """Book an epoch: its row in the history, the best checkpoints, then ``last.pt``.

    In that order a kill in between repeats the epoch, and with it what was written.
    """
    result = scores.result()
    row = _history_row(state, result, card.classes)
    timed = {**row, **speed.row()}
    state.history = [*({**dict.fromkeys(timed), **past} for past in state.history), timed]  # older runs have less
    state.epoch, state.batch, state.loss_sum, state.hits = state.epoch + 1, 0, 0.0, []
    state.threshold = result["threshold"] if result["threshold"] is not None else 0.5
    state.schedule.end_epoch(row["val_loss"])
    card = replace(card, threshold=state.threshold, scores=row)
    state.epochs_without_better += 1
    if row["miou"] > state.best_iou:
        state.best_iou, state.epochs_without_better = row["miou"], 0
        save_checkpoint(run.path / "best_iou.pt", card, state.inference_model.state_dict())
    if row["val_loss"] < state.best_loss:
        state.best_loss = row["val_loss"]
        save_checkpoint(run.path / "best_loss.pt", card, state.inference_model.state_dict())
    run.save_last(state, card)
    run.log_epoch(state.history)
    threshold = f" at {row['threshold']:.3f}" if row["threshold"] is not None else ""
    say(
        f"epoch {state.epoch:3d}/{state.schedule.epochs}  train {row['train_loss']:.4f}  val {row['val_loss']:.4f}  "
        f"mIoU {row['miou']:.4f}{threshold}  lr {row['lr']:.2e}  {speed.seconds:.0f} s  "
        f"{speed.row()['samples_per_second']:.1f} samples/s"
    )


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
