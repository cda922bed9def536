import numpy as np
import pytest
import rasterio
import tifffile
import torch
from PIL import Image

from common.data.augmentation import Augmentation
from common.data.labeled import LabeledImage
from common.data.pairs import require_usable
from potsdam_points.data import (
    audit,
    expand_ids,
    find_patches,
    load_patch,
    load_patches,
    patch_id,
    split_patches,
)
from potsdam_points.labels import decode
from potsdam_points.samples import CropPlan, PointCrops, WholePatches, change_colors


def test_patches_are_joined_by_id_in_natural_order(scene):
    patches, notes = find_patches(scene)
    assert [patch.id for patch in patches] == [str(i) for i in range(8)]
    assert all(patch_id(p.image.stem) == patch_id(p.label.stem) == p.id for p in patches)
    assert notes == []


def test_parents_and_two_folders_work_too(scene, tmp_path):
    (tmp_path / "patches").symlink_to(scene)
    assert len(find_patches(tmp_path)[0]) == 8
    assert len(find_patches(None, images=scene / "Images", labels=scene / "Labels")[0]) == 8


def test_files_without_partner_are_named(scene, tmp_path):
    for name in ("Images", "Labels"):
        (tmp_path / name).mkdir()
    for number in (2, 10):
        (tmp_path / "Images" / f"Image_{number}.tif").symlink_to(scene / "Images" / "Image_1.tif")
    for number in (2, 3):
        (tmp_path / "Labels" / f"Label_{number}.tif").symlink_to(scene / "Labels" / "Label_1.tif")
    patches, notes = find_patches(tmp_path)
    assert [patch.id for patch in patches] == ["2"]
    assert len(notes) == 2
    assert "Image_10.tif: no label" in notes[0]
    assert "Label_3.tif: no image" in notes[1]


def test_nothing_to_join_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--data-root .* is not a folder"):
        find_patches(tmp_path / "no")
    with pytest.raises(ValueError, match="holds no Images/ with Labels/"):
        find_patches(tmp_path)


def test_points_take_the_place_of_labels(scene, tmp_path):
    (tmp_path / "p.csv").write_text("id,x,y,class\n0,5,2,car\n3,1,1,tree\n")
    patches, notes = find_patches(None, images=scene / "Images", points_file=tmp_path / "p.csv")
    assert [patch.id for patch in patches] == ["0", "3"]
    assert len(notes) == 6
    classes = load_patch(patches[0]).classes
    assert (classes != 255).sum() == 1
    assert classes[2, 5] == 4


def test_transparent_pixels_are_ignored(tmp_path):
    rgba = np.full((6, 6, 4), 200, np.uint8)
    rgba[:, 3:, 3] = 0
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.fromarray(rgba).save(tmp_path / "images" / "a.png")
    Image.fromarray(decode(np.zeros((6, 6), np.uint8))).save(tmp_path / "labels" / "a_label.png")
    patch = load_patch(find_patches(tmp_path)[0][0])
    assert (patch.classes[:, :3] == 0).all()
    assert (patch.classes[:, 3:] == 255).all()


