import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.files import Workplace, alone
from common.outputs import RECORD, OutputFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.tif"
    path.write_bytes(b"picture")
    return path


def deliver(folder, source, **texts):
    with OutputFolder(folder).delivery(source) as temporary:
        for name, text in texts.items():
            path = temporary / name.replace("__", "/").replace("_txt", ".txt")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


def texts(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != RECORD
    }


def test_an_output_is_replaced_by_a_later_run_on_the_same_input(tmp_path, source):
    out = tmp_path / "out"
    deliver(out, source, a_txt="one", b_txt="two")
    deliver(out, source, a_txt="three")
    assert texts(out) == {"a.txt": "three", "b.txt": "two"}
    entries = [json.loads(line) for line in (out / RECORD).read_text().splitlines()]
    assert [(entry["file"], entry["source"]) for entry in entries] == [
        ("a.txt", "../in/a.tif"), ("b.txt", "../in/a.tif"), ("a.txt", "../in/a.tif"),
    ]  # fmt: skip
    (tmp_path / "moved").mkdir()
    for name in ("in", "out"):  # both moved together
        (tmp_path / name).rename(tmp_path / "moved" / name)
    deliver(tmp_path / "moved" / "out", tmp_path / "moved" / "in" / "a.tif", a_txt="four")
    assert texts(tmp_path / "moved" / "out")["a.txt"] == "four"


@pytest.mark.parametrize("obstacle", ["user's", "edited", "other input", "folder", "link", "dangling link"])
def test_what_no_earlier_run_wrote_is_left_alone(tmp_path, source, obstacle):
    out = tmp_path / "out"
    out.mkdir()
    target, elsewhere = out / "a.txt", tmp_path / "elsewhere"
    if obstacle == "folder":
        target.mkdir()
    elif "link" in obstacle:
        if obstacle == "link":
            elsewhere.write_text("mine")
        target.symlink_to(elsewhere)
    elif obstacle == "other input":
        other = source.with_name("b.tif")
        other.touch()
        deliver(out, other, a_txt="mine")
    else:
        if obstacle == "edited":
            deliver(out, source, a_txt="ours")
        target.write_text("mine")
    before = [(path, path.lstat().st_mtime_ns) for path in out.rglob("*")]
    for _ in range(2):
        with pytest.raises(FileExistsError, match=r"a\.txt is in the way.*a\.tif.*move it"):
            deliver(out, source, a_txt="new", b_txt="new")
        with pytest.raises(FileExistsError), OutputFolder(out).delivery(source, ["a.txt"]):
            pytest.fail("nothing is begun then")
    assert [(path, path.lstat().st_mtime_ns) for path in out.rglob("*")] == before


def test_after_a_failure_nothing_is_left(tmp_path, source):
    with pytest.raises(RuntimeError), OutputFolder(tmp_path / "out").delivery(source) as temporary:
        (temporary / "a.txt").write_text("half")
        raise RuntimeError
    assert not (tmp_path / "out").exists()


def test_folders_are_replaced_as_a_whole(tmp_path, source):
    out = tmp_path / "out"
    deliver(out, source, RES__a_txt="1", RES__b_txt="2")
    deliver(out, source, RES__a_txt="3")
    assert texts(out) == {"RES/a.txt": "3"} and not list(out.glob(".*"))
    (out / "RES" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        deliver(out, source, RES__a_txt="4")
    assert texts(out) == {"RES/a.txt": "3", "RES/notes.txt": "mine"}


def test_a_run_killed_while_it_puts_files_in_place_knows_its_own(tmp_path, source, monkeypatch):
    out = tmp_path / "out"
    deliver(out, source, a_txt="old", b_txt="old")
    real, done = type(out).replace, []

    def replace(self, target):
        done.append(target)
        if len(done) == 2:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(out), "replace", replace)
        deliver(out, source, a_txt="new", b_txt="new")
    assert texts(out) == {"a.txt": "new", "b.txt": "old"}
    deliver(out, source, a_txt="again", b_txt="again")
    assert texts(out) == {"a.txt": "again", "b.txt": "again"}


