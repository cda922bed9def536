import numpy as np

from common.metrics.split_scores import ImageScore
from common.report.examples import MORE_CLASSES, NOTHING, TWO_CLASSES, choose, error_map, panels


def test_hits_false_and_missed_pixels_of_two_classes():
    truth = np.array([[0, 0, 1, 1, 255]], np.uint8)
    prediction = np.array([[0, 1, 0, 1, 1]], np.uint8)
    colors = [tuple(int(value) for value in pixel) for pixel in error_map(truth, prediction, 2)[0]]
    assert colors[:4] == [NOTHING, TWO_CLASSES["false"], TWO_CLASSES["missed"], TWO_CLASSES["hit"]]
    assert colors[4] not in colors[:4], "ignored pixels are neither"


def test_right_and_wrong_pixels_of_more_classes():
    picture = error_map(np.array([[0, 1, 2]]), np.array([[0, 2, 2]]), 3)
    right, wrong = MORE_CLASSES["right"], MORE_CLASSES["wrong"]
    assert [tuple(pixel) for pixel in picture[0].tolist()] == [right, wrong, right]


def test_informative_samples_are_chosen():
    scored = [ImageScore(f"empty{i}", 1.0, False) for i in range(9)]
    scored += [ImageScore(f"{i}", i / 10, True) for i in range(9)]
    groups = {name: [one.name for one in group] for name, group in choose(scored, 2).items()}
    assert groups == {"ordinary": ["4", "3"], "best": ["8", "7"], "worst": ["0", "1"]} or groups == {
        "ordinary": ["5", "4"], "best": ["8", "7"], "worst": ["0", "1"]
    }  # fmt: skip


def test_few_samples_are_shown_once_each_and_empty_ones_where_there_are_no_others():
    for count in range(6):
        scored = [ImageScore(str(i), i / 10, False) for i in range(count)]
        shown = [one.name for group in choose(scored, 4).values() for one in group]
        assert len(set(shown)) == len(shown) and (shown or not count)
    assert [one.name for one in choose([ImageScore("a", 0.5, True)], 4)["best"]] == ["a"]


def test_panels_of_a_sample():
    image, mask = np.zeros((4, 5, 3), np.uint8), np.ones((4, 5), np.uint8)
    maps = {"points": mask, "truth": mask, "prediction": mask}
    shown = panels(image, maps, {0: (0, 0, 0), 1: (1, 2, 3)})
    assert [title for title, _ in shown] == ["input", "points", "truth", "prediction", "errors"]
    assert (shown[-1][1] == TWO_CLASSES["hit"]).all()
