"""A command is never silent for long: a bar on a terminal, lines elsewhere."""

import contextlib
import io
import os
import pty
import re
import threading

import pytest

from common.command import cli, progress
from common.command.progress import Work, beat, duration
from common.command.progress import progress as shown


@pytest.fixture
def quiet(monkeypatch):
    """No thread that beats by itself, and a stderr that nothing was said to since time 0."""
    monkeypatch.setattr(progress, "BEAT", 3600.0)
    monkeypatch.setattr(cli, "VOICE", cli.Voice())
    monkeypatch.setattr(cli.VOICE, "spoke", 0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)


def test_the_items_come_through_unchanged_and_are_counted(quiet):
    assert list(shown([3, 1, 2], "sorting")) == [3, 1, 2]
    assert list(shown(iter("ab"), "no length")) == ["a", "b"]
    assert not progress._open and not progress._heart


def test_a_line_every_half_minute_without_a_terminal(quiet, capsys):
    with Work("reading pictures", 40, "file") as work:
        work.advance(10, "loss 0.5")
        beat(29.0)
        assert not capsys.readouterr().err
        beat(30.0)
        line = "reading pictures: 10 of 40 files, loss 0.5, 30 s so far, about 1.5 min to go\n"
        assert capsys.readouterr().err == line


def test_whatever_is_said_is_no_silence(quiet, capsys, monkeypatch):
    with Work("reading", 40, "patch"):
        monkeypatch.setattr(cli.VOICE, "spoke", 20.0)
        beat(49.0)
        assert not capsys.readouterr().err
        beat(50.0)
        assert capsys.readouterr().err == "reading: 0 of 40 patches, 50 s so far\n"


def test_the_innermost_work_speaks(quiet, capsys):
    with Work("trials", 3), Work("drawing the report"):
        beat(100.0)
    assert capsys.readouterr().err == "drawing the report: 1.67 min so far\n"
    beat(1000.0)
    assert not capsys.readouterr().err, "nothing is under way any more"


def test_a_loop_that_is_left_is_closed(quiet):
    with pytest.raises(KeyError):
        for _ in shown(range(3), "reading"):
            raise KeyError
    for _ in shown(range(3), "reading"):
        break
    assert not progress._open and not progress._heart


def test_one_long_item_is_not_silent_either(monkeypatch):
    """The thread speaks while the item is worked on."""
    heard = threading.Event()
    monkeypatch.setattr(progress, "BEAT", 0.001)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(cli, "say", lambda line: heard.set())
    with Work("one item"):
        assert heard.wait(30)


def on_a_terminal(action):
    """What appears on a terminal of its own."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as screen, contextlib.redirect_stderr(screen):
        action()
    shown = b""
    with contextlib.suppress(OSError):  # the end of a pseudo-terminal
        while part := os.read(master, 4096):
            shown += part
    os.close(master)
    return shown.decode()


def test_a_bar_with_unit_note_and_running_clock_on_a_terminal(quiet):
    def action():
        with Work("epoch 3/30", 93, "batch") as work:
            work.advance(12, "loss 0.2134, 42 min left")
            beat(1.0)
            cli.say("note: something")

    text = on_a_terminal(action)
    bar = re.search(r"epoch 3/30: +13%.*12/93 \[.*, loss 0.2134, 42 min left\]", text)
    assert bar and "so far" not in text
    assert re.search(r"\r *\rnote: something\r\n", text), "a line takes the bar's place, and is not written behind it"


def test_a_bar_that_was_shown_is_taken_away(quiet):
    def action():
        with Work("building the network"):
            beat(1.0)
        cli.say("run folder: out")

    text = on_a_terminal(action)
    assert re.search(r"building the network: 00:00\r *\rrun folder: out\r\n$", text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (91, "1.52 min"), (5399, "90 min"), (5401, "1.5 h"), (2913000, "33.7 days")],
)
def test_times_have_units(seconds, text):
    assert duration(seconds) == text


def test_nothing_is_written_where_stderr_is_no_terminal(quiet, monkeypatch):
    text = io.StringIO()
    with contextlib.redirect_stderr(text):
        assert list(shown(range(5), "counting")) == [0, 1, 2, 3, 4]
    assert not text.getvalue()
