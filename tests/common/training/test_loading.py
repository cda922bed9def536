"""Data workers are started where they pay, and only there."""

import os

import pytest

from common.training import loading
from common.training.estimate import Estimate
from common.training.loading import choose_workers, usable_cores


def chosen(load, batch, batches=100_000, wanted="auto", **options):
    return choose_workers(wanted, Estimate(image=1.0, step=1.0, epoch=1.0, batch=batch, load=load), batches, **options)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Sixteen cores, where processes are forked."""
    monkeypatch.setattr(loading, "usable_cores", lambda: 16)
    monkeypatch.setattr(loading.multiprocessing, "get_start_method", lambda: "fork")
    return monkeypatch


def test_what_is_given_is_taken():
    assert [chosen(10.0, 0.1, wanted=number) for number in (0, 3)] == [0, 3]


@pytest.mark.parametrize(
    ("load", "batch", "workers"),
    [(0.004, 0.1, 0), (0.006, 0.1, 1), (0.07, 0.1, 1), (0.1, 0.1, 2), (0.4, 0.1, 5), (100.0, 0.1, 15), (1.0, 0.0, 15)],
)
def test_enough_to_keep_the_network_busy_within_the_cores(load, batch, workers, capsys):
    assert chosen(load, batch) == workers
    said = capsys.readouterr().err
    assert said.startswith(f"data workers: {workers}, since a batch takes {1000 * load:.0f} ms to load") == bool(
        workers
    )


def test_none_for_a_short_run_a_single_core_or_where_processes_are_not_forked(machine):
    few = round(loading.WORTH / 0.1)  # a batch is loaded while the last one is learned
    assert chosen(0.1, 0.1, few - 1) == 0 < chosen(0.1, 0.1, few + 1)
    assert chosen(0.1, 0.1, seconds=2 * loading.WORTH - 1) == 0 < chosen(0.1, 0.1, seconds=2 * loading.WORTH + 1)
    for name, value in {"LOCAL_RANK": "0", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        machine.setenv(name, value)
    assert chosen(100.0, 0.1) == 16 // 4 - 1
    machine.setattr(loading, "usable_cores", lambda: 4)
    assert chosen(100.0, 0.1) == 0
    machine.setattr(loading, "usable_cores", lambda: 16)
    machine.setattr(loading.multiprocessing, "get_start_method", lambda: "spawn")
    assert chosen(100.0, 0.1) == 0


def test_a_job_counts_its_own_cores_where_the_system_tells(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert usable_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == 64
