"""Training in several processes: they join, the first one speaks, and they end together."""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from common import processes
from common.command.cli import NON_FINITE, PARTIAL, VOICE, Interrupted, NonFiniteLoss, ProcessLost, say
from common.command.config import TrainConfig

PATIENCE = timedelta(hours=12)
"""A process may read or validate for so long while the others wait for it."""
LOST = ("gloo", "nccl", "connection closed", "connection reset", "socket")
"""What the error of a process says whose partner has gone."""


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the other processes that ``torchrun`` started, if there are any; all but the first are silent.

    Raises:
        SystemExit: all processes end for the same reason, which the first one has told.
        ProcessLost: another one has gone.
    """
    if not processes.launched():
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        with contextlib.nullcontext() if processes.is_first() else _silence():
            yield
    except (Interrupted, NonFiniteLoss) as error:
        _leave_together(error)
    except RuntimeError as error:
        if not any(sign in str(error).lower() for sign in LOST):
            _sign()
            raise
        if not processes.is_first():
            raise SystemExit(PARTIAL) from error
        kept = "the run goes on from its last.pt, if there is one, with --resume"
        raise ProcessLost(f"another process of this training has ended, so this one ends too; {kept}") from error
    except Exception:
        _sign()
        raise
    dist.destroy_process_group()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _sign() -> None:
    """Let the error of a process that is not the first say whose it is."""
    if not processes.is_first():
        VOICE.prefix = f"process {processes.rank() + 1} of {processes.count()}: "


def _leave_together(error: Interrupted | NonFiniteLoss) -> None:
    """End for a reason that all processes have; ``torchrun`` ends those that are left when the first one has gone."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = NON_FINITE if isinstance(error, NonFiniteLoss) else 128 + error.signum
    if processes.is_first():
        say(f"error: {error}" if code == NON_FINITE else str(error))
    processes.largest(0)
    raise SystemExit(code)


def check_processes(config: TrainConfig, samples: int) -> None:
    """Refuse settings that several processes cannot share.

    Args:
        config: the resolved configuration.
        samples: in the training set; a batch is never larger.

    Raises:
        ValueError: a batch has fewer samples than there are processes, or the network is to be compiled.
    """
    count, batch = processes.count(), min(config.batch_size, samples)
    if batch < count:
        raise ValueError(
            f"a batch of {batch} samples cannot be shared by {count} processes; raise --batch-size (it is that of all "
            "processes together) or start fewer"
        )
    if count > 1 and config.compile == "on":
        raise ValueError("--compile on is for one process; leave it out under torchrun")


def shared_network(model: nn.Module, device: torch.device) -> nn.Module:
    """The network whose gradients are averaged over the processes; of a single process the network itself."""
    if processes.count() == 1:
        return model
    devices = [device] if device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions of PyTorch give broadcast_buffers another name
        return nn.parallel.DistributedDataParallel(  # buffers are equal: of the whole batch
            model, devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )


def unsynchronized(network: nn.Module, *, wanted: bool) -> contextlib.AbstractContextManager[None]:
    """Keep the gradients of a batch in this process, if wanted: those of a later batch are averaged with them."""
    if wanted and isinstance(network, nn.parallel.DistributedDataParallel):
        return network.no_sync()
    return contextlib.nullcontext()
