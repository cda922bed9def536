import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from common.data.augmentation import affine_map, cut
from common.data.sampling import EpochBatches
from common.images.windows import Window
from permeability.data import Join, Mask, find_files, inspect_sites, join_sites, plan_tiles
from permeability.samples import (
    TrainingWindows,
    ValidationTiles,
    WindowAugmentation,
    around,
    change_colors,
    measure,
)
from tests.permeability.sheets import patches, write_raster


@pytest.fixture(scope="module")
def found(easy):
    sites, _, _ = join_sites(*find_files(easy, None, None), Join())
    return inspect_sites(sites)[0]


def windows(found, **options):
    return TrainingWindows(found, [site.id for site in found.sites], crop=32, length=40, **options)


def test_measured_normalization_is_that_of_labeled_pixels(tmp_path):
    image, mask = patches(64, 64)
    mask[:20] = 255
    image[:, :20] = 250
    photo, path = write_raster(tmp_path / "a.tif", image), write_raster(tmp_path / "b.tif", mask)
    sites, _, _ = join_sites([photo], [Mask(path)], Join())
    found, _ = inspect_sites(sites)
    measured = measure(found, [site.id for site in sites], crop=64, channels=3, count=2, seed=0)
    known = image[:, 20:].reshape(3, -1) / 255
    assert np.allclose(measured["mean"], known.mean(axis=1), atol=1e-4)
    assert np.allclose(measured["std"], known.std(axis=1), atol=1e-4)


def test_a_sample_depends_on_its_seed_alone(found):
    data = windows(found, balance=0.5, augment=WindowAugmentation(20, 0.2, 0.5, flips=True))
    one, same, other = data[(0, 5)], data[(7, 5)], data[(0, 6)]
    assert torch.equal(one["image"], same["image"]) and torch.equal(one["target"], same["target"])
    assert not torch.equal(one["image"], other["image"])
    assert one["image"].dtype == torch.uint8 and one["image"].shape == (3, 32, 32)


def test_workers_give_the_same_samples(found):
    data = windows(found, augment=WindowAugmentation(flips=True))
    data[(0, 0)]  # handles are open here when the workers are forked
    batches = [
        [batch["image"] for batch in DataLoader(data, batch_sampler=EpochBatches(40, 8, 0), num_workers=workers)]
        for workers in (0, 1)
    ]
    assert len(batches[0]) == 5 and all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def test_windows_lie_inside_and_everywhere(found):
    data = windows(found)
    places = [data._draw((0, seed))[:2] for seed in range(400)]
    assert {site.id for site, _ in places} == {site.id for site in found.sites}
    rows = [around(center, 32).row for _, center in places]
    assert min(rows) <= 8 and max(rows) >= 112 - 32 - 8
    for site, center in places:
        window = around(center, 32)
        area = site.window
        assert window.row >= area.row and window.row + 32 <= area.row + area.height
        assert window.col >= area.col and window.col + 32 <= area.col + area.width


def test_balance_brings_rare_classes(tmp_path):
    mask = np.ones((200, 200), np.uint8)
    mask[90:100, 40:50] = 0  # a quarter of a percent
    photo, path = write_raster(tmp_path / "a.tif", patches(200, 200)[0]), write_raster(tmp_path / "b.tif", mask)
    sites, _, _ = join_sites([photo], [Mask(path)], Join())
    found, _ = inspect_sites(sites)

    def share(balance):
        data = TrainingWindows(found, ["b"], crop=32, length=1, balance=balance)
        return np.mean([bool((data[(0, seed)]["target"] == 0).any()) for seed in range(150)])

    assert share(0) < 0.15 and 0.4 < share(1) < 0.7


def test_windows_are_drawn_by_area_and_around_classes_by_the_root_of_their_pixels(tmp_path):
    """Three sheets beside each other: a small and a large one of class 0, and one of class 1."""
    photos, masks = [], []
    for number, (size, value) in enumerate([((40, 40), 0), ((80, 160), 0), ((40, 40), 1)]):
        place = {"left": 430000 + 1000 * number, "top": 4580000}
        image, _ = patches(*size, seed=number)
        photos.append(write_raster(tmp_path / f"photo{number}.tif", image, **place))
        masks.append(Mask(write_raster(tmp_path / f"mask{number}.tif", np.full(size, value, np.uint8), **place)))
    found, _ = inspect_sites(join_sites(photos, masks, Join())[0])

    def shares(balance):
        data = TrainingWindows(found, [site.id for site in found.sites], crop=16, length=1, balance=balance)
        drawn = [data._draw((0, seed))[0].id for seed in range(3000)]
        return [drawn.count(site.id) / 3000 for site in found.sites]

    assert shares(0.0) == pytest.approx([0.1, 0.8, 0.1], abs=0.03)
    roots = np.sqrt([1600, 12800]) / np.sqrt([1600, 12800]).sum()
    assert shares(1.0) == pytest.approx([roots[0] / 2, roots[1] / 2, 0.5], abs=0.03)


