"""Judging a drawn sample: in its order, saved before the next, nothing else changed, never beside the map."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from potsdam_points.labeling.judging import Judging, Sample, classes_of
from potsdam_points.labeling.tiles import TileSource
from tests.potsdam_points.labeling.pictures import disc_picture, write_picture

ROOT = Path(__file__).parents[3]
PLACES = ((10, 20), (150, 160), (299, 0), (40, 250))
"""Rows and columns."""


def write_sample(folder, places=PLACES, delimiter=","):
    """A sample of the map ``disc_mask.tif`` on the grid that `write_picture` gives, with its design."""
    rows = [["id", "map", "row", "col", "x", "y", "zone", "map_class", "reference"]]
    for i, (row, col) in enumerate(places):
        x, y = 5e5 + 0.1 * (col + 0.5), 5e6 - 0.1 * (row + 0.5)
        rows.append([i + 1, "disc_mask.tif", row, col, x, y, 'the "north", upper', "bright", ""])
    with (folder / "sample.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)
    (folder / "design.json").write_text(json.dumps({"classes": ["dark", "bright"]}))
    return folder / "sample.csv"


def references(path, delimiter=","):
    with path.open(newline="") as file:
        return [row["reference"] for row in csv.DictReader(file, delimiter=delimiter)]


@pytest.fixture
def sources(tmp_path):
    return {"disc": TileSource(write_picture(tmp_path / "disc.tif", disc_picture()[0]), tmp_path / "cache")}


@pytest.fixture
def judging(tmp_path, sources):
    path = write_sample(tmp_path)
    opened = Judging(sources, Sample(path, classes_of(path), sources), [(0, 0, 0), (250, 200, 60)])
    yield opened
    opened.close()


def answer(judging, label):
    return judging.click({"do": "judge", "number": judging.state()["judge"]["number"], "label": label})


def test_points_come_in_their_order_and_each_answer_is_on_the_disk(judging, tmp_path):
    seen = []
    before = (tmp_path / "sample.csv").read_text()
    for count, label in enumerate((1, 0, 0, 1), start=1):
        turn = judging.state()["judge"]
        seen.append((turn["y"], turn["x"]))
        done = answer(judging, label)
        assert done["judge"]["number"] == count and sum(done["counts"]) == count
        assert references(tmp_path / "sample.csv")[:count] == ["bright", "dark", "dark", "bright"][:count]
    assert tuple(seen) == PLACES and judging.state()["judge"] == {"number": 4, "total": 4}
    cleared = [line.rpartition(",")[0] for line in (tmp_path / "sample.csv").read_text().splitlines()]
    assert cleared == [line.rpartition(",")[0] for line in before.splitlines()]
    with pytest.raises(ValueError, match="point 5 is not to be judged now"):
        answer(judging, 0)


def test_the_last_answer_can_be_taken_back_and_no_other(judging, tmp_path):
    answer(judging, 1)
    answer(judging, 0)
    with pytest.raises(ValueError, match="point 1 is not to be judged now"):
        judging.click({"do": "take_back", "number": 0})
    assert judging.click({"do": "take_back", "number": 1})["judge"]["number"] == 1
    assert references(tmp_path / "sample.csv") == ["bright", "", "", ""]
    judging.click({"do": "take_back", "number": 0})
    with pytest.raises(ValueError, match="not to be judged now"):
        judging.click({"do": "take_back", "number": -1})


@pytest.mark.parametrize(
    "content",
    [
        {"do": "judge", "number": 2, "label": 1},
        {"do": "judge", "number": 0, "label": 2},
        {"do": "judge", "number": 0, "label": True},
        {"do": "add", "number": 0, "image": "disc", "x": 3, "y": 3, "label": 1},
        {"do": "move", "number": 0, "x": 3, "y": 3},
    ],
)
def test_a_sample_is_not_bent(judging, tmp_path, content):
    before = (tmp_path / "sample.csv").read_bytes()
    with pytest.raises(ValueError, match=r"judged now|is none of|no whole number|stay where they are"):
        judging.click(content)
    assert (tmp_path / "sample.csv").read_bytes() == before


def test_who_judges_sees_the_picture_alone(judging):
    assert judging.tile("picture", "disc", 0, 0, 0).shape == (256, 256, 3)
    for layer in ("map", "doubt"):
        with pytest.raises(ValueError, match="does not see the map"):
            judging.tile(layer, "disc", 0, 0, 0)
    assert "map_class" not in json.dumps(judging.state())
    with pytest.raises(ValueError, match="nothing is learned"):
        judging.learn(5)


def test_a_new_start_goes_on_with_a_spreadsheets_file(tmp_path, sources):
    path = write_sample(tmp_path, delimiter=";")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    first = Sample(path, ["dark", "bright"], sources)
    first.judge(0, 1)
    assert references(path, ";")[0] == "bright"
    again = Sample(path, ["dark", "bright"], sources)
    assert again.next == 1 and again.of("disc")[0].label == 1 and again.counts() == [0, 1]
    first.judge(1, 0)
    with pytest.raises(OSError, match="changed by another program"):
        again.judge(1, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("reference", "answer"), "column reference is missing"),
        (lambda text: text.replace("500002.05", "400002.05"), "point 1 at .* lies outside of .*disc.tif"),
        (lambda text: text.replace("500002.05", "east"), "point 1: could not convert"),
        (lambda text: text[: text.index("\n") + 1], "no points"),
        (lambda text: text.replace(",bright,\n", ",bright,water\n", 1), "reference 'water' is no class"),
    ],
)
def test_samples_that_cannot_be_judged(tmp_path, sources, change, words):
    path = write_sample(tmp_path)
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=words):
        Sample(path, ["dark", "bright"], sources)


def test_several_pictures_are_found_by_the_maps_name(tmp_path, sources):
    other = TileSource(write_picture(tmp_path / "other.tif", np.zeros((3, 300, 300), np.uint8)), tmp_path)
    path = write_sample(tmp_path)
    assert {p.image for p in Sample(path, ["dark", "bright"], {"other": other, **sources}).points} == {"disc"}
    with pytest.raises(ValueError, match="needs its picture disc"):
        Sample(path, ["dark", "bright"], {"other": other, "third": other})


def test_one_command_at_a_time_and_nothing_is_lost_when_it_dies(tmp_path, sources):
    """A second label.py on one sample is refused; after SIGKILL the next one goes on."""
    path = write_sample(tmp_path)
    command = [sys.executable, ROOT / "potsdam_points" / "label.py", tmp_path / "disc.tif", "--no-browser", "--sample"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start():
        return subprocess.Popen(
            [*command, path], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    for _ in range(2):
        running = start()
        assert "127.0.0.1" in running.stdout.readline()
        second = start()
        _, said = second.communicate(timeout=60)
        assert second.returncode == 2 and f"sample.csv: process {running.pid}" in said and "Traceback" not in said
        running.send_signal(signal.SIGKILL)
        running.communicate()
    assert references(path) == [""] * 4
