"""The sums of an epoch stay on the device between readings, and a loss that is not finite is still found and named."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common.command.cli import NonFiniteLoss
from common.losses import ONE_LOGIT, SEVERAL_LOGITS, build_loss
from common.metrics.counts import ConfusionMatrix, _counts_of_cells, pair_counts
from common.networks.normalize import normalize
from common.training.running import READ_EVERY, Running
from potsdam_points.points import at_points


def epoch(**values):
    return SimpleNamespace(**{"epoch": 2, "batch": 0, "loss_sum": 0.0, "hits": []} | values)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_counting_on_a_device_is_counting(classes):
    torch.manual_seed(classes)
    target, found = torch.randint(classes, (2, 9, 7)), torch.randint(classes, (2, 9, 7))
    target[torch.rand(target.shape) < 0.3] = 255
    matrix = ConfusionMatrix(classes)
    matrix.update(found, target)
    assert torch.equal(_counts_of_cells(found, target, classes), matrix.counts)
    assert torch.equal(pair_counts(found, target, classes), matrix.counts) and matrix.counts.sum() < target.numel()


@pytest.mark.parametrize(("channels", "terms"), [(1, ONE_LOGIT), (6, SEVERAL_LOGITS)])
def test_a_batch_asks_nothing_of_the_device_until_the_losses_are_read(channels, terms, monkeypatch):
    """On the meta device every question about a value is an error."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown there
    device = torch.device("meta")
    model = nn.Conv2d(3, channels, 1, device=device)
    loss = build_loss("+".join(terms), weight=None if channels == 1 else range(1, 7), label_smoothing=0.1)
    card = {"mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]}
    running = Running(epoch(), max(channels, 2), device)
    target = torch.zeros(2, 8, 8, dtype=torch.int64, device=device)
    for batch in range(1, READ_EVERY + 1):
        logits = model(normalize(torch.zeros(2, 3, 8, 8, dtype=torch.uint8, device=device), card))
        value = loss(*at_points(logits, target))
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if batch < READ_EVERY:
            running.add(value.detach(), ["a.png"], logits.argmax(1), target)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        running.add(value.detach(), ["a.png"], logits.argmax(1), target)


def test_a_loss_that_is_not_finite_is_named_also_when_it_is_read_later():
    maps = torch.zeros(1, 2, 2, dtype=torch.int64)
    for last in (3, 4):  # read at the end of the epoch, and in its middle
        state = epoch(batch=5, loss_sum=1.0, hits=[[7, 0], [0, 1]])
        running = Running(state, 2, torch.device("cpu"))
        running.every = 4
        values = [torch.tensor(value) for value in (0.5, math.inf, 0.25, math.nan)][:last]
        with pytest.raises(
            NonFiniteLoss, match=r"the loss became inf in epoch 3, batch 7; its files: b1\.png; lower --lr"
        ):
            for number, value in enumerate(values):
                running.add(value, [f"b{number}.png"], maps, maps)
            running.end()


def test_the_sums_of_an_epoch_go_on_from_where_it_was_stopped():
    maps = torch.tensor([[[0, 1], [1, 255]]])
    state = epoch(batch=5, loss_sum=1.0, hits=[[7, 0], [0, 1]])
    running = Running(state, 2, torch.device("cpu"))
    running.every = 2
    for value in (0.5, 0.25, 0.125):
        running.add(torch.tensor(value), ["a.png"], torch.ones_like(maps), maps)
    assert (state.batch, state.loss_sum, running.mean_loss) == (8, 1.75, 1.75 / 7)
    running.end()
    assert (state.loss_sum, state.hits) == (1.875, [[7, 3], [0, 7]])
