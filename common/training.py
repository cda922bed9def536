"""The training loop: ``train_one_epoch``, ``evaluate`` and ``fit``, with mixed precision, moving average, time budget and exact resume.

A dataset sample is a dictionary with ``image`` (C, H, W) float32, ``target`` (H, W) int64 (255 = ignored), ``id`` (its files, for messages)
and whatever else the task's criterion reads. A training dataset is indexed by ``sampling.Key``, a validation dataset by plain integers.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from common.checkpoint import ModelCard, save_checkpoint
from common.cli import STARTED, Interrupted, NonFiniteLoss, StopRequest, say
from common.config import TrainConfig
from common.devices import Precision, peak_memory_mb
from common.ema import MovingAverage
from common.evaluation import SplitScores
from common.runs import RunFolder
from common.sampling import EpochBatches
from common.schedule import Schedule

Batch = dict[str, Any]
Criterion = Callable[[Tensor, Batch], Tensor]
Probabilities = Callable[[Tensor], Tensor]

FINISH_SECONDS = 12.0
"""Time kept free at the end of a budget for pictures and report, besides the evaluation of the test part."""


class SegmentationData(Protocol):
    """A sized, indexable dataset of sample dictionaries."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Batch: ...


@dataclass
class TrainState:
    """Everything that changes while training, and therefore everything that resuming must bring back."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    average: MovingAverage | None
    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    progress: float = 0.0
    best_iou: float = -1.0
    best_loss: float = math.inf
    epochs_without_better: int = 0
    threshold: float = 0.5
    history: list[dict[str, Any]] = field(default_factory=list)

    PLAIN = ("epoch", "batch", "step", "loss_sum", "progress", "best_iou", "best_loss", "epochs_without_better", "threshold", "history")

    @property
    def inference_model(self) -> nn.Module:
        """The network that is validated and saved as best: the moving average if there is one."""
        return self.average.module if self.average else self.model

    def snapshot(self) -> dict[str, Any]:
        """Plain values and tensors only, so that the checkpoint loads with ``weights_only=True``."""
        return {
            **{name: getattr(self, name) for name in self.PLAIN},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.module.state_dict() if self.average else None,
            "average_updates": self.average.updates if self.average else 0,
            "rng": rng_state(),
        }

    def restore(self, model: dict[str, Tensor], saved: dict[str, Any]) -> None:
        """Go on from a snapshot.

        Raises:
            ValueError: the snapshot belongs to another network or was taken with or without a moving average.
        """
        if (saved["average"] is None) != (self.average is None):
            raise ValueError("--ema differs between this command and the run to resume; use the same value")
        try:
            self.model.load_state_dict(model)
            if self.average:
                self.average.module.load_state_dict(saved["average"])
            self.optimizer.load_state_dict(saved["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"the run to resume has another network: {str(error).splitlines()[0]}") from error
        if self.average:
            self.average.updates = saved["average_updates"]
        self.schedule.load_state(saved["schedule"])
        self.scaler.load_state_dict(saved["scaler"])
        for name in self.PLAIN:
            setattr(self, name, saved[name])
        set_rng_state(saved["rng"])


def rng_state() -> dict[str, Any]:
    """State of every global random generator, as tensors and plain values."""
    numpy_state = cast(dict[str, Any], np.random.get_state(legacy=False))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {**numpy_state, "state": {"key": numpy_state["state"]["key"].tolist(), "pos": int(numpy_state["state"]["pos"])}},
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what ``rng_state`` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    inner = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {"key": np.array(inner["key"], np.uint32), "pos": inner["pos"]}})
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def seed_everything(seed: int) -> None:
    """Seed every global random generator."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@dataclass
