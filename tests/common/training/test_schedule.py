"""Learning rate, order of samples and average of weights over a run."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from common.data.sampling import EpochBatches
from common.training.schedule import Schedule
from common.training.state import MovingAverage

EPOCHS, STEPS = 12, 5


def ours(schedule):
    """Factors at every step of a run of EPOCHS epochs of STEPS steps."""
    total = EPOCHS * STEPS
    return [schedule.value(step, step / total) for step in range(total)]


def theirs(make, per_epoch):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, factors = make(optimizer), []
    for step in range(EPOCHS * STEPS):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if not per_epoch or (step + 1) % STEPS == 0:
            scheduler.step()
    return factors


@pytest.mark.parametrize(
    ("schedule", "make", "per_epoch"),
    [
        (Schedule("constant", EPOCHS), lambda o: lr_scheduler.ConstantLR(o, factor=1.0), False),
        (Schedule("step", EPOCHS, factor=0.3, period=3), lambda o: lr_scheduler.StepLR(o, 3, 0.3), True),
        (Schedule("step", EPOCHS, factor=0.5, period=7), lambda o: lr_scheduler.StepLR(o, 7, 0.5), True),
        (Schedule("poly", EPOCHS), lambda o: lr_scheduler.PolynomialLR(o, EPOCHS * STEPS, power=0.9), False),
        (Schedule("cosine", EPOCHS), lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS * STEPS), False),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_shapes_equal_those_of_torch(schedule, make, per_epoch):
    np.testing.assert_allclose(ours(schedule), theirs(make, per_epoch), rtol=1e-9, atol=1e-12)


def test_steps_fall_at_the_start_of_an_epoch_however_progress_is_rounded():
    for epochs in range(1, 120):
        for epoch in range(epochs):
            value = Schedule("step", epochs, factor=0.5, period=3).value(epoch * 7, epoch * 7 / (epochs * 7))
            assert value == 0.5 ** (epoch // 3), (epoch, epochs)


@example([0.5, 0.49999, 0.49998, 0.49], 1, 0.5, 0.0)
@given(
    st.lists(st.sampled_from([0.5, 0.49999, 0.499, 0.4, 0.6, 1.0, 0.1]), max_size=40),
    st.integers(0, 4),
    st.floats(0.1, 0.9),
    st.sampled_from([0.0, 0.2]),
)
@settings(deadline=None, max_examples=60)
def test_plateau_equals_that_of_torch(losses, patience, factor, minimum):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = lr_scheduler.ReduceLROnPlateau(optimizer, factor=factor, patience=patience, min_lr=minimum, eps=0)
    schedule = Schedule("plateau", 40, factor=factor, patience=patience, minimum=minimum)
    for epoch, loss in enumerate(losses):
        reference.step(loss)
        schedule.end_epoch(loss)
        assert schedule.value(epoch, epoch / 40) == pytest.approx(optimizer.param_groups[0]["lr"])
        again = Schedule("plateau", 40, factor=factor, patience=patience, minimum=minimum)
        again.load_state(schedule.state())
        assert again == schedule


def test_only_plateau_watches_the_loss():
    schedule = Schedule("cosine", 10, patience=0)
    for _ in range(5):
        schedule.end_epoch(1.0)
    assert schedule.value(0, 0.0) == 1.0


@pytest.mark.parametrize("name", ["constant", "plateau", "step", "poly", "cosine"])
def test_warm_up_rises_linearly_to_the_shape(name):
    schedule = Schedule(name, EPOCHS, warmup_steps=3)
    plain = Schedule(name, EPOCHS)
    factors = [schedule.value(step, 0.0) for step in range(6)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    assert schedule.value(40, 0.7) == plain.value(40, 0.7)


@pytest.mark.parametrize("name", ["step", "poly", "cosine"])
def test_the_factor_never_falls_below_the_minimum(name):
    factors = ours(Schedule(name, EPOCHS, factor=0.1, period=2, minimum=0.25))
    assert min(factors) == 0.25 and max(factors) == 1.0
    assert Schedule(name, EPOCHS, minimum=0.25).value(10**6, 1.5) >= 0.25


batches = st.integers(1, 40), st.integers(1, 12), st.integers(0, 5), st.integers(0, 5)


def batches_of(length, batch_size, seed, epoch, first=0):
    sampler = EpochBatches(length, batch_size, seed)
    sampler.epoch, sampler.first_batch = epoch, first
    return list(sampler)


@given(*batches)
@settings(deadline=None)
def test_an_epoch_is_a_permutation_without_the_incomplete_batch(length, batch_size, seed, epoch):
    found = batches_of(length, batch_size, seed, epoch)
    size = min(length, batch_size)
    assert len(found) == len(EpochBatches(length, batch_size, seed)) == length // size
    assert {len(batch) for batch in found} == {size}
    indices = [index for batch in found for index, _ in batch]
    assert len(set(indices)) == len(indices) and set(indices) <= set(range(length))
    assert length % size or set(indices) == set(range(length))
    assert found == batches_of(length, batch_size, seed, epoch)


@given(*batches, st.data())
@settings(deadline=None)
def test_an_epoch_goes_on_from_any_batch(length, batch_size, seed, epoch, data):
    whole = batches_of(length, batch_size, seed, epoch)
    first = data.draw(st.integers(0, len(whole)))
    assert batches_of(length, batch_size, seed, epoch, first) == whole[first:]


@given(*batches, st.integers(1, 5))
@settings(deadline=None)
def test_processes_share_every_batch_and_none_goes_without(length, batch_size, seed, epoch, count):
    whole = batches_of(length, batch_size, seed, epoch)
    shares = [EpochBatches(length, batch_size, seed, rank, count) for rank in range(count)]
    for share in shares:
        share.epoch = epoch
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(key for part in parts for key in part) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert all(parts) or len(batch) < count


def test_every_epoch_and_seed_has_another_order_and_other_augmentation():
    found = {(seed, epoch): batches_of(50, 5, seed, epoch) for seed in range(3) for epoch in range(4)}
    orders = {tuple(index for batch in batches for index, _ in batch) for batches in found.values()}
    seeds = [seed for batches in found.values() for batch in batches for _, seed in batch]
    assert len(orders) == 12 and len(set(seeds)) == len(seeds)


def test_the_average_equals_its_closed_form():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = MovingAverage(model, 0.4)
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    for n in range(1, 12):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        model(torch.randn(8, 3))
        average.update(model)
        decay = min(0.4, (1 + n) / (10 + n))
        for key, value in model.state_dict().items():
            smooth = decay * expected[key] + (1 - decay) * value
            expected[key] = smooth if value.is_floating_point() else value.clone()
    assert average.updates == 11 and {2 / 11, 0.4} == {(1 + 1) / (10 + 1), min(0.4, 12 / 21)}
    for key, value in average.module.state_dict().items():
        torch.testing.assert_close(value, expected[key])
    assert int(average.module[1].num_batches_tracked) == 11


def test_the_average_is_a_copy_that_is_not_trained():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    average = MovingAverage(model, 0.9)
    assert not average.module.training and not any(p.requires_grad for p in average.module.parameters())
    with torch.no_grad():
        model[0].weight.fill_(100.0)
    assert float(average.module[0].weight.abs().max()) < 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        average.update(model)
    assert math.isclose(float(average.module[0].weight.mean()), 100 * 9 / 11, rel_tol=0.05)
    assert model[0].weight.requires_grad
