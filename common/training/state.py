"""The state of a training: everything that changes while it runs, saved and restored bit for bit."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import processes
from common.training.schedule import Schedule

PLAIN = (
    "epoch", "batch", "step", "loss_sum", "hits", "progress", "best_iou", "best_without", "best_loss",
    "epochs_without_better", "threshold", "history",
)  # fmt: skip
"""Fields of the state that are saved as they are."""


class MovingAverage:
    """A second copy of ``model`` that follows it slowly.

    The decay of update n (from 1) is min(decay, (1 + n) / (10 + n)), so that short runs are not dominated by the random
    start. Floating-point buffers (BatchNorm statistics) are averaged as well, integer ones copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights of ``model``."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        ours: list[Tensor] = []
        theirs: list[Tensor] = []
        for mean, value in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                ours.append(mean)
                theirs.append(value)
            else:
                mean.copy_(value)
        torch._foreach_lerp_(ours, theirs, 1 - decay)


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
    hits: list[list[int]] = field(default_factory=list)
    """Pixels of the epoch's batches by true and by predicted class; none yet = empty."""
    progress: float = 0.0
    best_iou: float = -1.0
    best_without: list[float] = field(default_factory=list)
    """The best mIoU without a part of the images each."""
    best_loss: float = math.inf
    epochs_without_better: int = 0
    threshold: float = 0.5
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def inference_model(self) -> nn.Module:
        """The network that is validated and saved as best: the moving average if there is one."""
        return self.average.module if self.average else self.model

    def snapshot(self) -> dict[str, Any]:
        """Plain values and tensors only, so that the checkpoint loads with ``weights_only=True``.

        All processes take it together: each one's random generators are in it.
        """
        rng, *others = processes.gathered(rng_state())
        return {
            **{name: getattr(self, name) for name in PLAIN},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.module.state_dict() if self.average else None,
            "average_updates": self.average.updates if self.average else 0,
            "rng": rng,
            **({"others_rng": others} if others else {}),
        }

    def restore(self, model: dict[str, Tensor], saved: dict[str, Any]) -> None:
        """Go on from a snapshot; the weight decay stays the command's, like every other setting.

        Raises:
            ValueError: the snapshot belongs to another network or was taken with or without a moving average.
        """
        if (saved["average"] is None) != (self.average is None):
            raise ValueError("--ema differs between this command and the run to resume; use the same value")
        kept = ("params", "lr")  # the others are the command's
        settings = [{k: v for k, v in group.items() if k not in kept} for group in self.optimizer.param_groups]
        try:
            self.model.load_state_dict(model)
            if self.average:
                self.average.module.load_state_dict(saved["average"])
            self.optimizer.load_state_dict(saved["optimizer"])
            for group, own in zip(self.optimizer.param_groups, settings, strict=True):
                group.update(own, lr=float(group["lr"]))
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"the run to resume has another network: {str(error).splitlines()[0]}") from error
        except (TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"the run to resume is damaged: its optimizer's state cannot be read ({error})") from error
        _check_moments(self.optimizer)
        if self.average:
            self.average.updates = saved["average_updates"]
        self.schedule.load_state(saved["schedule"])
        if saved["scaler"]:  # empty from a run that needed none
            self.scaler.load_state_dict(saved["scaler"])
        for name in PLAIN:
            setattr(self, name, saved.get(name, getattr(self, name)))
        if processes.is_first():
            set_rng_state(saved["rng"])
            return
        self.hits = [[0 for _ in row] for row in self.hits]  # the first one has those of all
        others = saved.get("others_rng", [])
        if len(others) == processes.count() - 1:
            set_rng_state(others[processes.rank() - 1])
        else:
            draw_apart(self.step)


def _check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Make sure that every parameter has its running means, as they must be.

    Raises:
        ValueError: one has not.
    """
    for parameter, entries in optimizer.state.items():
        means = [entries.get(name) for name in ("exp_avg", "exp_avg_sq")]
        fitting = all(isinstance(mean, Tensor) and mean.shape == parameter.shape for mean in means)
        if not fitting or not isinstance(entries.get("step"), Tensor) or entries["step"].numel() != 1:
            raise ValueError("the run to resume is damaged: its optimizer's state is not of this network")
        sound = not any(bool(mean.isnan().any()) for mean in means) and not bool((means[1] < 0).any())
        if not sound or not float(entries["step"]) >= 1:
            raise ValueError("the run to resume is damaged: its optimizer's state holds impossible numbers")


def draw_apart(seed: int) -> None:
    """Let this process draw otherwise than the others that have drawn alike so far, such as in dropout."""
    torch.manual_seed(int(np.random.SeedSequence((seed, processes.rank())).generate_state(1)[0]))


def rng_state() -> dict[str, Any]:
    """State of every global random generator, as tensors and plain values."""
    numpy_state: dict[str, Any] = np.random.get_state(legacy=False)
    inner = numpy_state["state"]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {**numpy_state, "state": {"key": inner["key"].tolist(), "pos": int(inner["pos"])}},
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what ``rng_state`` returned.

    Raises:
        ValueError: it is something else.
    """
    try:
        torch.set_rng_state(state["torch"])
        for device, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda, device)
        inner = state["numpy"]["state"]
        numbers = {"key": np.array(inner["key"], np.uint32), "pos": inner["pos"]}
        np.random.set_state({**state["numpy"], "state": numbers})
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
    except (TypeError, LookupError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the run to resume is damaged: its random generators' state: {reason}") from error
