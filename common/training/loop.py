"""The training loop: ``train_one_epoch``, ``evaluate`` and ``fit``, for any network and task.

With mixed precision, moving average, time budget and exact resume.

A dataset sample is a dictionary with ``image`` (C, H, W) float32, ``target`` (H, W) int64 (255 = ignored), ``id`` (its
files, for messages) and whatever tensors or names the task's criterion reads besides. A training dataset is indexed by
``sampling.Key`` and draws at random from the key's seed alone, a validation dataset by plain integers.
"""

from __future__ import annotations

import math
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from common.command.cli import STARTED, Interrupted, NonFiniteLoss, StopRequest, say
from common.command.config import TrainConfig, config_values
from common.data.sampling import EpochBatches
from common.metrics.split_scores import SplitScores
from common.networks.checkpoint import ModelCard, save_checkpoint
from common.networks.precision import Precision, peak_memory_mb
from common.training.runs import RunFolder
from common.training.schedule import Clock, Schedule
from common.training.state import MovingAverage
from common.training.state import TrainState as TrainState

Batch = dict[str, Any]
Criterion = Callable[[Tensor, Batch], Tensor]
Probabilities = Callable[[Tensor], Tensor]

FINISH_SECONDS = 12.0
"""Time kept free at the end of a budget for pictures and report, besides the evaluation of the test part."""


class SegmentationData(Protocol):
    """A sized, indexable dataset of sample dictionaries."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, key: Any, /) -> Batch:  # noqa: ANN401
        """One sample."""


def seed_everything(seed: int) -> None:
    """Seed every global random generator."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch's tensors to the device; four-dimensional ones in channels-last order, which convolutions prefer."""

    def move(value: Tensor) -> Tensor:
        if value.ndim == 4:
            return value.to(device, non_blocking=True, memory_format=torch.channels_last)
        return value.to(device, non_blocking=True)

    return {name: move(value) if isinstance(value, Tensor) else value for name, value in batch.items()}


def train_one_epoch(
    state: TrainState,
    loader: DataLoader[Batch],
    criterion: Criterion,
    *,
    precision: Precision,
    clock: Clock,
    lr: float,
    grad_accum: int = 1,
    clip_norm: float = 0.0,
    stop: StopRequest | None = None,
    forward: nn.Module | None = None,
) -> Literal["finished", "interrupted", "expired"]:
    """Optimize over the batches that ``loader`` still has, updating ``state`` in place.

    Ends early, always after a whole optimization step, when ``stop`` was asked for or the clock expired.

    Raises:
        NonFiniteLoss: the loss is NaN or infinite; names the batch's files and its value.
    """
    network = forward or state.model
    state.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    for group in _groups(tqdm(loader, desc=f"epoch {state.epoch + 1}", leave=False, disable=None), grad_accum):
        state.progress = clock.progress(state.step)
        for options in state.optimizer.param_groups:
            options["lr"] = lr * state.schedule.value(state.step, state.progress)
        for batch in group:
            batch = to_device(batch, precision.device)
            with precision.autocast():
                logits = network(batch["image"])
            loss = criterion(logits.float(), batch)
            value = float(loss.detach())
            if not math.isfinite(value):
                names = ", ".join(map(str, batch["id"]))
                raise NonFiniteLoss(
                    f"the loss became {value} in epoch {state.epoch + 1}, batch {state.batch + 1}; "
                    f"its files: {names}; lower --lr or look at them"
                )
            torch.autograd.backward(state.scaler.scale(loss / len(group)))
            state.loss_sum += value
            state.batch += 1
        _optimize(state, clip_norm)
        if stop is not None and stop.signum is not None:
            return "interrupted"
        if clock.expired:
            return "expired"
    return "finished"


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
    *,
    criterion: Criterion,
    probabilities: Probabilities,
    precision: Precision,
    workers: int = 0,
    batch_size: int = 1,
    stop: StopRequest | None = None,
) -> SplitScores:
    """Run ``model`` over ``data`` and add every image to ``scores`` (which is returned), incomplete if ``stop`` came.

    Losses are taken image by image, so that nothing depends on the batch size. Logits of a network that saw the image
    at another size than its truth's are brought to that size.

    Raises:
        NonFiniteLoss: the loss of an image is NaN or infinite; names its files.
    """
    model.eval()
    for batch in tqdm(_loader(data, workers, batch_size=batch_size), desc="evaluate", leave=False, disable=None):
        batch = to_device(batch, precision.device)
        with precision.autocast():
            logits = model(batch["image"])
        logits = _at_size(logits.float(), batch["target"].shape[-2:])
        for i, name in enumerate(batch["id"]):
            single, one = logits[i : i + 1], {key: value[i : i + 1] for key, value in batch.items()}
            loss = float(criterion(single, one))
            if not math.isfinite(loss):
                raise NonFiniteLoss(f"the loss of {name} is {loss} in evaluation; lower --lr or look at the file")
            scores.update(probabilities(single), one["target"], loss, [str(name)])
        if stop is not None and stop.signum is not None:
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