def test_16_bit_images_keep_their_levels(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    tifffile.imwrite(tmp_path / "images" / "a.tif", np.full((4, 4, 3), 1000, np.uint16), photometric="rgb")
    Image.fromarray(np.ones((4, 4), np.uint8)).save(tmp_path / "labels" / "a.png")
    assert np.allclose(load_patch(find_patches(tmp_path)[0][0]).unit(), 1000 / 65535)


def test_bad_patches_are_all_named_and_refused(scene, tmp_path, capsys):
    for name in ("Images", "Labels"):
        (tmp_path / name).mkdir()
    good = tifffile.imread(scene / "Images" / "Image_0.tif")
    labels = tifffile.imread(scene / "Labels" / "Label_0.tif")
    for number in range(4):
        tifffile.imwrite(tmp_path / "Images" / f"Image_{number}.tif", good)
    odd = labels.copy()
    odd[:2, :3] = (9, 9, 9)
    for number, label in enumerate((labels, odd, labels[:50])):
        tifffile.imwrite(tmp_path / "Labels" / f"Label_{number}.tif", label)
    (tmp_path / "Labels" / "Label_3.tif").write_text("no image")
    loaded, problems = load_patches(find_patches(tmp_path)[0])
    assert [patch.id for patch in loaded] == ["0"]
    assert ["Label_1.tif: unknown color (9, 9, 9) in 6 pixels" in problems[0], "50 x 96" in problems[1]] == [True, True]
    assert "Label_3.tif" in problems[2]
    with pytest.raises(ValueError, match="3 bad file"):
        require_usable(len(loaded), problems, skip_bad=False)
    require_usable(len(loaded), problems, skip_bad=True)
    assert capsys.readouterr().err.count("Label_1.tif") == 2
    with pytest.raises(ValueError, match="none of the 3"):
        require_usable(0, problems, skip_bad=True)
    assert len(load_patches(find_patches(tmp_path)[0], unknown="ignore")[0]) == 2


def test_the_audit_counts_labels(scene):
    rows = dict(audit(load_patches(find_patches(scene)[0])[0]))
    assert rows["pairs"] == "8"
    assert rows["size (rows x columns)"] == "96 x 96 (8)"
    assert "impervious" in rows["label pixels"]


def test_the_last_ids_are_validation(capsys):
    ids = [str(i) for i in range(20)]
    split = split_patches(ids, 5, 0.1, 0.1, 0)
    assert split["val"] == ["15", "16", "17", "18", "19"]
    assert (len(split["train"]), split["test"]) == (15, [])
    assert split_patches(ids, 300, 0.1, 0.1, 0)["val"] == ["18", "19"]
    assert "--val-last 300" in capsys.readouterr().err
    assert len(split_patches(ids, 0, 0.1, 0.2, 0)["test"]) == 4
    named = split_patches(ids, 5, 0.1, 0.1, 0, val_ids=("3", "7-9"))
    assert named["val"] == ["3", "7", "8", "9"]
    assert len(named["train"]) == 16
    with pytest.raises(ValueError, match="--val-ids 77"):
        split_patches(ids, 5, 0.1, 0.1, 0, val_ids=("3", "77"))
    with pytest.raises(ValueError, match="none is left"):
        split_patches(ids, 5, 0.1, 0.1, 0, val_ids=("0-19",))
    with pytest.raises(ValueError, match="at least 2"):
        split_patches(["1"], 5, 0, 0, 0)


def patch(side=64, seed=0):
    rng = np.random.default_rng(seed)
    classes = np.full((side, side), 255, np.uint8)
    classes[rng.integers(0, side, 40), rng.integers(0, side, 40)] = rng.integers(0, 6, 40)
    return LabeledImage("a", rng.integers(0, 255, (3, side, side), dtype=np.uint8), classes)


def test_an_unchanged_crop_is_the_image_and_its_points():
    sample = PointCrops([patch()], CropPlan(crop=64, shrink=1))[(0, 5)]
    assert torch.allclose(sample["image"] * 255, torch.from_numpy(patch().image).float(), atol=1e-3)
    assert (sample["target"].numpy() == patch().classes).all()


def test_shrinking_takes_block_means():
    sample, whole = PointCrops([patch()], CropPlan(crop=64, shrink=2))[(0, 5)], WholePatches([patch()], shrink=2)[0]
    assert sample["image"].shape == (3, 32, 32)
    assert torch.allclose(sample["image"], whole["image"], atol=1e-2)
    assert (sample["target"] == whole["target"]).all()


def test_points_move_with_the_image():
    """Every point sits on a pixel that shows its class: the image is painted with the class, whatever the map."""
    rng = np.random.default_rng(0)
    classes = np.kron(rng.integers(0, 6, (8, 8)), np.ones((12, 12))).astype(np.uint8)
    painted = LabeledImage("a", np.stack([classes * 40] * 3), classes)
    data = PointCrops([painted], CropPlan(crop=64, shrink=1), augment=Augmentation(zoom=0.4, rotate=180))
    for seed in range(5):
        sample = data[(0, seed)]
        shown = sample["image"][0] * 255 / 40
        known = sample["target"] != 255
        agree = (shown[known] - sample["target"][known]).abs() < 0.1
        assert known.float().mean() > 0.3
        assert agree.float().mean() > 0.7  # the rest lies on class borders, where interpolation mixes colors


def test_a_sample_depends_on_its_key_alone():
    data = PointCrops(
        [patch(seed=i) for i in range(3)],
        CropPlan(crop=32, shrink=2, balance=0.5),
        augment=Augmentation(180, 0.3, 1.0),
    )
    first, other = data[(1, 7)], data[(1, 8)]
    assert torch.equal(first["image"], data[(1, 7)]["image"])
    assert not torch.equal(first["image"], other["image"])


def test_balance_centers_on_rare_classes():
    classes = np.zeros((256, 256), np.uint8)
    classes[200, 40] = 4
    rare = LabeledImage("a", np.zeros((3, 256, 256), np.uint8), classes)
    data = PointCrops([rare], CropPlan(crop=64, shrink=2, balance=1.0))
    hits = sum(bool((data[(0, seed)]["target"] == 4).any()) for seed in range(40))
    assert 10 <= hits <= 30  # half of the draws are of the rare class


def test_some_points_of_many_are_drawn_anew_for_each_crop():
    every = PointCrops([patch()], CropPlan(crop=64, shrink=2))[(0, 3)]["target"]
    data = PointCrops([patch()], CropPlan(crop=64, shrink=2, most_points=25))
    some, others = data[(0, 3)]["target"], data[(0, 4)]["target"]
    kept = some != 255
    assert torch.equal(some[kept], every[kept])
    assert 10 < kept.sum() <= 25 < (every != 255).sum()
    assert not torch.equal(some, others)


def test_changed_colors_stay_in_range():
    image = np.random.default_rng(0).random((16, 16, 3), np.float32)
    for seed in range(20):
        changed = change_colors(image, 1.0, np.random.default_rng(seed))
        assert changed.dtype == np.float32
        assert 0 <= changed.min() <= changed.max() <= 1


def test_odd_validation_images_are_padded_with_ignored_pixels():
    odd = LabeledImage("a", np.zeros((3, 5, 7), np.uint8), np.zeros((5, 7), np.uint8))
    sample = WholePatches([odd], shrink=2)[0]
    assert sample["image"].shape == (3, 3, 4)
    assert sample["target"].shape == (6, 8)
    assert (sample["target"] == 255).sum() == 48 - 35


def test_a_georeferenced_image_is_read_like_any_other(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (3, 8, 8), dtype=np.uint8)
    options = {"driver": "GTiff", "height": 8, "width": 8, "count": 3, "dtype": "uint8", "crs": "EPSG:25833"}
    transform = rasterio.Affine(0.5, 0, 100, 0, -0.5, 200)
    with rasterio.open(tmp_path / "images" / "a.tif", "w", transform=transform, **options) as dataset:
        dataset.write(pixels)
    Image.fromarray(np.ones((8, 8), np.uint8)).save(tmp_path / "labels" / "a.png")
    assert (load_patch(find_patches(tmp_path)[0][0]).image == pixels).all()


def test_a_range_of_ids_takes_no_memory_of_its_own():
    ids = ["2", "7", "10", "11", "007", "x"]
    assert expand_ids(["0-999999999999999999"], ids) == ["2", "7", "10", "11"]
    assert expand_ids(["7-10", "x"], ids) == ["7", "10", "x"]
    with pytest.raises(ValueError, match="--val-ids 12-99999 is no id"):
        expand_ids(["12-99999"], ids)