def test_the_sources_augmentation_is_flips_from_left_to_right(found):
    plain, flipped = windows(found), windows(found, augment=WindowAugmentation())
    seen = set()
    for seed in range(12):
        one, other = plain[(0, seed)], flipped[(0, seed)]
        if torch.equal(one["image"], other["image"]):
            assert torch.equal(one["target"], other["target"])
            seen.add("same")
        else:
            assert torch.equal(one["image"].flip(-1), other["image"])
            assert torch.equal(one["target"].flip(-1), other["target"])
            seen.add("flipped")
    assert seen == {"same", "flipped"}


def test_image_and_classes_stay_together_under_every_change(found):
    """Green is permeable in these sheets, so the classes can be read off the picture."""
    data = windows(found, augment=WindowAugmentation(180, 0.3, flips=True))
    agreed, known = 0, 0
    for seed in range(30):
        sample = data[(0, seed)]
        image, target = sample["image"].numpy() / 255, sample["target"].numpy()
        guess = image[1] - image[0] > 0.1
        labeled = target != 255
        agreed += int((guess == (target == 1))[labeled].sum())
        known += int(labeled.sum())
    assert agreed / known > 0.93


def part_of(site, center, turn, zoom):
    """Image (3, 32, 32) and classes of a turned and enlarged square."""
    image, classes = cut(site.read, affine_map(center, 32, turn, zoom), 32, outside=255)
    return np.moveaxis(image, -1, 0), classes


def test_an_unturned_cut_is_the_window_itself(found):
    site = found.sites[0]
    window = Window(20, 30, 32, 32)
    image, classes = site.read(window)
    found_image, found_classes = part_of(site, (20 + 15.5, 30 + 15.5), 0.0, 1.0)
    assert np.array_equal(found_classes, classes)
    assert np.abs(found_image.astype(int) - image).max() <= 1
    turned, turned_classes = part_of(site, (20 + 15.5, 30 + 15.5), -np.pi / 2, 1.0)
    assert np.array_equal(turned_classes, np.rot90(classes))
    assert np.abs(turned.astype(int) - np.rot90(image, axes=(1, 2))).max() <= 1


def test_zoom_enlarges(found):
    site = found.sites[0]
    inner = site.read_classes(Window(28, 38, 16, 16))
    _, classes = part_of(site, (20 + 15.5, 30 + 15.5), 0.0, 2.0)
    assert np.mean(classes == np.kron(inner, np.ones((2, 2), np.uint8))) > 0.95


def test_beyond_the_edge_is_ignored(found):
    _, classes = part_of(found.sites[0], (0.0, 0.0), 0.3, 1.0)
    assert (classes == 255).mean() > 0.5


def test_colors_change_moderately_and_stay_in_range(found):
    image, _ = found.sites[0].read(Window(0, 0, 64, 64))
    for seed in range(10):
        changed = change_colors(image, 0.5, np.random.default_rng(seed))
        assert changed.dtype == np.uint8 and changed.shape == image.shape
        assert 0 < np.abs(changed / 255 - image / 255).mean() < 0.3
    unit = change_colors((image / 255).astype(np.float32), 0.5, np.random.default_rng(9))
    assert unit.dtype == np.float32 and unit.min() >= 0 and unit.max() <= 1
    assert np.abs(unit - changed / 255).max() < 0.003
    five = np.concatenate([image, image[:2]])
    assert change_colors(five, 0.5, np.random.default_rng(0)).shape == (5, 64, 64)


def test_validation_tiles(found):
    tiles = list(plan_tiles(found.sites[:1], 64, 8))
    data = ValidationTiles(tiles)
    assert len(data) == len(tiles) == 4 and len({data[i]["id"] for i in range(4)}) == 4
    assert sum(int((data[i]["target"] != 255).sum()) for i in range(4)) == int(found.counts[tiles[0].site.id][:2].sum())
