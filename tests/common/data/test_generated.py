import numpy as np
import torch
from torch.utils.data import default_collate

from common.data.generated import Crops, with_generated
from common.labels import IGNORE
from common.networks.shipped import BUILDINGS
from common.scenes.aerial import LAND
from common.scenes.sensor import photograph


class Bytes:
    """Samples of bytes whose value is their index."""

    def __len__(self):
        return 40

    def __getitem__(self, key):
        image = torch.full((3, 64, 64), key[0], dtype=torch.uint8)
        return {"image": image, "target": torch.zeros(64, 64, dtype=torch.uint8), "id": str(key[0])}


def test_a_crop_and_its_classes_follow_from_its_key_and_lie_on_each_other():
    crops = Crops(2, 4, 96, seed=0)
    one, again, other = (Crops(2, 4, 96, seed=0)[(0, 5)], crops[(1, 5)], crops[(0, 6)])
    assert torch.equal(one["image"], again["image"]) and torch.equal(one["target"], again["target"])
    assert not torch.equal(one["target"], other["target"])
    samples = [crops[(0, seed)] for seed in range(16)]
    edges = np.stack([np.abs(np.diff(sample["target"].numpy(), axis=1)) > 0 for sample in samples])
    steps = np.stack([sample["image"].diff(dim=2).abs().mean(0).numpy() for sample in samples])
    assert steps[edges].mean() > 1.5 * steps[~edges].mean()


def test_some_crops_see_little_ground_and_mirror_it_without_classes():
    shares = []
    for seed in range(8):
        sample = Crops(2, 4, 160, seed=0, small=1.0)[(0, seed)]
        known = (sample["target"] != IGNORE).numpy()
        rows, columns = np.flatnonzero(known.any(1)), np.flatnonzero(known.any(0))
        assert known[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.98, "a rectangle"
        pixels = sample["image"].numpy()
        assert known.all() or abs(pixels[:, ~known].mean() - pixels[:, known].mean()) < 0.15, "more of the same"
        shares.append(known.mean())
    assert 0.05 < min(shares) < 0.5
    assert all((Crops(2, 4, 160, seed=0)[(0, seed)]["target"] != IGNORE).float().mean() > 0.6 for seed in range(8))


def test_cameras_change_the_picture_but_not_its_places():
    rng = np.random.default_rng(0)
    image = np.full((64, 64, 3), 90, np.uint8)
    image[16:48, 16:48] = 170
    taken = [photograph(image, np.random.default_rng(seed)).astype(float) for seed in range(40)]
    assert all(one.shape == image.shape for one in taken)
    inside, outside = (np.array([one[rows].mean() for one in taken]) for rows in (np.s_[20:44, 20:44], np.s_[:12, :12]))
    assert (inside > outside + 3).mean() > 0.95
    assert outside.std() > 10 and (image[0, 0] == 90).all() and rng is not None


def test_a_share_of_the_samples_is_generated_in_the_tasks_classes_and_batches_with_the_others():
    own = Bytes()
    mixed = with_generated(own, 0.4, BUILDINGS.groups, 64)
    keys = [(index, 100 + index) for index in range(40)]
    found = [mixed[key] for key in keys]
    generated = [sample["id"].startswith("generated town") for sample in found]
    assert len(mixed) == 40 and 6 <= sum(generated) <= 26
    batch = default_collate(found)
    assert batch["image"].dtype == torch.float32 and batch["target"].dtype == torch.int64
    for key, sample, made in zip(keys, found, generated, strict=True):
        if made:
            land = mixed.crops[key]["target"]
            truth = torch.where(land == LAND.index("building"), 1, 0).where(land != IGNORE, IGNORE)
            assert torch.equal(sample["target"], truth)
        else:
            assert torch.equal(sample["image"] * 255, own[key]["image"].float())
    again = [with_generated(own, 0.4, BUILDINGS.groups, 64)[key]["image"] for key in keys[:6]]
    assert all(torch.equal(one, sample["image"]) for one, sample in zip(again, found, strict=False))
    assert with_generated(own, 0.0, BUILDINGS.groups, 64) is own
