import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.labeled import LabeledImage
from common.data.pairs import Pair
from rooftops.data import Found, Pictures
from rooftops.labels import Coding
from rooftops.samples import PictureAugmentation, WholePictures, Windows, median_side

PLAIN = (("a", 10), ("b", 240))
MIXED = (("b", 0), ("w", 1))
STRONG = PictureAugmentation(zoom=0.5, rotate=180, color=1.0, blur=0.5, cutmix=0.5)


def pictures_of(*pictures):
    """Pictures that were never on disk."""
    return Pictures(
        Coding(),
        {p.id: Pair(p.id, None, None) for p in pictures},
        {p.id: Found(p.classes.shape, np.bincount(p.classes.ravel(), minlength=2)) for p in pictures},
        {p.id: p for p in pictures},
    )


def picture(height=64, width=64, seed=0, name="a"):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
    return LabeledImage(name, image, rng.integers(0, 2, (height, width), dtype=np.uint8))


def painted(height=96, width=120, seed=1, name="p"):
    """A picture that shows its classes: 40 where the class is 0, 200 where it is 1."""
    blocks = np.random.default_rng(seed).integers(0, 2, (height // 12, width // 12)).astype(np.uint8)
    classes = np.kron(blocks, np.ones((12, 12), np.uint8))
    return LabeledImage(name, np.stack([40 + 160 * classes] * 3).astype(np.uint8), classes)


def shown(sample):
    """The image of a sample in 0...255."""
    return sample["image"] * 255


def test_without_augmentation_a_fitting_picture_is_the_sample():
    one = picture()
    sample = Windows(pictures_of(one), ["a"], side=64, scale=1.0)[(0, 5)]
    assert torch.allclose(shown(sample), torch.from_numpy(one.image).float(), atol=1e-3)
    assert (sample["target"].numpy() == one.classes).all()
    assert (sample["image"].dtype, sample["target"].dtype, sample["id"]) == (torch.float32, torch.int64, "a")


def test_a_smaller_picture_is_mirrored_and_the_mirror_ignored():
    one = picture(20, 64)
    sample = Windows(pictures_of(one), ["a"], side=64, scale=1.0)[(0, 0)]
    image, classes = shown(sample).round().numpy(), sample["target"].numpy()
    assert (classes[22:42] == one.classes).all()
    assert (classes[:22] == 255).all()
    assert (classes[42:] == 255).all()
    assert (image[:, 21] == one.image[:, 1]).all()
    assert (image[:, 42] == one.image[:, -2]).all()


def test_shrinking_smooths_the_image_and_centers_the_classes():
    classes = np.zeros((60, 60), np.uint8)
    classes[:, 30:] = 1
    one = LabeledImage("a", np.stack([classes * 200] * 3), classes)
    sample = Windows(pictures_of(one), ["a"], side=20, scale=1 / 3)[(0, 0)]
    assert (sample["target"][:, :10] == 0).all()
    assert (sample["target"][:, 10:] == 1).all()
    stripes = LabeledImage("s", np.tile(np.array([0, 255], np.uint8), (3, 60, 30)), classes)
    flat = shown(Windows(pictures_of(stripes), ["s"], side=20, scale=1 / 3)[(0, 0)])[:, :, 1:-1]
    assert flat.std() < 60  # nearest neighbor would keep 0 and 255: a deviation of 127


@pytest.mark.parametrize("flags", [{}, {"zoom": 0.5}, {"zoom": 0.3, "rotate": 180}])
def test_image_and_classes_move_alike(flags):
    data = Windows(pictures_of(painted()), ["p"], side=64, scale=0.8, augment=PictureAugmentation(**flags))
    seen = set()
    for seed in range(12):
        sample = data[(0, seed)]
        brightness, target = shown(sample)[0], sample["target"]
        assert set(target.unique().tolist()) <= {0, 1, 255}
        sure = ((brightness < 50) | (brightness > 190)) & (target != 255)
        assert sure.float().mean() > 0.3
        assert (((brightness > 120).long() == target)[sure]).float().mean() > 0.99
        seen.add(target.numpy().tobytes())
    assert len(seen) == 12


def test_windows_inside_a_picture_are_labeled_to_the_corners():
    whole = LabeledImage("w", np.full((3, 400, 400), 200, np.uint8), np.ones((400, 400), np.uint8))
    data = Windows(pictures_of(whole), ["w"], side=48, scale=1.0, augment=PictureAugmentation(rotate=180))
    full = sum(bool((data[(0, seed)]["target"] == 1).all()) for seed in range(20))
    assert full >= 12  # the others lie at the picture's edge


def test_zoom_changes_the_size_of_things():
    classes = np.zeros((120, 120), np.uint8)
    classes[40:80, 40:80] = 1
    one = LabeledImage("z", np.stack([classes * 200] * 3), classes)
    data = Windows(pictures_of(one), ["z"], side=60, scale=0.5, augment=PictureAugmentation(zoom=0.5))
    areas = [int((data[(0, seed)]["target"] == 1).sum()) for seed in range(40)]
    assert max(areas) > 1.7 * 400
    assert min(areas) < 0.6 * 400


def test_flips_and_quarter_turns_reach_all_eight_positions():
    classes = np.zeros((4, 4), np.uint8)
    classes[0, 1] = 1
    data = Windows(
        pictures_of(LabeledImage("a", np.zeros((3, 4, 4), np.uint8), classes)),
        ["a"],
        side=4,
        scale=1,
        augment=PictureAugmentation(),
    )
    targets = [data[(0, seed)]["target"] for seed in range(99)]
    assert all((target == 1).sum() == 1 for target in targets)
    assert len({tuple(target.nonzero().flatten().tolist()) for target in targets}) == 8


def test_a_sample_depends_on_its_key_alone_and_leaves_the_global_generator():
    data = Windows(
        pictures_of(painted(seed=1, name="p"), painted(seed=2, name="q")),
        ["p", "q"],
        side=48,
        scale=0.7,
        augment=STRONG,
    )
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, other = data[(1, 7)], data[(1, 8)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = data[(1, 7)]
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["target"], again["target"])
    assert not torch.equal(first["image"], other["image"])


@settings(deadline=None, max_examples=25)
@given(st.integers(17, 150), st.integers(17, 150), st.floats(0.3, 2), st.integers(0, 10**6))
def test_strongest_augmentation_of_any_picture_gives_whole_finite_samples(height, width, scale, seed):
    sample = Windows(pictures_of(picture(height, width)), ["a"], side=48, scale=scale, augment=STRONG)[(0, seed)]
    assert sample["image"].shape == (3, 48, 48)
    assert sample["image"].isfinite().all()
    assert (sample["target"] != 255).any()
    assert ((shown(sample) > -0.5) & (shown(sample) < 255.5)).all()


def test_cutmix_takes_image_and_classes_of_the_same_place():
    black, white = (
        LabeledImage(n, np.full((3, 40, 40), 255 * v, np.uint8), np.full((40, 40), v, np.uint8)) for n, v in MIXED
    )
    data = Windows(pictures_of(black, white), ["b", "w"], side=40, scale=1, augment=PictureAugmentation(cutmix=0.5))
    shares = []
    for seed in range(40):
        sample = data[(0, seed)]
        assert ((shown(sample)[0] > 128).long() == sample["target"]).all()
        shares.append(float((sample["target"] == 1).float().mean()))
    mixed = [share for share in shares if share > 0]
    assert 4 <= len(mixed) <= 18, "half of them are mixed, every other one of these with a black one"
    assert min(mixed) >= 0.25**2 and max(mixed) <= 0.5**2


def test_float_pictures_are_augmented_like_bytes():
    one = painted()
    unit = LabeledImage("p", one.unit(), one.classes)
    samples = [Windows(pictures_of(p), ["p"], side=64, scale=0.8, augment=STRONG)[(0, 4)] for p in (one, unit)]
    assert torch.allclose(samples[0]["image"], samples[1]["image"], atol=0.05), "bytes are rounded when they are turned"
    assert torch.equal(samples[0]["target"], samples[1]["target"])


def test_an_epoch_has_as_many_samples_as_asked_for():
    black, white = (LabeledImage(n, np.full((3, 32, 32), v, np.uint8), np.zeros((32, 32), np.uint8)) for n, v in PLAIN)
    pictures = pictures_of(black, white)
    assert len(Windows(pictures, ["a", "b"], side=32, scale=1)) == 2
    longer = Windows(pictures, ["a", "b"], side=32, scale=1, length=5)
    assert len(longer) == 5
    assert [longer[(i, 0)]["id"] for i in range(5)] == ["a", "b", "a", "b", "a"]
    assert [round(float(shown(longer[(i, 0)]).mean())) for i in range(3)] == [10, 240, 10]


def test_validation_reads_at_the_scale_and_compares_at_the_labels_size():
    one = picture(50, 90)
    sample = WholePictures(pictures_of(one), ["a"], scale=0.4)[0]
    assert sample["image"].shape == (3, 20, 36)
    assert (sample["target"].numpy() == one.classes).all()
    assert shown(sample).mean() == pytest.approx(one.image.mean(), abs=1)


def test_median_side():
    assert median_side([(4, 9), (10, 10), (100, 100)]) == 10
