"""Points: what was acknowledged is on the disk, and what cannot be is refused."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from potsdam_points.labeling.store import Point, PointStore
from potsdam_points.points import read_points as read_table

SIZES = {"7": (40, 60)}
NAMES = ["impervious", "building", "low_vegetation", "tree", "car", "clutter"]
ROOT = Path(__file__).parents[3]


def read_points(path):
    """Columns x, y, class of each picture, as training reads them (it also keeps the line)."""
    return {name: rows[:, :3] for name, rows in read_table(path).items()}


@pytest.fixture
def store(tmp_path):
    return PointStore(tmp_path / "points.csv", NAMES, SIZES)


def test_every_change_is_in_the_table_that_training_reads(store):
    first, second = store.add(Point("7", 3, 4, 1)), store.add(Point("7", 59, 39, 5))
    assert read_points(store.path)["7"].tolist() == [[3, 4, 1], [59, 39, 5]]
    store.change(first, x=8, y=9)
    store.change(second, label=0)
    assert read_points(store.path)["7"].tolist() == [[8, 9, 1], [59, 39, 0]]
    store.remove(first)
    assert read_points(store.path)["7"].tolist() == [[59, 39, 0]] and store.counts() == [1, 0, 0, 0, 0, 0]
    assert list(store.path.parent.iterdir()) == [store.path]


def test_a_new_start_goes_on_and_keeps_rows_of_other_pictures(tmp_path):
    (tmp_path / "points.csv").write_text("id,x,y,class\n12,900,900,car\n7,1,2,tree\n7,3,4,1\n", encoding="utf-8")
    store = PointStore(tmp_path / "points.csv", NAMES, SIZES)
    assert {(p.x, p.y, p.label) for p in store.of("7").values()} == {(1, 2, 3), (3, 4, 1)}
    store.add(Point("7", 5, 6, 0))
    assert read_points(store.path)["12"].tolist() == [[900, 900, 4]] and len(read_points(store.path)["7"]) == 3


@pytest.mark.parametrize(
    ("point", "words"),
    [
        (Point("7", 60, 0, 0), "60, 0 lies outside of 7"),
        (Point("7", 0, -1, 0), "lies outside"),
        (Point("7", 0, 0, 6), "class 6 is none of"),
        (Point("8", 0, 0, 0), "no image '8' is open"),
    ],
)
def test_points_that_cannot_be_are_refused(store, point, words):
    with pytest.raises(ValueError, match=words):
        store.add(point)
    assert not store.path.exists()


def test_a_move_out_of_the_picture_leaves_the_point(store):
    number = store.add(Point("7", 3, 4, 1))
    with pytest.raises(ValueError, match="outside"):
        store.change(number, x=99)
    assert store.of("7")[number] == Point("7", 3, 4, 1) and read_points(store.path)["7"].tolist() == [[3, 4, 1]]


@pytest.mark.parametrize("number", [0, 5])
def test_points_that_are_not_there(store, number):
    with pytest.raises(KeyError):
        store.remove(number)


def test_a_table_that_somebody_else_changed_is_not_written_over(store):
    store.add(Point("7", 3, 4, 1))
    with store.path.open("a") as file:
        file.write("7,9,9,car\n")
    with pytest.raises(OSError, match="changed by another program"):
        store.add(Point("7", 5, 5, 1))
    assert read_points(store.path)["7"].tolist() == [[3, 4, 1], [9, 9, 4]] and len(store.of("7")) == 1


def test_a_full_disk_loses_nothing(store, monkeypatch):
    store.add(Point("7", 3, 4, 1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("potsdam_points.labeling.store.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        store.add(Point("7", 5, 5, 1))
    assert len(store.of("7")) == 1 and read_points(store.path)["7"].tolist() == [[3, 4, 1]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,x,class\n", "column y is missing"),
        ("id,x,y,class\n7,1,1,tree\n7,a,1,tree\n", "line 3"),
        ("id,x,y,class\n7,99,1,tree\n", "line 2: point 99, 1 lies outside"),
        ("id,x,y,class\n7,1,1,9\n", "line 2: 7, 1, 1, 9 is no point"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, text, words):
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        PointStore(tmp_path / "points.csv", NAMES, SIZES)
    assert (tmp_path / "points.csv").read_text() == text


CLICKS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from potsdam_points.labeling.store import Point, PointStore
store = PointStore(Path(sys.argv[1]), ["a", "b"], {"7": (10_000, 10_000)})
for number in range(10_000):
    store.add(Point("7", number, number, number % 2))
    print(number, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", CLICKS, tmp_path / "points.csv", ROOT], stdout=subprocess.PIPE, text=True
    )
    acknowledged = -1
    for line in process.stdout:
        acknowledged = int(line)
        if acknowledged >= 150:
            process.send_signal(signal.SIGKILL)
            break
    rest = process.stdout.read().split()
    process.wait()
    process.stdout.close()
    acknowledged = max([acknowledged, *map(int, rest)])
    found = PointStore(tmp_path / "points.csv", ["a", "b"], {"7": (10_000, 10_000)}).of("7")
    assert len(found) in (acknowledged + 1, acknowledged + 2)  # the last one may be saved and not yet acknowledged
    assert [point.x for point in found.values()] == list(range(len(found)))