def test_a_torn_record_is_read_and_a_foreign_one_refused(tmp_path, source):
    out = tmp_path / "out"
    deliver(out, source, a_txt="one")
    with (out / RECORD).open("ab") as record:
        record.write(b'{"file": "b.t')
    deliver(out, source, a_txt="two", b_txt="two")
    deliver(out, source, a_txt="three", b_txt="three")
    assert texts(out) == {"a.txt": "three", "b.txt": "three"}
    with (out / RECORD).open("a") as record:
        record.write('{"file": ' + "[" * 100_000 + "\n")
    deliver(out, source, a_txt="four")
    (out / RECORD).write_text("my notes\n")
    with pytest.raises(FileExistsError, match="no record"):
        deliver(out, source, c_txt="new")
    assert (out / RECORD).read_text() == "my notes\n" and "c.txt" not in texts(out)
    (out / RECORD).unlink()
    os.mkfifo(out / RECORD)
    with pytest.raises(FileExistsError, match="no record"):
        deliver(out, source, c_txt="new")


def test_names_of_any_bytes_and_runs_side_by_side(tmp_path):
    source = tmp_path / os.fsdecode(b"caf\xe9.tif")
    source.touch()
    one, two = OutputFolder(tmp_path / "out"), OutputFolder(tmp_path / "out")
    for folder in (one, two, one):  # each learns what the other has written meanwhile
        with folder.delivery(source) as temporary:
            (temporary / f"{source.stem}.txt").write_text(str(id(folder)))
    assert (tmp_path / "out" / f"{source.stem}.txt").read_text() == str(id(one))


def test_outputs_can_be_read_by_others(tmp_path, source):
    deliver(tmp_path / "out", source, a_txt="one", RES__a_txt="1")
    plain = tmp_path / "plain.txt"
    plain.touch()
    assert (tmp_path / "out" / "a.txt").stat().st_mode == plain.stat().st_mode


HOLD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from common.files import Workplace
place = Workplace(Path(sys.argv[2]))
print(place.claim(), flush=True)
time.sleep(99)
"""


def hold(path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, ROOT, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    return process


def test_a_workplace_is_of_one_process_and_free_when_that_is_killed(tmp_path):
    place, process = Workplace(tmp_path / ".a.partial"), hold(tmp_path / ".a.partial")
    with process:
        assert not place.claim() and f"process {process.pid} on" in place.owner()
        OutputFolder(tmp_path).sweep()
        assert place.path.exists(), "someone works there"
        process.kill()
    assert place.claim() and not Workplace(place.path).claim() and str(os.getpid()) in place.owner()
    place.remove()
    assert not list(tmp_path.iterdir())


def test_what_killed_runs_left_is_removed_but_rows_and_foreign_folders_stay(tmp_path, source):
    (tmp_path / "out").mkdir()
    for name in (".dead.partial", ".rows.partial"):
        with hold(tmp_path / "out" / name) as process:
            process.kill()
    (tmp_path / "out" / ".rows.partial" / "finished.json").touch()
    (tmp_path / "out" / ".mine.partial").mkdir()
    deliver(tmp_path / "out", source, a_txt="one")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".rows.partial", ".mine.partial", "a.txt", RECORD}


@pytest.mark.parametrize("name", ["a!b", "a;b", "new\nline", os.fsdecode(b"caf\xe9")])
def test_writers_never_see_a_path_that_they_would_misread(tmp_path, source, name):
    with OutputFolder(tmp_path / name).delivery(source) as temporary:
        assert name not in str(temporary)
        (temporary / "a.txt").write_text("one")
    assert texts(tmp_path / name) == {"a.txt": "one"}


def test_a_signal_while_a_workplace_is_removed_does_not_keep_it(tmp_path, monkeypatch):
    place, real = Workplace(tmp_path / ".a.partial"), Workplace.clear
    assert place.claim()
    (place.path / "x").touch()
    called = []

    def clear(self):
        real(self)
        called.append(self)
        if len(called) == 1:
            raise SystemExit(143)

    monkeypatch.setattr(Workplace, "clear", clear)
    with pytest.raises(SystemExit):
        place.remove()
    assert not list(tmp_path.iterdir())


def test_one_process_at_a_time_works_on_a_table(tmp_path):
    table = tmp_path / "deep" / "points.csv"
    with alone(table):
        with pytest.raises(ValueError, match=rf"points\.csv: process {os.getpid()} on .* works on it"), alone(table):
            pass
        with alone(table.with_name("other.csv")):
            pass
    with alone(table):  # given back
        pass
    assert not table.parent.exists()
