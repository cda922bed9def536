"""The list of suspected label errors: what is on it, and what leaving out its images does."""

import csv
import math
import time

import numpy as np
import pytest

from common.data.labeled import LabeledImage, Sample
from common.training.predicted import Predicted
from common.training.suspects import find_suspects, without_suspects, write_suspects

CLASSES = ("background", "roof")


def sample(name, missing):
    """A picture that is its own prediction, with a square of the given side that its label lacks."""
    image, truth = np.zeros((1, 64, 64), np.float32), np.zeros((64, 64), np.uint8)
    image[0, 8 : 8 + missing, 8 : 8 + missing] = 1
    return Sample(f"{name}_tile", name, lambda: LabeledImage(name, image, truth))


def look(samples, deadline=math.inf):
    """What is found by a network that sees each picture's own values."""
    return find_suspects(samples, Predicted(classify), lambda image: image, deadline)


def classify(probability):
    return (probability[0] >= 0.5).astype(np.uint8)


def test_the_worst_come_first_and_clean_labels_do_not_come():
    samples = {"train": [sample("a", 10), sample("b", 0)], "val": [sample("c", 30)]}
    found = look(samples)
    assert [(one.sample.image_id, one.part, one.why.pixels) for one in found] == [
        ("c", "val", 900),
        ("a", "train", 100),
    ]


def test_the_search_ends_in_time_and_says_so(capsys):
    assert look({"train": [sample("a", 30), sample("b", 30), sample("c", 30)]}, time.monotonic() - 1) == []
    assert "looked for in 0 of 3" in capsys.readouterr().err


def test_what_was_predicted_before_counts_and_is_not_predicted_again():
    predicted, asked = Predicted(classify), []
    known = sample("t", 20)
    predicted.add(known.id, *(lambda pair: (pair.unit(), pair.classes))(known.read()))
    parts = {"train": [sample("a", 10)], "test": [known]}
    found = find_suspects(parts, predicted, lambda image: asked.append(image) or image)
    assert len(asked) == 1 and [one.sample.id for one in found] == ["t_tile", "a_tile"]
    assert (predicted.mask("t_tile") == known.read().image[0]).all()
    assert (predicted.mask("a_tile") == parts["train"][0].read().image[0]).all()


def test_masks_are_read_back_in_any_order_and_from_a_file(monkeypatch):
    monkeypatch.setattr("common.training.predicted.IN_MEMORY", 1)
    predicted, rng = Predicted(lambda p: p.argmax(0).astype(np.uint8)), np.random.default_rng(0)
    maps = {f"{n}": rng.random((3, 20 + n, 30), np.float32) for n in range(4)}
    for name, probability in maps.items():
        predicted.add(name, probability, np.zeros(probability.shape[1:], np.uint8))
        assert (predicted.mask("0") == maps["0"].argmax(0)).all()
    assert all((predicted.mask(name) == maps[name].argmax(0)).all() for name in ("2", "0", "3", "1"))


def test_the_written_list_leaves_its_images_out(tmp_path, capsys):
    path = tmp_path / "suspects.csv"
    found = look({"train": [sample("a, 1", 20)], "test": [sample("t", 20)]})
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
