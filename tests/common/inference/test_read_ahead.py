from __future__ import annotations

import threading
import time

import pytest

from common.inference.read_ahead import read_ahead


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_items_come_in_order_and_all(depth):
    assert list(read_ahead(iter(range(20)), depth)) == list(range(20))
    assert list(read_ahead(iter([]), depth)) == []


def test_a_thread_prepares_no_more_than_the_depth():
    made = []

    def items():
        for number in range(50):
            made.append(number)
            yield number

    ahead = read_ahead(items(), 2)
    assert next(ahead) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:  # one handed out, two waiting, one in the thread's hand
        time.sleep(0.001)
    assert len(made) == 4
    ahead.close()
    assert len(made) <= 5


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_errors_are_raised_where_items_are_used(depth, kind):
    def items():
        yield 1
        raise kind("damaged")

    ahead = read_ahead(items(), depth)
    assert next(ahead) == 1
    with pytest.raises(kind, match="damaged"):
        next(ahead)


def test_items_are_made_in_a_thread_only_if_there_is_something_to_prepare():
    def items():
        yield threading.current_thread().name

    assert list(read_ahead(items(), 0)) == [threading.current_thread().name]
    assert list(read_ahead(items(), 1)) == ["read-ahead"]


def test_closing_ends_the_thread_and_the_items():
    closed = []

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.append(threading.current_thread().name)

    ahead = read_ahead(items(), 1)
    next(ahead)
    ahead.close()
    assert closed == ["read-ahead"]
    assert not any(thread.name == "read-ahead" for thread in threading.enumerate())
