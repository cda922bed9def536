"""What a training will take: measured on one forward pass, then printed."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common import processes
from common.command.cli import say
from common.command.config import TrainConfig
from common.command.progress import Work, duration
from common.networks.normalize import normalize
from common.networks.precision import Precision
from common.samples import SegmentationData
from common.training.experiment import Experiment, to_device
from common.training.state import TrainState

LARGEST = 512
"""Pixels of a side that are looked at for the estimate."""
SLOW = 2.0
"""Seconds of a forward pass that are not measured twice."""
MEASURED = 4
"""Training samples that are loaded for the estimate."""
ABSURD_HOURS = 12
"""Longer trainings than this are hardly meant."""


class Estimate(NamedTuple):
    """Seconds."""

    image: float
    """Of one validation image."""
    step: float
    """Of an optimization step."""
    epoch: float
    """With its validation."""
    batch: float = 0.0
    """Of the network, for a process' share of a batch."""
    load: float = 0.0
    """To load that share."""


@torch.inference_mode()
def time_forward(model: nn.Module, image: Tensor, precision: Precision) -> float:
    """Seconds of one forward pass over an image (C, H, W).

    Nothing that a run depends on changes: evaluation mode, nothing drawn at random.
    """
    model.eval()
    part = image[:, :LARGEST, :LARGEST]  # an image of a megapixel can take minutes
    images = to_device({"image": part[None]}, precision.device)["image"]
    seconds = math.inf
    for attempt in range(2):  # the first pass sets up kernels
        if attempt and seconds > SLOW:
            break
        started = time.monotonic()
        with precision.autocast():
            model(images).float().sum().item()
        seconds = min(seconds, time.monotonic() - started)
    return seconds * image.numel() / part.numel()


def estimate(experiment: Experiment, config: TrainConfig, batches: int, precision: Precision) -> Estimate:
    """Estimate epochs of so many batches; a sample of a training step is taken as three forward passes.

    Of several processes, each takes its share of a batch and of the validation images.
    """
    image = torch.as_tensor(experiment.val_data[0]["image"])
    seen = normalize(image[None], experiment.card.normalization)[0]
    with Work("measuring the network's speed"):
        seconds = time_forward(experiment.model, seen, precision)
    ratio = torch.as_tensor(experiment.train_data[(0, 0)]["image"]).numel() / image.numel()
    samples = math.ceil(min(config.batch_size, len(experiment.train_data)) / processes.count())
    batch, load = 3 * seconds * ratio * samples, _time_sample(experiment.train_data) * samples
    step = batch * min(config.grad_accum, batches)
    validation = seconds * math.ceil(len(experiment.val_data) / processes.count())
    return Estimate(seconds, step, validation + batch * batches, batch, load)


def _time_sample(data: SegmentationData) -> float:
    """Seconds to load a training sample, where the first ones have been."""
    started, count = time.monotonic(), 0
    while count < MEASURED and time.monotonic() - started < SLOW:
        data[(count % len(data), count)]
        count += 1
    return (time.monotonic() - started) / count


def print_plan(
    task: str, state: TrainState, config: TrainConfig, precision: Precision, batches: int, seconds: float
) -> None:
    """Print what the run will take, by the number of batches and the seconds of an epoch, and what to do about it."""
    parameters = sum(p.numel() for p in state.model.parameters()) / 1e6
    left = duration(seconds * (config.epochs - state.epoch))
    planned = f"{config.max_minutes:g} min at most" if config.max_minutes else f"about {left}"
    shared = f", {processes.count()} processes" if processes.count() > 1 else ""
    say(
        f"network: {parameters:.3f} M parameters on {precision}{shared}; {config.epochs} epochs x {batches} batches, "
        f"{duration(seconds)} an epoch, {planned} on this device"
    )
    if advice := advise(task, config, seconds):
        say(f"note: {advice}")


def advise(task: str, config: TrainConfig, seconds: float) -> str | None:
    """What to do where a recipe is too long for the device; None = it is not.

    Args:
        task: name of the task's folder.
        config: the resolved configuration.
        seconds: of an epoch.
    """
    hours = seconds * config.epochs / 3600
    best = f"{task}/best.yaml is made for 15 to 25 minutes of two CPU cores (--config {task}/best.yaml)"
    if config.max_minutes and seconds > 60 * config.max_minutes:
        return f"one epoch takes longer than --max-minutes {config.max_minutes:g} on this device; {best}"
    if not config.max_minutes and hours > ABSURD_HOURS:
        return f"that is {hours / 24:.1f} days on this device; {best}, and --max-minutes ends any recipe in time"
    return None
