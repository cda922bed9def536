import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.augmentation import Augmentation, cut
from common.images.windows import clip
from footprints.data import SceneSet, plan_tiles, survey
from footprints.samples import (
    FootprintCrops,
    FootprintTiles,
    change_colors,
)
from footprints.scene import ArrayScene
from tests.footprints.towns import roofs


def scene_of(name="s", height=120, width=150, seed=0):
    image, mask = roofs(height, width, seed)
    return ArrayScene(name, np.ascontiguousarray(np.moveaxis(image, -1, 0)), mask // 255)


def set_of(*scenes):
    found = SceneSet(list(scenes))
    for scene in scenes:
        found.counts[scene.id], found.spots[scene.id] = survey(scene)
    return found


def identity(row, col):
    return np.array([[1.0, 0, -col], [0, 1.0, -row]])


def test_a_crop_without_changes_is_the_window_itself():
    scene = scene_of()
    image, classes = cut(scene.read, identity(20, 30), 64, size=(120, 150))
    assert np.allclose(image, np.moveaxis(scene.image[:, 20:84, 30:94], 0, -1), atol=1e-6)
    assert (classes == scene.classes[20:84, 30:94]).all()


def test_beyond_the_edges_scenes_are_mirrored():
    scene = scene_of()
    image, classes = cut(scene.read, identity(-10, -12), 64, size=(120, 150))
    assert (classes == np.pad(scene.classes, ((10, 0), (12, 0)), mode="reflect")[:64, :64]).all()
    expected = np.pad(scene.image, ((0, 0), (10, 0), (12, 0)), mode="reflect")[:, :64, :64]
    assert np.allclose(image, np.moveaxis(expected, 0, -1), atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(5, 130), st.integers(5, 130), st.integers(16, 90))
def test_image_and_classes_move_together(seed, height, width, crop):
    """The picture is the class map: after any map both still agree, beyond the edges too."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 2, (height // 5 + 1, width // 5 + 1)), np.ones((5, 5)))[:height, :width]
    classes = coarse.astype(np.uint8)
    found = set_of(ArrayScene("s", np.stack([classes * 255] * 3), classes))
    crops = FootprintCrops(found, ["s"], crop=crop, augment=Augmentation(180, 0.3), balance=0.5 * classes.any())
    for key in ((0, seed), (1, seed + 1)):
        sample = crops[key]
        bright = sample["image"][0] > 0.5
        unsure = (sample["image"][0] - 0.5).abs() < 0.49  # interpolated between two classes
        assert ((bright == (sample["target"] == 1)) | unsure).all()
        assert set(sample["target"].unique().tolist()) <= {0, 1}


def test_windows_from_disk_give_the_same_crops():
    class Windows:
        """A scene that gives no more than what is asked for, as a raster on disk."""

        def __init__(self, scene):
            self.id, self.frame, self._scene, self.most = scene.id, scene.frame, scene, 0

        def read(self, window):
            assert clip(window, 120, 150) == window
            self.most = max(self.most, window.height, window.width)
            image, classes = self._scene.read(window)
            return image.copy(), classes.copy()

    scene = scene_of()
    found, other = set_of(scene), set_of(scene)
    other.scenes = [Windows(scene)]
    options = {"crop": 32, "augment": Augmentation(45, 0.2, 0.5), "balance": 0.5}
    one, two = FootprintCrops(found, ["s"], **options), FootprintCrops(other, ["s"], **options)
    for index in range(12):
        a, b = one[(index, 77 + index)], two[(index, 77 + index)]
        assert torch.equal(a["image"], b["image"]) and torch.equal(a["target"], b["target"])
    assert other.scenes[0].most <= math.ceil(32 * math.exp(0.2) * 2**0.5) + 6


def test_a_sample_depends_on_its_key_alone():
    found = set_of(scene_of("a"), scene_of("b", seed=1))
    crops = FootprintCrops(found, ["a", "b"], crop=48, augment=Augmentation(180, 0.3, 0.7), balance=0.5)
    first = crops[(3, 11)]
    crops[(0, 5)]
    again = crops[(3, 11)]
    assert torch.equal(first["image"], again["image"]) and torch.equal(first["target"], again["target"])
    assert not torch.equal(first["image"], crops[(3, 12)]["image"])


def test_an_epoch_shows_scenes_by_their_area():
    found = set_of(scene_of("small", 64, 64), scene_of("large", 128, 192))
    crops = FootprintCrops(found, ["small", "large"], crop=64)
    assert len(crops) == 1 + 6
    names = [crops[(i, i)]["id"] for i in range(len(crops))]
    assert names == ["small"] + ["large"] * 6
    assert len(FootprintCrops(found, ["small"], crop=64, length=5)) == 5


def test_balance_looks_at_buildings():
    image = np.zeros((3, 400, 400), np.uint8)
    classes = np.zeros((400, 400), np.uint8)
    classes[300:310, 50:60] = 1
    found = set_of(ArrayScene("rare", image, classes), ArrayScene("none", image, classes * 0))
    always = FootprintCrops(found, ["rare", "none"], crop=48, balance=1.0)
    assert all(always[(i, i)]["target"].eq(1).any() for i in range(20))
    never = FootprintCrops(found, ["rare", "none"], crop=48)
    assert sum(bool(never[(i, i)]["target"].eq(1).any()) for i in range(40)) < 10


def test_ignored_pixels_stay_ignored():
    scene = scene_of()
    scene.classes[:60] = 255
    crops = FootprintCrops(set_of(scene), ["s"], crop=150, augment=Augmentation(180))
    target = crops[(0, 3)]["target"]
    assert set(target.unique().tolist()) == {0, 1, 255}


@pytest.mark.parametrize("degrees", [15, 180])
def test_turns_stay_within_their_limit(degrees):
    crops = FootprintCrops(set_of(scene_of()), ["s"], crop=32, augment=Augmentation(degrees))
    turns = []
    for seed in range(200):
        matrix = crops._matrix((10.0, 20.0), np.random.default_rng(seed))
        flip = np.sign(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0])
        turns.append(math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])) if flip > 0 else 0.0)
        assert matrix[:, :2] @ (20.0, 10.0) + matrix[:, 2] == pytest.approx((15.5, 15.5))
    folded = np.abs((np.array(turns) + 90) % 180 - 90)  # two flips are half a turn
    assert folded.max() <= degrees and folded.max() > 0.8 * min(degrees, 90)


def test_colors_change_but_stay_colors():
    image = np.random.default_rng(0).random((40, 50, 3)).astype(np.float32)
    for seed in range(20):
        changed = change_colors(image, 1.0, np.random.default_rng(seed))
        assert changed.dtype == np.float32 and changed.shape == image.shape
        assert changed.min() >= 0 and changed.max() <= 1 and not np.allclose(changed, image)
    assert np.allclose(change_colors(image, 0.0, np.random.default_rng(1)), image, atol=1e-5)


def test_turns_zooms_and_flips_go_both_ways():
    crops = FootprintCrops(set_of(scene_of()), ["s"], crop=32, augment=Augmentation(15, 0.3))
    linear = np.array([crops._matrix((10.0, 20.0), np.random.default_rng(seed))[:, :2] for seed in range(200)])
    flips = np.sign(linear[:, [0, 1], [0, 1]])  # turns are small
    upright = linear * flips[:, None, :]
    turns = np.degrees(np.arctan2(upright[:, 1, 0], upright[:, 0, 0]))
    zooms = np.log(np.hypot(upright[:, 0, 0], upright[:, 1, 0]))
    for values, most in ((turns, 15), (zooms, 0.3)):
        assert -most - 1e-9 <= values.min() < -0.9 * most and 0.9 * most < values.max() <= most + 1e-9
    assert len(np.unique(flips, axis=0)) == 4


def test_crops_lie_anywhere_in_the_scene_and_not_beyond():
    crops = FootprintCrops(set_of(scene_of()), ["s"], crop=48)
    centers = np.array([crops._place(0, np.random.default_rng(seed))[1] for seed in range(200)])
    corners = centers - 23.5
    assert (corners.min(axis=0) >= 0).all() and (corners.min(axis=0) < 5).all()
    assert (corners.max(axis=0) <= (72, 102)).all() and (corners.max(axis=0) > (67, 97)).all()


def test_colors_change_as_strongly_as_is_asked_for():
    found = set_of(scene_of())

    def image(color):
        crops = FootprintCrops(found, ["s"], crop=64, augment=Augmentation(0, 0, color))
        return torch.stack([crops[(0, seed)]["image"] for seed in range(8)])

    weak, strong = (float((image(color) - image(0.0)).abs().mean()) for color in (0.1, 1.0))
    assert 0.002 < weak < 0.4 * strong


def test_float_images_are_not_divided_by_255():
    scene = scene_of()
    other = ArrayScene("s", scene.image.astype(np.float32) / 255, scene.classes)
    one, two = (FootprintCrops(set_of(s), ["s"], crop=64)[(0, 1)]["image"] for s in (scene, other))
    torch.testing.assert_close(one, two, atol=2e-2, rtol=0)  # 8-bit interpolation rounds
    assert one.max() <= 1 and one.max() > 0.5


def test_validation_shows_every_pixel_once():
    scene = scene_of(height=200, width=230)
    tiles = FootprintTiles(list(plan_tiles([scene], 64, 16)))
    counted = sum(int((tiles[i]["target"] != 255).sum()) for i in range(len(tiles)))
    assert counted == 200 * 230
    sample = FootprintTiles(list(plan_tiles([scene], 512, 16)))[0]
    assert np.allclose(sample["image"][1], scene.image[1] / 255, atol=1e-6)
    assert sample["id"] == "s"


def test_scenes_are_read_at_another_scale():
    scene = scene_of(height=160, width=200)
    crops = FootprintCrops(set_of(scene), ["s"], crop=40, scale=0.5)
    assert len(crops) == round(160 * 200 / 80**2)
    whole = FootprintCrops(set_of(scene_of(height=80, width=80)), ["s"], crop=40, scale=0.5)[(0, 3)]
    full = scene_of(height=80, width=80)
    means = full.image.reshape(3, 40, 2, 40, 2).mean((2, 4)) / 255
    assert np.abs(whole["image"].numpy() - means).mean() < 0.02
    truth = full.classes.reshape(40, 2, 40, 2)
    same = (truth == truth[:, :1, :, :1]).all((1, 3))
    assert (whole["target"].numpy() == truth[:, 0, :, 0])[same].all()

    sample = FootprintTiles(list(plan_tiles([scene], 512, 16)), scale=0.5)[0]
    assert sample["image"].shape == (3, 80, 100) and sample["target"].shape == (160, 200)
    assert np.allclose(sample["image"].numpy(), scene.image.reshape(3, 80, 2, 100, 2).mean((2, 4)) / 255, atol=1e-5)
