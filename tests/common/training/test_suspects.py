"""The list of suspected label errors: what is on it, and what leaving out its images does."""

import csv
import time

import numpy as np
import pytest

from common.training.suspects import Labeled, find_suspects, without_suspects, write_suspects

CLASSES = ("background", "roof")


def sample(name, missing):
    """A picture that is its own prediction, with a square of the given side that its label lacks."""
    image, truth = np.zeros((1, 64, 64), np.float32), np.zeros((64, 64), np.uint8)
    image[0, 8 : 8 + missing, 8 : 8 + missing] = 1
    return Labeled(f"{name}_tile", name, lambda: (image, truth))


def test_the_worst_come_first_and_clean_labels_do_not_come():
    samples = {"train": [sample("a", 10), sample("b", 0)], "val": [sample("c", 30)]}
    found = find_suspects(samples, lambda image: image)
    assert [(one.sample.image_id, one.part, one.why.pixels) for one in found] == [
        ("c", "val", 900),
        ("a", "train", 100),
    ]


def test_the_search_ends_in_time_and_says_so(capsys):
    assert find_suspects({"train": [sample("a", 30)] * 3}, lambda image: image, time.monotonic() - 1) == []
    assert "looked for in 0 of 3" in capsys.readouterr().err


def test_the_written_list_leaves_its_images_out(tmp_path, capsys):
    path = tmp_path / "suspects.csv"
    found = find_suspects({"train": [sample("a, 1", 20)], "test": [sample("t", 20)]}, lambda image: image)
    write_suspects(path, found, CLASSES)
    with path.open(newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert rows["a, 1"]["part"] == "train" and rows["a, 1"]["sample"] == "a, 1_tile"
    assert (rows["a, 1"]["label"], rows["a, 1"]["prediction"], rows["a, 1"]["height"]) == ("background", "roof", "20")
    split = {"train": ["a, 1", "b"], "val": ["c"], "test": ["t"]}
    assert without_suspects(split, path) == {"train": ["b"], "val": ["c"], "test": ["t"]}  # scores stay comparable
    assert "1 of the 2 images" in capsys.readouterr().err
    assert without_suspects(split, None) is split


def test_no_suspects_no_file(tmp_path):
    write_suspects(tmp_path / "suspects.csv", [], CLASSES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"id,share\na,1\n", "no column image"), (b"\xff\xfe\x00", "no table of text"), (b"image\na\nb\n", "no image in")],
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path, content, words):
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        without_suspects({"train": ["a", "b"], "val": ["c"], "test": []}, path)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        without_suspects({}, tmp_path)