def fit(
    model: nn.Module, train_data: SegmentationData, val_data: SegmentationData, *, criterion: Criterion,
    probabilities: Probabilities, card: ModelCard, config: TrainConfig, run: RunFolder, precision: Precision,
    test_images: int = 0, on_start: Callable[[TrainState], None] | None = None,
) -> TrainState:  # fmt: skip
    """Train ``model``: the whole of ``--epochs`` or ``--max-minutes``, resumable after every epoch and after a signal.

    Writes ``best_iou.pt``, ``best_loss.pt``, ``last.pt``, ``metrics.csv`` and TensorBoard events into ``run``. However
    short the budget, one optimization step is done and validated, so that these files exist.

    Args:
        model: the network; moved to the device.
        train_data: indexed by ``sampling.Key``.
        val_data: indexed by integers.
        criterion: (logits, batch) -> scalar loss.
        probabilities: logits -> probabilities.
        card: the network's card; threshold and scores are filled in from the validation part in every epoch.
        config: the resolved configuration.
        run: where to write, and what to resume.
        precision: device and mixed precision.
        test_images: number of test samples, for whose evaluation ``--max-minutes`` keeps time.
        on_start: gets the state before the first step, for a criterion that needs the moving average or the progress.

    Raises:
        NonFiniteLoss: see ``train_one_epoch``.
        Interrupted: SIGINT or SIGTERM came; ``last.pt`` holds the state in the middle of the epoch.
    """
    card = replace(card, config=config_values(config))
    state = _begin(model, config, run, precision, card.task)
    if on_start is not None:
        on_start(state)
    sampler = EpochBatches(len(train_data), config.batch_size, config.seed)
    val_seconds = print_estimate(state, train_data, val_data, len(sampler), config, precision)
    steps, test_share = config.epochs * math.ceil(len(sampler) / config.grad_accum), test_images / len(val_data)
    clock = Clock(steps, _deadline(config, val_seconds, test_share), start_progress=state.progress)
    loader = _loader(train_data, config.workers, batch_sampler=sampler)
    forward = cast(nn.Module, torch.compile(model)) if config.compile else model
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest().listening())
        stack.callback(run.close)
        while not _is_done(state, config, clock):
            sampler.epoch, sampler.first_batch = state.epoch, state.batch
            started, first = time.monotonic(), state.batch
            train_one_epoch(
                state, loader, criterion, precision=precision, clock=clock, lr=config.lr, grad_accum=config.grad_accum,
                clip_norm=config.clip_norm, stop=stop, forward=forward,
            )  # fmt: skip
            trained = time.monotonic()
            scores = SplitScores(card.classes, device=precision.device, quick=True)
            if stop.signum is None:
                evaluate(
                    state.inference_model, val_data, scores, criterion=criterion, probabilities=probabilities,
                    precision=precision, workers=config.workers, stop=stop,
                )  # fmt: skip
            if stop.signum is not None:
                run.save_last(state, replace(card, threshold=state.threshold))
                break
            samples = (state.batch - first) * sampler.batch_size
            _end_epoch(state, scores, run, card, trained - started, samples, precision)
            clock.deadline = min(clock.deadline, _deadline(config, time.monotonic() - trained, test_share))
    if stop.signum is not None:
        last = run.path / "last.pt"
        raise Interrupted(stop.signum, f"stopped by signal {stop.signum} and saved; go on with --resume {last}")
    return state