class Clock:
    """Progress of a run in [0, 1], by optimization steps or by the time budget, whichever is further."""

    total_steps: int
    deadline: float = math.inf
    start: float = field(default_factory=time.monotonic)
    start_progress: float = 0.0

    def progress(self, step: int) -> float:
        """Progress at optimization step ``step`` now."""
        by_steps = step / self.total_steps
        if math.isinf(self.deadline):
            return by_steps
        share = (time.monotonic() - self.start) / max(self.deadline - self.start, 1e-3)
        return min(1.0, max(by_steps, self.start_progress + (1 - self.start_progress) * share))

    @property
    def expired(self) -> bool:
        """Whether the budget for optimization steps is used up."""
        return time.monotonic() >= self.deadline


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
                raise NonFiniteLoss(f"the loss became {value} in epoch {state.epoch + 1}, batch {state.batch + 1}; its files: {names}; lower --lr or look at them")
            state.scaler.scale(loss / len(group)).backward()
            state.loss_sum += value
            state.batch += 1
        _optimize(state, clip_norm)
        if stop is not None and stop.signum is not None:
            return "interrupted"
        if clock.expired:
            return "expired"
    return "finished"


def _groups(batches: Any, size: int) -> Iterator[list[Batch]]:
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
) -> SplitScores:
    """Run ``model`` over ``data`` and add every image to ``scores`` (which is returned)."""
    model.eval()
    loader = DataLoader(cast("Dataset[Batch]", data), batch_size=batch_size, num_workers=workers)
    for batch in tqdm(loader, desc="evaluate", leave=False, disable=None):
        batch = to_device(batch, precision.device)
        with precision.autocast():
            logits = model(batch["image"])
        logits = logits.float()
        loss = float(criterion(logits, batch))
        scores.update(probabilities(logits), batch["target"], loss, [str(name) for name in batch["id"]])
    return scores


def fit(
    model: nn.Module,
    train_data: SegmentationData,
    val_data: SegmentationData,
    *,
    criterion: Criterion,
    probabilities: Probabilities,
    card: ModelCard,
    config: TrainConfig,
    run: RunFolder,
    precision: Precision,
    test_images: int = 0,
) -> TrainState:
    """Train ``model``: the whole of ``--epochs`` or ``--max-minutes``, resumable after every epoch and after a signal.

    Writes ``best_iou.pt``, ``best_loss.pt``, ``last.pt``, ``metrics.csv`` and TensorBoard events into ``run``. ``card.threshold`` is chosen anew on
    the validation part in every epoch.

    Raises:
        NonFiniteLoss: see ``train_one_epoch``.
        Interrupted: SIGINT or SIGTERM came; ``last.pt`` holds the state in the middle of the epoch.
    """
    model.to(precision.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sampler = EpochBatches(len(cast(Sized, train_data)), config.batch_size, config.seed)
    state = _new_state(model, config, precision)
    if run.resume_from is not None:
        run.restore(state)
    val_seconds = print_estimate(state, train_data, val_data, len(sampler), config, precision)
    finish_seconds = FINISH_SECONDS + val_seconds * 1.5 * (1 + test_images / len(val_data))
    deadline = STARTED + 60 * config.max_minutes - finish_seconds if config.max_minutes else math.inf
    total_steps = config.epochs * math.ceil(len(sampler) / config.grad_accum)
    clock = Clock(total_steps, deadline, start_progress=state.progress)
    loader = DataLoader(
        cast("Dataset[Batch]", train_data), batch_sampler=sampler, num_workers=config.workers, pin_memory=precision.device.type == "cuda"
    )
    forward = cast(nn.Module, torch.compile(model)) if config.compile else model
    stop = StopRequest()
    with ExitStack() as stack:
        stack.enter_context(stop.listening())
        stack.callback(run.close)
        while state.epoch < config.epochs and not clock.expired and not _should_stop_early(state, config):
            sampler.epoch, sampler.first_batch = state.epoch, state.batch
            started, first = time.monotonic(), state.batch
            outcome = train_one_epoch(
                state, loader, criterion, precision=precision, clock=clock, lr=config.lr, grad_accum=config.grad_accum,
                clip_norm=config.clip_norm, stop=stop, forward=forward,
            )  # fmt: skip
            if outcome == "interrupted":
                run.save_last(state, card)
                raise Interrupted(cast(int, stop.signum), f"stopped by signal {stop.signum} and saved; go on with --resume {run.path / 'last.pt'}")
            seconds = time.monotonic() - started
            scores = SplitScores(card.classes, threshold=None, device=precision.device)
            evaluate(state.inference_model, val_data, scores, criterion=criterion, probabilities=probabilities, precision=precision)
            _end_epoch(state, scores, run, card, seconds, (state.batch - first) * sampler.batch_size, precision)
    return state


def _new_state(model: nn.Module, config: TrainConfig, precision: Precision) -> TrainState:
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = Schedule(
        config.scheduler, config.epochs, config.warmup_steps, config.lr_factor, config.lr_step, config.lr_patience, config.lr_min / config.lr
    )
    scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.needs_scaler)
    return TrainState(model, optimizer, schedule, scaler, MovingAverage(model, config.ema) if config.ema else None)


