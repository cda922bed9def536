"""The training loop: ``train_one_epoch``, ``evaluate`` and ``fit``, for any network and task.

With mixed precision, moving average, time budget and exact resume.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common import processes
from common.command.cli import Interrupted, NonFiniteLoss, StopRequest, say
from common.command.config import TrainConfig, config_values
from common.command.progress import Work, duration, progress
from common.data.sampling import EpochBatches
from common.metrics.split_scores import SplitScores
from common.networks.norm import shared_batch_norm, steady_batch_norm
from common.networks.precision import Precision, peak_memory_mb
from common.samples import SegmentationData
from common.training.budget import Budget, end_of
from common.training.compiling import compiled, told_in_a_line
from common.training.epochs import Speed, end_epoch
from common.training.estimate import Estimate, estimate, print_plan
from common.training.experiment import Batch, Engine, Experiment
from common.training.loading import choose_workers, closing_workers, part, training_loader, validation_loader
from common.training.pictures import WATCHED, draw_epoch
from common.training.running import Running
from common.training.runs import RunFolder
from common.training.schedule import Clock, Schedule
from common.training.state import MovingAverage, TrainState, draw_apart
from common.training.together import shared_network, unsynchronized


def seed_everything(seed: int) -> None:
    """Seed every global random generator."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


Outcome = Literal["finished", "interrupted", "expired"]


def train_one_epoch(
    state: TrainState, loader: DataLoader[Batch], engine: Engine, clock: Clock, config: TrainConfig, forward: nn.Module
) -> Outcome:
    """Optimize over the batches that ``loader`` still has, updating ``state`` in place.

    Ends early, always after a whole optimization step, when a stop was asked for or the clock expired.

    Args:
        state: the training.
        loader: what is left of the epoch.
        engine: how batches are computed.
        clock: progress and budget.
        config: for rate, accumulation and clipping.
        forward: the network, its compiled form, or the one that averages gradients over processes.

    Raises:
        NonFiniteLoss: the loss is NaN or infinite; names the batch's files and its value.
    """
    state.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    batches = iter(loader)  # its workers start before the bar
    outcome: Outcome = "finished"
    running = Running(state, engine.class_count, engine.precision.device)
    _decide(state, engine, clock)
    with Work(f"epoch {state.epoch + 1}/{config.epochs}", len(loader), "batch") as work:
        work.advance(state.batch)
        for group in _groups(batches, config.grad_accum):
            for options in state.optimizer.param_groups:
                options["lr"] = config.lr * state.schedule.value(state.step, state.progress)
            for number, batch in enumerate(group, start=1):
                with unsynchronized(forward, wanted=number < len(group)):
                    _add_gradients(running, engine.receive(batch), engine, forward, len(group))
                left = clock.left(state.step)
                note = f"loss {running.mean_loss:.4f}"
                work.advance(1, note + (f", {duration(left)} left" if left is not None else ""))
            _optimize(state, config.clip_norm)
            outcome = _decide(state, engine, clock)
            if outcome != "finished":
                break
    running.end()
    return outcome


def _decide(state: TrainState, engine: Engine, clock: Clock) -> Outcome:
    """Whether to go on, and how far the training is: the same answer in all processes."""
    stop, late, state.progress = processes.largest(engine.interrupted, clock.expired, clock.progress(state.step))
    return "interrupted" if stop else "expired" if late else "finished"


def _add_gradients(running: Running, batch: Batch, engine: Engine, forward: nn.Module, group: int) -> None:
    """Add a batch's gradients, its loss and its hits to those of its group of batches and of the epoch."""
    logits = engine.logits(forward, batch)
    loss, target = engine.criterion(logits, batch), batch["target"]
    with torch.no_grad():
        found = engine.classes(_at_size(logits.detach(), target.shape[-2:]), running.state.threshold)
    running.add(loss.detach(), batch["id"], found, target)
    torch.autograd.backward(running.state.scaler.scale(loss / group))


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
    images: DataLoader[Batch],
    scores: SplitScores,
    engine: Engine,
    *,
    what: str = "validation",
    until: float = math.inf,
) -> SplitScores:
    """Run ``model`` over images and add each to ``scores`` (which is returned), incomplete if a stop came.

    All processes return the scores of the images of all. Logits of a network that saw the image at another size than
    its truth's are brought to that size. After ``until`` (on the monotonic
    clock) no further image is begun, but one is always seen.

    Raises:
        NonFiniteLoss: the loss of an image is NaN or infinite; names its files.
    """
    model.eval()
    batches = iter(progress(images, what, "image"))
    for _ in range(int(*processes.largest(len(images)))):  # another process may have one more
        batch = next(batches, None)
        problem = "" if batch is None else _judge(model, engine.receive(batch), scores, engine)
        stop, late, wrong = processes.largest(engine.interrupted, time.monotonic() >= until, bool(problem))
        if wrong:
            raise NonFiniteLoss("; ".join(filter(None, processes.gathered(problem))))
        if stop or late:
            break
    if processes.count() > 1:
        scores.join(processes.gathered, processes.add_up)
    return scores


