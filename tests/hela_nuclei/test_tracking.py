import numpy as np
import pytest
import tifffile
from scipy import ndimage

from hela_nuclei import tracking
from hela_nuclei.scenes.sequences import field_of_interest, render_sequence
from hela_nuclei.tracking import Linker, write_tracks
from tests.peers import Peer

evaluate_sequence = Peer("ctc_metrics.scripts.evaluate:evaluate_sequence")
validate_sequence = Peer("ctc_metrics.scripts.validate:validate_sequence")


def disc(image, row, column, radius, name):
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    image[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = name


def frame(*discs, shape=(80, 100)):
    """A label image of discs (row, column, radius), named from 1 on."""
    image = np.zeros(shape, dtype=np.int32)
    for name, (row, column, radius) in enumerate(discs, start=1):
        disc(image, row, column, radius, name)
    return image


def shuffled(labels, rng):
    """The same objects as an instance segmentation would give them: numbered anew in each frame."""
    names = np.unique(labels[labels > 0])
    table = np.zeros(int(labels.max()) + 1, dtype=np.int32)
    table[names] = rng.permutation(len(names)) + 1
    return table[labels]


def write_result(folder, masks, tracks):
    folder.mkdir(parents=True)
    for number, mask in enumerate(masks):
        tifffile.imwrite(folder / f"mask{number:03d}.tif", mask)
    write_tracks(folder / "res_track.txt", tracks)


def consistent(masks, tracks):
    """The challenge's rules, for frames given as {number: mask}."""
    for name, begin, end, parent in tracks:
        present = [number for number, mask in masks.items() if (mask == name).any()]
        assert present == list(range(begin, end + 1))
        if parent:
            assert next(t[2] for t in tracks if t[0] == parent) < begin
    assert {int(n) for mask in masks.values() for n in np.unique(mask)} - {0} == {t[0] for t in tracks}


def test_moving_nuclei_keep_their_ids_and_a_crossing_number_does_not_matter():
    rng = np.random.default_rng(0)
    linker, seen = Linker(), []
    for step in range(8):
        truth = frame((20 + 3 * step, 20, 9), (50, 80 - 4 * step, 10), (30, 55, 8))
        result = linker.update(step, shuffled(truth, rng))
        assert result.dtype == np.uint16
        np.testing.assert_array_equal(result > 0, truth > 0)
        seen.append([int(result[truth == name].max()) for name in (1, 2, 3)])
        assert all(len(np.unique(result[truth == name])) == 1 for name in (1, 2, 3))
    assert all(names == seen[0] for names in seen)
    assert sorted(linker.tracks()) == [(1, 0, 7, 0), (2, 0, 7, 0), (3, 0, 7, 0)]


def test_a_fast_nucleus_without_overlap_is_linked_but_not_a_far_one():
    linker = Linker()
    linker.update(0, frame((20, 20, 5)))
    linker.update(1, frame((20, 31, 5)))  # 11 px is beyond the diameter of 10.2: another nucleus
    linker.update(2, frame((20, 40, 5)))  # 9 px is not
    assert linker.tracks() == [(1, 0, 0, 0), (2, 1, 2, 0)]


def test_assignment_is_one_to_one_and_best_in_total():
    linker = Linker()
    linker.update(0, frame((40, 30, 8), (40, 48, 8)))
    # Both moved by 10 px to the right: the first now overlaps the place of the second.
    result = linker.update(1, frame((40, 58, 8), (40, 40, 8)))
    assert result[40, 58] == 2 and result[40, 40] == 1


@pytest.mark.parametrize("first_stays", [False, True])
def test_a_division_gives_both_daughters_the_parent(first_stays):
    linker = Linker()
    linker.update(0, frame((40, 50, 9), (20, 20, 8)))
    shift = 3 if first_stays else 0  # one daughter overlaps the mother more and would be taken for her
    result = linker.update(1, frame((40, 41 + shift, 6), (40, 59 + shift, 6), (20, 21, 8)))
    a, b = int(result[40, 41 + shift]), int(result[40, 59 + shift])
    assert len({a, b, 1, 2}) == 4 and result[20, 21] == 2
    assert linker.tracks() == [(1, 0, 0, 0), (2, 0, 1, 0), (3, 1, 1, 1), (4, 1, 1, 1)]


@pytest.mark.parametrize(
    "after",
    [
        [(40, 50, 9), (40, 68, 9)],  # turns up beside a nucleus that stays where it was
        [(40, 44, 9), (40, 58, 3)],  # a speck beside it
        [(40, 39, 14), (40, 65, 14)],  # both far larger than the mother
        [(40, 30, 6), (40, 70, 6)],  # too far from one another
    ],
)
def test_a_newcomer_is_no_daughter(after):
    linker = Linker()
    linker.update(0, frame((40, 50, 9)))
    linker.update(1, frame(*after))
    assert all(parent == 0 for *_, parent in linker.tracks())


def test_two_divisions_side_by_side_do_not_mix():
    linker = Linker()
    linker.update(0, frame((20, 50, 9), (45, 50, 9)))
    result = linker.update(1, frame((20, 40, 6), (20, 60, 6), (45, 40, 6), (45, 60, 6)))
    parents = {name: parent for name, *_, parent in linker.tracks()}
    assert {parents[int(result[20, c])] for c in (40, 60)} == {1}
    assert {parents[int(result[45, c])] for c in (40, 60)} == {2}


def test_a_nucleus_between_two_mothers_goes_to_the_better_centered():
    linker = Linker()
    linker.update(0, frame((40, 40, 9), (40, 60, 9)))
    result = linker.update(1, frame((40, 32, 6), (40, 50, 6), (40, 69, 6)))
    assert result[40, 32] == 1
    assert linker.tracks() == [(1, 0, 1, 0), (2, 0, 0, 0), (3, 1, 1, 2), (4, 1, 1, 2)]


def test_overlap_counts_besides_closeness():
    linker = Linker()
    linker.update(0, frame((40, 50, 9)))
    result = linker.update(1, frame((40, 45, 2), (40, 57, 9)))  # the speck's center is nearer
    assert result[40, 57] == 1 and result[40, 45] == 2


def test_a_gap_in_the_frame_numbers_begins_new_tracks_with_the_old_as_parent():
    masks, linker = {}, Linker()
    for step, number in enumerate((4, 5, 9, 10)):
        masks[number] = linker.update(number, frame((20 + step, 20, 9), (50, 70, 9)))
    assert linker.tracks() == [(1, 4, 5, 0), (2, 4, 5, 0), (3, 9, 10, 1), (4, 9, 10, 2)]
    consistent(masks, linker.tracks())


def test_empty_frames_end_every_track():
    linker = Linker()
    empty = np.zeros((80, 100), dtype=np.uint8)
    assert not linker.update(0, empty).any()
    linker.update(1, frame((20, 20, 9)))
    linker.update(2, empty)
    linker.update(3, frame((20, 20, 9)))
    assert linker.tracks() == [(1, 1, 1, 0), (2, 3, 3, 0)]


def test_more_tracks_than_16_bits_hold_are_refused(monkeypatch):
    monkeypatch.setattr(tracking, "LARGEST_LABEL", 3)
    linker = Linker()
    linker.update(0, frame((20, 20, 5), (50, 20, 5), (50, 60, 5)))
    with pytest.raises(ValueError, match="more than 3 tracks"):
        linker.update(1, frame((20, 20, 5), (50, 20, 5), (50, 60, 5), (20, 80, 5)))


def test_the_limit_is_that_of_uint16():
    assert np.iinfo(np.uint16).max == tracking.LARGEST_LABEL
    many = np.arange(256 * 257).reshape(256, 257)
    with pytest.raises(ValueError, match="65535"):
        Linker().update(0, many)


@pytest.mark.parametrize(
    ("number", "labels", "message"),
    [
        (1, np.zeros((80, 100), int), "ascending order"),
        (0, np.zeros((80, 100), int), "ascending order"),
        (2, np.zeros((80, 101), int), "one size"),
        (2, np.zeros((80, 100), float), "give integers"),
        (2, np.zeros((1, 80, 100), int), "give integers"),
        (2, np.full((80, 100), -1), "negative"),
    ],
)
def test_what_is_no_next_frame_is_refused(number, labels, message):
    linker = Linker()
    linker.update(1, frame((20, 20, 5)))
    with pytest.raises(ValueError, match=message):
        linker.update(number, labels)


def test_track_file(tmp_path):
    write_tracks(tmp_path / "res_track.txt", [(1, 0, 4, 0), (2, 5, 9, 1)])
    assert (tmp_path / "res_track.txt").read_text() == "1 0 4 0\n2 5 9 1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["res_track.txt"]


@pytest.mark.parametrize("seed", [0, 1])
def test_relinked_truth_of_generated_scenes_scores_high(seed, tmp_path):
    _, labels, tracks = render_sequence(seed, 16, 256, 256, 24)
    labels, tracks = field_of_interest(labels, tracks)
    truth, answer = tmp_path / "01_GT", tmp_path / "01_RES"
    for folder in (truth / "TRA", truth / "SEG"):
        folder.mkdir(parents=True)
    for number, label in enumerate(labels):
        tifffile.imwrite(truth / f"TRA/man_track{number:03d}.tif", label)
        tifffile.imwrite(truth / f"SEG/man_seg{number:03d}.tif", label)
    write_tracks(truth / "TRA/man_track.txt", tracks)

    rng, linker = np.random.default_rng(seed), Linker()
    masks = [linker.update(number, shuffled(label, rng)) for number, label in enumerate(labels)]
    write_result(answer, masks, linker.tracks())
    consistent(dict(enumerate(masks)), linker.tracks())
    assert validate_sequence(str(answer), threads=1) == {"Valid": 1}
    scores = evaluate_sequence(str(answer), str(truth), ["Valid", "SEG", "DET", "TRA"], threads=1)
    assert scores["SEG"] == scores["DET"] == 1.0
    assert scores["TRA"] >= 0.97
    mothers = {parent for *_, parent in tracks if parent}
    found = {parent for *_, parent in linker.tracks() if parent}
    assert len(found) >= 0.8 * len(mothers) > 0


def test_validity_survives_a_bad_segmentation(tmp_path):
    """Objects that split, merge and flicker: whatever comes in, the result folder obeys the challenge's rules."""
    _, labels, _ = render_sequence(5, 8, 128, 128, 20)
    rng, linker, masks = np.random.default_rng(0), Linker(), []
    for number, label in enumerate(labels):
        rough = (label > 0) & (ndimage.gaussian_filter(rng.standard_normal(label.shape), 2) > -0.1)
        masks.append(linker.update(number, ndimage.label(rough)[0]))
    write_result(tmp_path / "01_RES", masks, linker.tracks())
    consistent(dict(enumerate(masks)), linker.tracks())
    assert validate_sequence(str(tmp_path / "01_RES"), threads=1) == {"Valid": 1}
