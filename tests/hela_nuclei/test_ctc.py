import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from hela_nuclei.ctc import CtcScore, FrameScores, drop_border_objects, match
from hela_nuclei.tracking import Linker, write_tracks
from tests.peers import Peer

peer_det = Peer("ctc_metrics.metrics.technical.det:det")
peer_seg = Peer("ctc_metrics.metrics.technical.seg:seg")
count_acyclic_graph_correction_operations = Peer(
    "ctc_metrics.utils.representations:count_acyclic_graph_correction_operations"
)
peer_match = Peer("ctc_metrics.utils.representations:match")
evaluate_sequence = Peer("ctc_metrics.scripts.evaluate:evaluate_sequence")


def golden():
    """Two frames; the result joins 1 and 2 into one object of 20 x 41 and shrinks 3 to 20 x 18."""
    reference = np.zeros((80, 100), dtype=np.uint16)
    reference[10:30, 10:30], reference[10:30, 31:51], reference[50:70, 60:80] = 1, 2, 3
    result = np.zeros_like(reference)
    result[10:30, 10:51], result[50:70, 60:78] = 1, 2
    return reference, result


def peer_scores(frames, folder):
    """SEG and DET of py-ctcmetrics' own functions, whose match reads files."""
    matches = []
    for reference, result in frames:
        tifffile.imwrite(folder / "reference.tif", reference.astype(np.int64), photometric="minisblack")
        tifffile.imwrite(folder / "result.tif", result.astype(np.int64), photometric="minisblack")
        matches.append(peer_match(str(folder / "reference.tif"), str(folder / "result.tif")))
    labels_ref, labels_comp, mapped_ref, mapped_comp, ious = (list(part) for part in zip(*matches, strict=True))
    counts = count_acyclic_graph_correction_operations(None, None, labels_ref, labels_comp, mapped_ref, mapped_comp)
    return matches, peer_seg(labels_ref, ious), peer_det(**counts)