def _judge(model: nn.Module, batch: Batch, scores: SplitScores, engine: Engine) -> str:
    """Add an image to the scores; what is wrong if its loss is not finite."""
    logits = _at_size(engine.logits(model, batch), batch["target"].shape[-2:])
    name, loss = str(batch["id"][0]), float(engine.criterion(logits, batch))
    if not math.isfinite(loss):
        return f"the loss of {name} is {loss} in evaluation; lower --lr or look at the file"
    scores.update(engine.probabilities(logits), batch["target"], loss, [name])
    return ""


def _at_size(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear")


def fit(experiment: Experiment, config: TrainConfig, run: RunFolder, precision: Precision) -> TrainState:
    """Train a network for ``--epochs`` or ``--max-minutes``, resumable after every epoch and after a signal.

    Writes ``best_iou.pt``, ``best_loss.pt``, ``last.pt``, ``metrics.csv`` and TensorBoard events into ``run``. However
    short the budget, one optimization step is done and validated, so that these files exist. The network is moved to
    the device.

    Raises:
        ValueError: the budget is too short for a single step, or a threshold is given for more than two classes.
        NonFiniteLoss: see ``train_one_epoch``.
        Interrupted: SIGINT or SIGTERM came; ``last.pt`` holds the state in the middle of the epoch.
    """
    rank, count = processes.rank(), processes.count()
    sampler = EpochBatches(len(experiment.train_data), config.batch_size, config.seed, rank, count)
    experiment.model.to(precision.device)
    budget = Budget(end_of(config), experiment.test_images or len(experiment.val_data))
    expected = processes.from_first(lambda: _claim(experiment, config, run, precision, (len(sampler), budget)))
    budget.measure(expected.image, time.monotonic())
    card = replace(experiment.card, config=config_values(config))
    state = processes.in_turn(lambda: _begin(experiment, config, run, precision, len(sampler)))
    print_plan(card.task, state, config, precision, len(sampler), expected.epoch)
    watched = _watched(experiment.val_data, budget, config)
    steps = config.epochs * math.ceil(len(sampler) / config.grad_accum)
    clock = Clock(steps, budget.optimization_end(len(watched)), start_progress=state.progress)
    workers = choose_workers(
        config.workers, expected, config.epochs * len(sampler), 60 * config.max_minutes or math.inf
    )
    batches, images = training_loader(experiment.train_data, sampler, workers), validation_loader(watched, workers)
    forward = _forward(state.model, config, precision.device, expected.epoch * config.epochs)
    with _listening(run, batches, images) as stop:
        engine = Engine.of(experiment, precision, stop)
        while not _is_done(state, config, clock):
            sampler.epoch, sampler.first_batch = state.epoch, state.batch
            started, first = time.monotonic(), state.batch
            outcome = train_one_epoch(state, batches, engine, clock, config, forward)
            seconds, samples = time.monotonic() - started, (state.batch - first) * sampler.batch_size
            scores = SplitScores(card.classes, threshold=config.threshold, device=precision.device, quick=True)
            if outcome == "interrupted" or _validate(state, images, scores, engine, clock, budget) == "interrupted":
                run.save_last(state, replace(card, threshold=state.threshold))
                break
            speed = Speed(seconds, samples, peak_memory_mb(precision.device))
            choice = config.one_standard_error
            end_epoch(state, scores, run, card, speed, len(watched), one_standard_error=choice)
            if processes.is_first() and time.monotonic() + WATCHED * budget.image_seconds < budget.validation_end:
                draw_epoch(state, experiment, engine, run)
            clock.deadline = min(clock.deadline, budget.optimization_end(len(watched)))
    (signum,) = processes.largest(stop.signum or 0)
    if signum:
        last = run.path / "last.pt"
        raise Interrupted(int(signum), f"stopped by signal {int(signum)} and saved; go on with --resume {last}")
    return state


@contextmanager
def _listening(run: RunFolder, *loaders: DataLoader[Batch]) -> Iterator[StopRequest]:
    """Note signals, write the run's events and tell in a line what cannot be compiled; end the data workers at last."""
    with (
        StopRequest(patient=processes.count() > 1).listening() as stop,
        run.writing(),
        closing_workers(*loaders),
        told_in_a_line(),
    ):
        yield stop


def _forward(model: nn.Module, config: TrainConfig, device: torch.device, seconds: float) -> nn.Module:
    """The network as batches go through it in a training of so long: compiled, or shared with other processes."""
    if processes.count() > 1:
        return shared_network(model, device)
    return compiled(model, config.compile, device, min(seconds, 60 * config.max_minutes or math.inf))


def _validate(
    state: TrainState, images: DataLoader[Batch], scores: SplitScores, engine: Engine, clock: Clock, budget: Budget
) -> Outcome:
    """Score the network after an epoch, while there is time, and plan the next ones with what an image took."""
    started, what = time.monotonic(), f"validation {state.epoch + 1}/{state.schedule.epochs}"
    evaluate(state.inference_model, images, scores, engine, what=what, until=budget.validation_end)
    outcome = _decide(state, engine, clock)
    if outcome != "interrupted":
        now = time.monotonic()
        budget.measure((now - started) / math.ceil(scores.n_images / processes.count()), now)
    return outcome


def _claim(
    experiment: Experiment, config: TrainConfig, run: RunFolder, precision: Precision, plan: tuple[int, Budget]
) -> Estimate:
    """Measure what the run will take, see whether there is time for it, and make its folder."""
    if config.threshold is not None and len(experiment.card.classes) != 2:
        raise ValueError(f"--threshold is for two classes, here are {len(experiment.card.classes)}; leave it out")
    batches, budget = plan
    expected = estimate(experiment, config, batches, precision)
    budget.measure(expected.image, time.monotonic())
    budget.require(expected.step, time.monotonic())
    run.create(config, experiment.card.split)
    if experiment.annotate is not None:
        experiment.annotate(run.path)
    return expected


def _watched(data: SegmentationData, budget: Budget, config: TrainConfig) -> SegmentationData:
    """The validation images that there is time for; says so where that is not all of them."""
    indices = processes.from_first(lambda: budget.watched(len(data), config.seed, time.monotonic()))
    if len(indices) < len(data):
        seconds = len(data) / processes.count() * budget.image_seconds
        say(
            f"note: epochs are judged by {len(indices)} of {len(data)} validation images, drawn at random: all would "
            f"take {duration(seconds)} of --max-minutes {config.max_minutes:g}"
        )
    return part(data, indices)


def _begin(
    experiment: Experiment, config: TrainConfig, run: RunFolder, precision: Precision, batches: int
) -> TrainState:
    """The state before the first step, or where the run to be resumed ended.

    Raises:
        ValueError: that one is damaged, or of another training.
    """
    one = processes.count() == 1
    model = steady_batch_norm(experiment.model) if one else shared_batch_norm(experiment.model, precision.device)
    model.to(precision.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    falls = (config.lr_factor, config.lr_step, config.lr_patience, config.lr_min / config.lr)
    schedule = Schedule(config.scheduler, config.epochs, config.warmup_steps, *falls)
    scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.needs_scaler)
    state = TrainState(model, optimizer, schedule, scaler, MovingAverage(model, config.ema) if config.ema else None)
    if config.threshold is not None:
        state.threshold = config.threshold
    if not processes.is_first():
        draw_apart(config.seed)
    if run.resume_from is not None:
        run.restore(state, experiment.card.task)
    if state.batch > batches or len(state.hits) != (len(experiment.card.classes) if state.batch else 0):
        raise ValueError(f"{run.resume_from} is damaged: it has done {state.batch} batches of {batches} otherwise")
    return state


def _is_done(state: TrainState, config: TrainConfig, clock: Clock) -> bool:
    if config.early_stopping and state.epochs_without_better >= config.early_stopping:
        say(f"early stopping: {state.epochs_without_better} epochs without a better validation mIoU")
        return True
    (late,) = processes.largest(clock.expired)
    return state.epoch >= config.epochs or (state.epoch > 0 and bool(late))
