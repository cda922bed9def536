"""The processes of one training: how many there are, which one this is, and what they find together.

``torchrun`` starts them and ``common.training.together`` joins them to a group. Without a group there is one process,
and every function here gives back what it was given.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def launched() -> bool:
    """Whether ``torchrun`` started this process as one of several."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    """Number of this process among those of its machine, from 0: that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if launched() else 0


def local_count() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() else 1


def count() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank() if count() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that speaks and writes."""
    return rank() == 0


class _Sum(torch.autograd.Function):
    """Sum of a tensor over the processes.

    Every process goes on to the same loss and sends its gradient back. So what arrives at a tensor is the gradient of
    the sum of the (equal) losses; the average over processes that follows makes it that of the one loss.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ANN401 - torch's context
        return add_up(values.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401
        return add_up(gradients[0].clone(memory_format=torch.contiguous_format))


def total(values: Tensor) -> Tensor:
    """Sum of what a loss is made of over the processes, differentiable.

    Without a gradient (an image that one process judges alone) the values are those of this process.
    """
    return cast(Tensor, _Sum.apply(values)) if count() > 1 and values.requires_grad else values


def add_up(counts: Tensor) -> Tensor:
    """Sum over the processes, in place."""
    if count() > 1:
        dist.all_reduce(counts)
    return counts


def largest(*values: float) -> tuple[float, ...]:
    """The largest of each value over the processes: a decision that all take alike."""
    if count() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tuple(tensor.tolist())


def gathered(value: T) -> list[T]:
    """The values of all processes, by rank."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def from_first(work: Callable[[], T]) -> T:
    """What ``work`` returns in the first process, for all of them.

    Raises:
        SystemExit: in the others, when it failed there.
    """
    if count() == 1:
        return work()
    answer: list[Any] = [None, None]
    if is_first():
        try:
            answer[0] = work()
        except BaseException as error:
            dist.broadcast_object_list([None, error.code if isinstance(error, SystemExit) else 2])
            raise
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise SystemExit(answer[1])
    return cast(T, answer[0])


def in_turn(work: Callable[[], T]) -> T:
    """What ``work`` returns in each process, after the first one has done it: a mistake that all make is told once.

    Raises:
        SystemExit: in the others, when it failed in the first.
    """
    if count() == 1:
        return work()
    done: list[T] = []
    from_first(lambda: done.append(work()))
    return done[0] if is_first() else work()
