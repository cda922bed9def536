"""Whether a training's network is compiled: that costs half a minute first, and makes every step a little faster."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Literal, cast

import torch
from torch import nn

from common.command.cli import one_line, say
from common.command.progress import duration

SECONDS = 30.0
"""That compiling takes: measured 20 to 29 on two CPU cores."""
SEVERAL = 4
"""Compiling must win so many times what it costs."""
GAIN = {"cpu": 0.07, "cuda": 0.10}
"""Share of the time that it wins: measured on a CPU (1.08 times as fast), a cautious guess for a GPU."""


def compiled(model: nn.Module, wanted: Literal["auto", "on", "off"], device: torch.device, seconds: float) -> nn.Module:
    """The network, or its compiled form.

    Args:
        model: the network.
        wanted: ``--compile``.
        device: where it is.
        seconds: that the training will take.

    Raises:
        ValueError: there is nothing to compile with.
    """
    if wanted == "off" or (wanted == "auto" and GAIN.get(device.type, 0.0) * seconds < SEVERAL * SECONDS):
        return model
    if missing := _missing(device):
        if wanted == "on":
            raise ValueError(f"--compile on needs {missing}; install it, or use --compile off")
        say(f"note: not compiled, which would take {missing}")
        return model
    say(f"compiling the network: the first steps take about {duration(SECONDS)} longer")
    return cast(nn.Module, torch.compile(model))


@contextlib.contextmanager
def told_in_a_line() -> Iterator[None]:
    """Compiling happens in the first steps of the block; if it fails there, say what to do.

    Raises:
        ValueError: it fails.
    """
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            raise
        reason = one_line(error)[:200]
        raise ValueError(f"the network cannot be compiled here ({reason}); use --compile off") from error


def _missing(device: torch.device) -> str | None:
    """What PyTorch would compile with and cannot find; None = it is there."""
    if device.type == "cuda":
        return None if find_spec("triton") else "the package triton"
    return None if any(map(shutil.which, ("c++", "g++", "clang++", "cl"))) else "a C++ compiler (such as g++)"
