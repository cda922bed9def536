import numpy as np
import pytest
import tifffile
from scipy import ndimage

from hela_nuclei.scenes import sequences
from hela_nuclei.scenes.nuclei import Colony
from hela_nuclei.scenes.sequences import Microscope, field_of_interest, render_sequence, write_challenge


@pytest.fixture(scope="module")
def sequence():
    return render_sequence(4, frames=14, height=160, width=200, nuclei=30)


def spans(labels):
    """Frames of each id, read from the label images alone."""
    frames = {}
    for frame, image in enumerate(labels):
        for name in np.unique(image[image > 0]).tolist():
            frames.setdefault(name, []).append(frame)
    return frames


def touching_pairs(image):
    pairs = set()
    for a, b in ((image[1:], image[:-1]), (image[:, 1:], image[:, :-1])):
        both = (a != b) & (a > 0) & (b > 0)
        pairs |= {tuple(sorted(pair)) for pair in zip(a[both].tolist(), b[both].tolist(), strict=True)}
    return pairs


def test_same_seed_same_sequence_and_another_seed_another():
    first, again, other = (render_sequence(seed, 3, 96, 80, 12) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert first[2] == again[2]
    assert not np.array_equal(first[0], other[0])


def test_counts_are_those_of_the_challenge_camera(sequence):
    images, labels, _ = sequence
    assert images.dtype == labels.dtype == np.uint16
    assert images.shape == labels.shape == (14, 160, 200)
    assert 32_950 < images.min() < 33_060
    assert 34_500 < images.max() <= 36_863
    background = images[~np.array([ndimage.binary_dilation(image > 0, iterations=8) for image in labels])]
    assert 33_045 < np.median(background) < 33_085
    assert 8 < background.std() < 16


def test_nuclei_have_the_size_and_brightness_of_the_real_ones():
    images, labels, _ = render_sequence(0, 2, 384, 384, 50)
    areas = np.bincount(labels[0].ravel())[1:]
    whole = areas[areas > 150]
    assert 400 < np.median(whole) < 640  # real frames: 490 to 600
    light = ndimage.mean(images[0].astype(float), labels[0], np.unique(labels[0])[1:]) - 33_070
    assert 300 < np.median(light) < 750  # real frames: 360 to 665
    assert light.min() < 200 and light.max() > 900


def test_nuclei_keep_about_the_distance_of_the_real_ones():
    _, labels, _ = render_sequence(0, 1, 384, 384, 80)
    centers = np.array(ndimage.center_of_mass(np.ones_like(labels[0]), labels[0], np.unique(labels[0])[1:]))
    distance = np.linalg.norm(centers[:, None] - centers[None], axis=2) + 999 * np.eye(len(centers))
    assert 24 < np.median(distance.min(axis=1)) < 40  # real frames: 31 to 35
    assert np.percentile(distance.min(axis=1), 5) > 12


def test_overlap_is_shared_whichever_nucleus_is_drawn_first():
    pair = Colony(np.random.default_rng(0), 64, 64, 30).nuclei[:2]
    for nucleus, column in zip(pair, (24, 38), strict=True):
        nucleus.y, nucleus.x, nucleus.countdown = 32.0, float(column), 20
    owners = []
    for order in ((0, 1), (1, 0)):
        light, depth = np.zeros((64, 64), np.float32), np.full((64, 64), np.inf, np.float32)
        owner = np.zeros((64, 64), np.int32)
        for index in order:
            sequences._draw(pair[index], 1.0, np.zeros((256, 256), np.float32), light, depth, owner, index + 1)
        owners.append(owner)
    np.testing.assert_array_equal(*owners)
    assert owners[0][32, 24] == 1 and owners[0][32, 38] == 2


def test_truth_lies_on_the_light(sequence):
    images, labels, _ = sequence
    for image, label in zip(images, labels, strict=True):
        inside = ndimage.binary_erosion(label > 0, iterations=3)
        outside = ~ndimage.binary_dilation(label > 0, iterations=5)
        assert np.percentile(image[inside], 5) > np.percentile(image[outside], 90)


def test_ids_are_connected_and_tracks_tell_their_frames(sequence):
    _, labels, tracks = sequence
    frames = spans(labels)
    assert sorted(frames) == sorted(name for name, *_ in tracks) == list(range(1, len(tracks) + 1))
    for name, begin, end, _ in tracks:
        assert frames[name] == list(range(begin, end + 1))
    for image in labels:
        for name in np.unique(image[image > 0]):
            assert ndimage.label(image == name)[1] == 1
            assert (image == name).sum() >= sequences.SMALLEST


def test_nuclei_persist_and_divide_into_two(sequence):
    _, labels, tracks = sequence
    assert sum(end - begin >= 8 for _, begin, end, _ in tracks) > 10
    by_name = {track[0]: track for track in tracks}
    children = {}
    for name, begin, _, parent in tracks:
        if parent:
            assert by_name[parent][2] == begin - 1
            children.setdefault(parent, []).append(name)
    pairs = [sisters for sisters in children.values() if len(sisters) == 2]
    assert len(pairs) >= 3
    for a, b in pairs:
        begin = by_name[a][1]
        centers = ndimage.center_of_mass(np.ones_like(labels[begin]), labels[begin], [a, b])
        mother = ndimage.center_of_mass(np.ones_like(labels[begin]), labels[begin - 1] == by_name[a][3])
        assert np.linalg.norm(np.mean(centers, axis=0) - mother) < 12
        assert 11 < np.linalg.norm(np.subtract(*centers)) < 30


def test_the_plate_before_a_division_is_bright(sequence):
    images, labels, tracks = sequence
    mothers = {parent for *_, parent in tracks if parent}
    plates, others = [], []
    for name, _, end, _ in tracks:
        peak = images[end][labels[end] == name].max()
        (plates if name in mothers else others).append(int(peak))
    assert np.median(plates) > np.median(others) + 700


def test_nuclei_move_a_little(sequence):
    _, labels, _ = sequence
    steps = []
    for before, after in zip(labels[:-1, 30:-30, 30:-30], labels[1:, 30:-30, 30:-30], strict=True):
        names = np.intersect1d(before, after)[1:]
        a, b = (np.array(ndimage.center_of_mass(np.ones_like(x), x, names)) for x in (before, after))
        steps += np.linalg.norm(a - b, axis=1).tolist()
    assert 0.5 < np.median(steps) < 4


def test_some_nuclei_touch(sequence):
    _, labels, _ = sequence
    assert sum(len(touching_pairs(image)) for image in labels) >= 10


def test_nuclei_enter_and_leave_at_the_border(sequence):
    _, labels, tracks = sequence
    frame = np.ones(labels.shape[1:], dtype=bool)
    frame[4:-4, 4:-4] = False
    entered = [name for name, begin, _, parent in tracks if begin > 0 and not parent]
    left = [name for name, _, end, _ in tracks if end < len(labels) - 1 and name not in {t[3] for t in tracks}]
    assert entered and left
    for name in entered:
        assert (labels[next(t[1] for t in tracks if t[0] == name)] == name)[frame].any()


def test_no_nuclei_is_an_empty_dish():
    images, labels, tracks = render_sequence(0, 2, 32, 40, 0)
    assert not labels.any() and tracks == [] and images.max() < 33_200


@pytest.mark.parametrize("sizes", [(0, 64, 64, 5), (2, 8, 64, 5), (2, 64, 64, -1)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="a scene needs"):
        render_sequence(0, *sizes)


def test_field_of_interest_gives_a_new_id_after_an_absence():
    labels = np.zeros((4, 12, 12), dtype=np.uint16)
    for frame, column in enumerate((5, 0, 5, 5)):  # 7 goes into the border band and comes back
        labels[frame, 5, column] = 7
    labels[3, 4, 4] = 9
    labels[:3, 8, 8] = 8
    field, tracks = field_of_interest(labels, [(7, 0, 3, 0), (8, 0, 2, 0), (9, 3, 3, 8)], border=2)
    assert tracks == [(1, 0, 0, 0), (2, 0, 2, 0), (3, 2, 3, 0), (4, 3, 3, 2)]
    assert not field[1, 5, 0] and field[2, 5, 5] == field[3, 5, 5] == 3


def test_challenge_layout(tmp_path):
    root = tmp_path / "data" / "scene"
    write_challenge(root, sequences=2, frames=5, height=96, width=112, nuclei=16, seed=3)
    assert sorted(path.name for path in root.iterdir()) == ["01", "01_GT", "01_ST", "02", "02_GT", "02_ST"]
    assert sorted(path.name for path in root.parent.iterdir()) == ["scene"]
    for name in ("01", "02"):
        numbers = range(5)
        masks = np.stack([tifffile.imread(root / f"{name}_ST/SEG/man_seg{i:03d}.tif") for i in numbers])
        assert sorted(p.name for p in (root / name).iterdir()) == [f"t{i:03d}.tif" for i in numbers]
        for i in numbers:
            frame = tifffile.imread(root / name / f"t{i:03d}.tif")
            assert frame.dtype == masks.dtype == np.uint16
            assert frame.shape == masks[i].shape == (96, 112)
            np.testing.assert_array_equal(tifffile.imread(root / f"{name}_GT/TRA/man_track{i:03d}.tif"), masks[i])
        assert sorted(p.name for p in (root / f"{name}_GT/SEG").iterdir()) == ["man_seg000.tif", "man_seg004.tif"]
        tracks = np.loadtxt(root / f"{name}_GT/TRA/man_track.txt", dtype=int, ndmin=2)
        assert {n: list(range(b, e + 1)) for n, b, e, _ in tracks.tolist()} == spans(masks)
        inner = masks[:, 25:-25, 25:-25]
        for mask, inside in zip(masks, inner, strict=True):
            assert set(np.unique(mask)) <= set(np.unique(inside)) | {0}  # nothing wholly in the border band


def test_an_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def fail(path, data):
        calls.append(path)
        if len(calls) > 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(sequences.tifffile, "imwrite", fail)
    with pytest.raises(KeyboardInterrupt):
        write_challenge(tmp_path / "scene", frames=3, height=64, width=64, nuclei=4)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="is not empty"):
        write_challenge(tmp_path, frames=1, height=64, width=64)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def _labels(zoom):
    return render_sequence(1, 1, int(128 * zoom), int(128 * zoom), 12, Microscope(1.2, zoom))[1][0]


def test_twice_the_zoom_shows_the_same_nuclei_twice_as_large(monkeypatch):
    monkeypatch.setattr(sequences, "RIM", 0.0)  # which is pixels of the frame, whatever the zoom
    near, far = _labels(2.0), _labels(1.0)
    assert ((near[::2, ::2] > 0) == (far > 0)).mean() > 0.97
    assert (near > 0).sum() == pytest.approx(4 * (far > 0).sum(), rel=0.05)


def test_light_noise_and_unevenness_are_the_microscopes():
    def one(nuclei, **changes):
        images, labels, _ = render_sequence(3, 1, 160, 160, nuclei, Microscope(1.2, **changes))
        return images[0].astype(float), labels[0] > 0

    plain, loud = (np.diff(one(0, noise=noise)[0], axis=0).std() for noise in (1.0, 3.0))
    assert loud == pytest.approx(3 * plain, rel=0.1)
    (dim, where), (bright, _) = one(14), one(14, light=2.0)
    assert bright[where].mean() - bright.min() > 1.5 * (dim[where].mean() - dim.min())
    corners = [render_sequence(3, 1, 160, 160, 0, Microscope(1.2, unevenness=u))[0][0].astype(float) for u in (1, 8)]
    tilt = [np.ptp([c[:20, :20].mean(), c[-20:, -20:].mean(), c[60:90, 60:90].mean()]) for c in corners]
    assert tilt[1] > 3 * tilt[0]


def test_drawn_microscopes_differ_and_stay_usable():
    rng = np.random.default_rng(0)
    drawn = [Microscope.draw(rng) for _ in range(200)]
    assert all(0.55 <= one.zoom <= 2 and 0.6 < one.focus < 3.5 for one in drawn)
    assert np.std([one.zoom for one in drawn]) > 0.1