@st.composite
def label_frames(draw):
    """Pairs of label images made of overlapping rectangles: touching, merged, split, shifted, empty on one side."""
    height, width = draw(st.integers(6, 20)), draw(st.integers(6, 20))
    frames = []
    for _ in range(draw(st.integers(1, 3))):
        pair = []
        for _ in range(2):
            image = np.zeros((height, width), dtype=np.int64)
            for name in draw(st.lists(st.integers(1, 60), max_size=7, unique=True)):
                top, left = draw(st.integers(0, height - 2)), draw(st.integers(0, width - 2))
                image[top : top + draw(st.integers(1, 8)), left : left + draw(st.integers(1, 8))] = name
            image[0, 0] = 0  # the peer takes the smallest value for the background
            pair.append(image)
        if draw(st.booleans()):  # a result close to the reference, so that most objects match
            pair[1] = np.where(pair[1] % 3 == 1, pair[1], pair[0] // draw(st.integers(1, 2)))
        frames.append(tuple(pair))
    return frames


@settings(deadline=None, max_examples=60)
@given(frames=label_frames())
def test_equal_to_py_ctcmetrics_on_random_frames(frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    if not any(reference.any() for reference, _ in frames) or not any(result.any() for _, result in frames):
        return  # the peer divides by zero, ours is covered below
    matches, seg, det = peer_scores(frames, folder)
    score = CtcScore()
    for (reference, result), (labels_ref, labels_comp, mapped_ref, mapped_comp, ious) in zip(
        frames, matches, strict=True
    ):
        ours = match(reference, result)
        assert ours.reference_labels.tolist() == labels_ref
        assert ours.result_labels.tolist() == labels_comp
        assert ours.matched_reference.tolist() == mapped_ref
        assert ours.matched_result.tolist() == mapped_comp
        np.testing.assert_allclose(ours.jaccard, ious, rtol=0, atol=1e-12)
        score.update(reference, result)
    if sum(len(m[0]) for m in matches):
        assert score.seg() == pytest.approx(seg, abs=1e-12)
        assert score.det() == pytest.approx(det, abs=1e-12)


def test_golden_case():
    reference, result = golden()
    score = CtcScore()
    for _ in range(2):
        score.update(reference, result)
    assert score.frames == 2
    assert score.seg() == pytest.approx(0.62520, abs=5e-6)
    assert score.det() == pytest.approx(0.83333, abs=5e-6)


def test_golden_case_through_a_written_result_folder(tmp_path):
    reference, result = golden()
    truth, answer = tmp_path / "01_GT", tmp_path / "01_RES"
    for folder in (truth / "SEG", truth / "TRA", answer):
        folder.mkdir(parents=True)
    linker = Linker()
    for frame in range(2):
        tifffile.imwrite(truth / f"SEG/man_seg{frame:03d}.tif", reference)
        tifffile.imwrite(truth / f"TRA/man_track{frame:03d}.tif", reference)
        tifffile.imwrite(answer / f"mask{frame:03d}.tif", linker.update(frame, result))
    write_tracks(truth / "TRA/man_track.txt", [(name, 0, 1, 0) for name in (1, 2, 3)])
    write_tracks(answer / "res_track.txt", linker.tracks())
    scores = evaluate_sequence(str(answer), str(truth), ["Valid", "SEG", "DET", "TRA"], threads=1)
    assert scores["Valid"] == 1
    assert scores["SEG"] == pytest.approx(0.62520, abs=5e-6)
    assert scores["DET"] == pytest.approx(0.83333, abs=5e-6)
    assert scores["TRA"] == pytest.approx(0.79845, abs=5e-6)


def test_joined_nuclei_cost_a_split_and_a_blob_an_extra():
    reference = np.array([[1, 1, 2, 2, 0, 0, 3, 3, 3, 3]])
    result = np.array([[9, 9, 9, 9, 4, 0, 0, 0, 5, 5]])
    scores = FrameScores.of(reference, result)
    # 3 is covered by exactly one half: not more than half, so a miss, and 5 matches nothing.
    assert (scores.references, scores.splits, scores.misses, scores.extras) == (3, 1, 1, 2)
    assert scores.seg() == pytest.approx((0.5 + 0.5) / 3)
    assert scores.det() == pytest.approx(1 - (5 + 10 + 2) / 30)


def test_a_nucleus_cut_in_two_halves_is_a_miss_and_two_extras():
    scores = FrameScores.of(np.array([[1, 1, 1, 1]]), np.array([[1, 1, 2, 2]]))
    assert (scores.splits, scores.misses, scores.extras) == (0, 1, 2)
    assert scores.det() == 0.0  # the price 12 is capped at 10


def test_without_reference_objects_there_is_no_score():
    score = CtcScore()
    assert score.seg() is None and score.det() is None
    score.update(np.zeros((4, 4), np.uint16), np.eye(4, dtype=np.uint16))
    assert score.seg() is None and score.det() is None
    score.update(np.eye(4, dtype=np.uint16), np.zeros((4, 4), np.uint16))
    assert score.seg() == 0.0 and score.det() == 0.0


def test_scores_of_two_sequences_merge_over_all_objects():
    rng = np.random.default_rng(0)
    pairs = [rng.integers(0, 5, (2, 12, 12)) for _ in range(4)]
    whole, first, second = CtcScore(), CtcScore(), CtcScore()
    for index, (reference, result) in enumerate(pairs):
        result = np.where(rng.random(result.shape) < 0.9, reference, result)
        whole.update(reference, result)
        (first if index < 1 else second).update(reference, result)
    first.merge(second)
    assert first.frames == whole.frames == 4 and first.totals.references == whole.totals.references > 4
    assert first.seg() == pytest.approx(whole.seg(), abs=1e-15) and first.det() == whole.det()


def test_labels_may_be_large_and_inputs_stay_as_they_are():
    reference = np.array([[65535, 65535, 0]], dtype=np.uint16)
    result = np.array([[70000, 70000, 70000]], dtype=np.int64)
    before = reference.copy(), result.copy()
    assert FrameScores.of(reference, result).jaccard_sum == pytest.approx(2 / 3)
    np.testing.assert_array_equal(reference, before[0])
    np.testing.assert_array_equal(result, before[1])


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        match(np.zeros((2, 3), int), np.zeros((3, 2), int))


def test_border_objects():
    labels = np.zeros((20, 30), dtype=np.uint16)
    labels[0:5, 10:15] = 1  # rows 0-4 are the band
    labels[0:6, 16:20] = 2  # row 5 is inside the field
    labels[10:12, 25:30] = 3  # columns 25-29 are the band
    labels[13:15, 24:30] = 4  # column 24 is inside
    labels[15:20, 0:9] = 5
    kept = drop_border_objects(labels, 5)
    assert np.unique(kept).tolist() == [0, 2, 4]
    assert kept.dtype == labels.dtype
    np.testing.assert_array_equal(kept == 2, labels == 2)  # whole, the part in the band too
    assert labels.max() == 5
    np.testing.assert_array_equal(drop_border_objects(labels, 0), labels)
    assert not drop_border_objects(labels, 10).any()  # the frame is all band


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 16), st.integers(1, 16), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_border_objects_by_distance(height, width, border, seed):
    labels = np.random.default_rng(seed).integers(0, 6, (height, width))
    row, column = np.indices(labels.shape)
    distance = np.minimum(np.minimum(row, height - 1 - row), np.minimum(column, width - 1 - column))
    expected = labels.copy()
    for name in range(1, 6):
        if not (distance[labels == name] >= border).any():
            expected[labels == name] = 0
    np.testing.assert_array_equal(drop_border_objects(labels, border), expected)


@pytest.mark.parametrize(("labels", "border"), [(np.zeros((2, 4, 4), int), 1), (np.zeros((4, 4), int), -1)])
def test_border_objects_refuses_stacks_and_negative_widths(labels, border):
    with pytest.raises(ValueError, match="give"):
        drop_border_objects(labels, border)