def _should_stop_early(state: TrainState, config: TrainConfig) -> bool:
    if config.early_stopping and state.epochs_without_better >= config.early_stopping:
        say(f"early stopping: {state.epochs_without_better} epochs without a better validation mIoU")
        return True
    return False


def _end_epoch(
    state: TrainState, scores: SplitScores, run: RunFolder, card: ModelCard, seconds: float, samples: int, precision: Precision
) -> None:
    """Book an epoch: its row in the history, the best checkpoints, then ``last.pt`` (in that order, so that a kill in between repeats the epoch)."""
    result = scores.result()
    miou, val_loss = result["miou"] or 0.0, cast(float, result["loss"])
    row = {
        "epoch": state.epoch + 1,
        "lr": state.optimizer.param_groups[0]["lr"],
        "train_loss": state.loss_sum / state.batch,
        "val_loss": val_loss,
        "pixel_accuracy": result["pixel_accuracy"],
        "miou": miou,
        "f1": result["f1"],
        **{f"iou_{name}": value for name, value in result["per_class_iou"].items()},
        "threshold": result["threshold"],
        "seconds": round(seconds, 2),
        "samples_per_second": round(samples / max(seconds, 1e-9), 2),
        "peak_memory_mb": round(peak_memory_mb(precision.device), 1),
    }
    state.history.append(row)
    state.epoch, state.batch, state.loss_sum = state.epoch + 1, 0, 0.0
    state.threshold = result["threshold"] if result["threshold"] is not None else 0.5
    state.schedule.end_epoch(val_loss)
    best = replace(card, threshold=state.threshold, scores={k: v for k, v in row.items() if k not in ("seconds", "samples_per_second", "peak_memory_mb")})
    state.epochs_without_better += 1
    if miou > state.best_iou:
        state.best_iou, state.epochs_without_better = miou, 0
        save_checkpoint(run.path / "best_iou.pt", best, state.inference_model.state_dict())
    if val_loss < state.best_loss:
        state.best_loss = val_loss
        save_checkpoint(run.path / "best_loss.pt", best, state.inference_model.state_dict())
    run.save_last(state, best)
    run.log_epoch(state.history)
    threshold = f" at {row['threshold']:.3f}" if row["threshold"] is not None else ""
    say(
        f"epoch {state.epoch:3d}  train {row['train_loss']:.4f}  val {val_loss:.4f}  mIoU {miou:.4f}{threshold}  "
        f"lr {row['lr']:.2e}  {seconds:.0f} s  {row['samples_per_second']:.1f} samples/s"
    )


@torch.inference_mode()
def print_estimate(
    state: TrainState, train_data: SegmentationData, val_data: SegmentationData, batches: int, config: TrainConfig, precision: Precision
) -> float:
    """Time one forward pass, print what the run will take, and return the seconds of one validation.

    A training step is taken as three forward passes. Nothing that the run depends on changes: evaluation mode, no random draws.
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
    planned = f"{config.max_minutes:g} min at most" if config.max_minutes else f"about {epoch * config.epochs / 60:.1f} min"
    say(f"network: {parameters:.3f} M parameters on {precision}; {config.epochs} epochs x {batches} batches, {epoch:.0f} s an epoch, {planned}")
    return seconds * len(val_data)