def _deadline(config: TrainConfig, val_seconds: float, test_share: float) -> float:
    """When optimization must end for the last validation, the test part and the report to fit into the budget."""
    if not config.max_minutes:
        return math.inf
    return STARTED + 60 * config.max_minutes - FINISH_SECONDS - 1.5 * val_seconds * (1 + test_share)


def _begin(model: nn.Module, config: TrainConfig, run: RunFolder, precision: Precision, task: str) -> TrainState:
    """The state before the first step, or where the run to be resumed ended."""
    model.to(precision.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = Schedule(
        config.scheduler, config.epochs, config.warmup_steps, config.lr_factor, config.lr_step, config.lr_patience,
        config.lr_min / config.lr,
    )  # fmt: skip
    scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.needs_scaler)
    state = TrainState(model, optimizer, schedule, scaler, MovingAverage(model, config.ema) if config.ema else None)
    if run.resume_from is not None:
        run.restore(state, task)
    return state


def _is_done(state: TrainState, config: TrainConfig, clock: Clock) -> bool:
    if config.early_stopping and state.epochs_without_better >= config.early_stopping:
        say(f"early stopping: {state.epochs_without_better} epochs without a better validation mIoU")
        return True
    return state.epoch >= config.epochs or (state.epoch > 0 and clock.expired)


def _end_epoch(
    state: TrainState, scores: SplitScores, run: RunFolder, card: ModelCard, seconds: float, samples: int,
    precision: Precision,
) -> None:  # fmt: skip
    """Book an epoch: its row in the history, the best checkpoints, then ``last.pt``.

    In that order a kill in between repeats the epoch, and with it what was written.
    """
    result = scores.result()
    row = _history_row(state, result)
    speed = {
        "seconds": round(seconds, 2),
        "samples_per_second": round(samples / max(seconds, 1e-9), 2),
        "peak_memory_mb": None if (peak := peak_memory_mb(precision.device)) is None else round(peak, 1),
    }
    state.history.append({**row, **speed})
    state.epoch, state.batch, state.loss_sum = state.epoch + 1, 0, 0.0
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
        f"epoch {state.epoch:3d}  train {row['train_loss']:.4f}  val {row['val_loss']:.4f}  "
        f"mIoU {row['miou']:.4f}{threshold}  lr {row['lr']:.2e}  {seconds:.0f} s  "
        f"{speed['samples_per_second']:.1f} samples/s"
    )


def _history_row(state: TrainState, result: dict[str, Any]) -> dict[str, Any]:
    """What an epoch is judged by."""
    return {
        "epoch": state.epoch + 1,
        "lr": state.optimizer.param_groups[0]["lr"],
        "train_loss": state.loss_sum / state.batch,
        "val_loss": result["loss"],
        "pixel_accuracy": result["pixel_accuracy"],
        "miou": result["miou"] or 0.0,
        "f1": result["f1"],
        **{f"iou_{name}": value for name, value in result["per_class_iou"].items()},
        "threshold": result["threshold"],
    }


@torch.inference_mode()
def print_estimate(
    state: TrainState,
    train_data: SegmentationData,
    val_data: SegmentationData,
    batches: int,
    config: TrainConfig,
    precision: Precision,
) -> float:
    """Time one forward pass, print what the run will take, and return the seconds of one validation.

    A training step is taken as three forward passes. Nothing that the run depends on changes: evaluation mode, nothing
    drawn at random.
    """
    state.model.eval()
    image = to_device({"image": torch.as_tensor(val_data[0]["image"])[None]}, precision.device)["image"]
    seconds = math.inf
    for _ in range(2):  # the first pass sets up kernels
        started = time.monotonic()
        with precision.autocast():
            state.model(image).float().sum().item()
        seconds = min(seconds, time.monotonic() - started)
    key: Any = (0, 0)
    ratio = torch.as_tensor(train_data[key]["image"]).numel() / image.numel()
    epoch = seconds * (3 * ratio * batches * config.batch_size + len(val_data))
    parameters = sum(p.numel() for p in state.model.parameters()) / 1e6
    left = epoch * (config.epochs - state.epoch) / 60
    planned = f"{config.max_minutes:g} min at most" if config.max_minutes else f"about {left:.1f} min"
    say(
        f"network: {parameters:.3f} M parameters on {precision}; {config.epochs} epochs x {batches} batches, "
        f"{epoch:.0f} s an epoch, {planned}"
    )
    return seconds * len(val_data)
