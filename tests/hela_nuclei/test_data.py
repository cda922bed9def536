import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hela_nuclei import train
from hela_nuclei.data import Frame, LoadedFrame, audit, find_frames, load_frames, read_labels
from hela_nuclei.samples import FrameCrops, WholeFrames, semantic_target
from hela_nuclei.separate import distance_map


def test_challenge_layout(own_scene):
    (own_scene / "01" / "t002.tif").unlink()
    (own_scene / "01_ST" / "SEG" / "man_seg004.tif").unlink()
    (own_scene / "02" / "t000_mask.png").write_bytes(b"an output of infer.py")
    found = find_frames(own_scene)
    assert [frame.id for frame in found.frames] == ["01/t000", "01/t001", "01/t003", *(f"02/t00{i}" for i in range(5))]
    assert [frame.number for frame in found.frames[:3]] == [0, 1, 3]
    assert all(int(frame.mask.stem[-3:]) == frame.number for frame in found.frames)
    assert [path.name for path in found.without_mask] == ["t004.tif"]
    assert [path.name for path in found.without_frame] == ["man_seg002.tif"]
    for note, words in zip(found.notes(), ("1 frame(s) without a mask", "1 mask(s) without a frame"), strict=True):
        assert note.startswith(words)
        assert ("t004.tif" if "frame(s)" in note else "man_seg002.tif") in note
    shutil.rmtree(own_scene / "02_ST")
    found = find_frames(own_scene)
    assert {frame.sequence for frame in found.frames} == {"01"}
    assert len(found.without_mask) == 6


def test_other_layouts(scene, tmp_path):
    source = tmp_path / "combined_dataset"
    for folder in ("images", "masks", "stems"):
        (source / folder).mkdir(parents=True)
    for i in range(3):
        shutil.copy(scene / "01" / f"t00{i}.tif", source / "images" / f"img_{i:03d}.tif")
        for mask in (source / "masks" / f"mask_{i:03d}.tif", source / "stems" / f"img_{i:03d}_label.tif"):
            shutil.copy(scene / "01_ST" / "SEG" / f"man_seg00{i}.tif", mask)
    shutil.copy(scene / "01_ST" / "SEG" / "man_seg000.tif", source / "masks" / "other_000.tif")
    for root in (tmp_path, source):
        found = find_frames(root)
        assert [(f.id, f.mask.name) for f in found.frames] == [
            (f"images/img_00{i}", f"mask_00{i}.tif") for i in range(3)
        ]
        assert [path.name for path in found.without_frame] == ["other_000.tif"]
    found = find_frames(None, images=source / "images", labels=source / "stems")
    assert [f.mask.name for f in found.frames] == [f"img_00{i}_label.tif" for i in range(3)]
    with pytest.raises(FileNotFoundError, match="--labels"):
        find_frames(None, images=source / "images", labels=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="01_GT/SEG"):
        find_frames(tmp_path / "empty", truth="GT")


def test_a_folder_of_its_own_names_the_test_part(scene, tmp_path):
    for folder, numbers in (("combined_dataset", (0, 1, 2, 3)), ("combined_dataset_test", (0, 4))):
        for kind in ("images", "masks"):
            (tmp_path / folder / kind).mkdir(parents=True)
        for i in numbers:
            shutil.copy(scene / "01" / f"t00{i}.tif", tmp_path / folder / "images" / f"img_{i:03d}.tif")
            mask = tmp_path / folder / "masks" / f"mask_{i:03d}.tif"
            shutil.copy(scene / "01_ST" / "SEG" / f"man_seg00{i}.tif", mask)
    data = train.load_data(train.Config(data_root=tmp_path, test_fraction=0.5, val_fraction=0.25))
    ids = {part: [item.frame.id for item in items] for part, items in data.part.items()}
    assert ids["test"] == ["combined_dataset_test/img_000", "combined_dataset_test/img_004"]
    assert sorted(ids["train"] + ids["val"]) == [f"images/img_00{i}" for i in range(4)] and len(ids["val"]) == 1


def test_masks(tmp_path):
    ids = np.array([[0, 5], [65535, 0]], "u2")
    binary = np.array([[255, 0, 255], [0, 0, 255], [255, 0, 0]], "u1")
    cases = {
        "ids.tif": (ids, False),
        "float.tif": (ids.astype("f4"), False),
        "one.tif": (np.array([[7, 0, 7]], "u2"), False),
        "binary.tif": (binary, True),
        "bool.tif": (binary > 0, True),
        "empty.tif": (np.zeros((4, 4), "u1"), False),
    }
    for name, (array, is_binary) in cases.items():
        tifffile.imwrite(tmp_path / name, array)
        labels, found = read_labels(tmp_path / name)
        assert (labels.dtype, found) == (np.int32, is_binary), name
        np.testing.assert_array_equal(labels > 0, array > 0)
        if not is_binary:
            np.testing.assert_array_equal(labels, array)
    assert len(np.unique(read_labels(tmp_path / "binary.tif")[0])) == 4
    Image.fromarray(np.stack([binary] * 3, -1)).save(tmp_path / "grey.png")
    assert read_labels(tmp_path / "grey.png")[1]

    colors = np.zeros((8, 8, 3), "u1")
    colors[2, 2] = 9, 0, 0
    Image.fromarray(colors).save(tmp_path / "colors.png")
    tifffile.imwrite(tmp_path / "colors.tif", colors)
    tifffile.imwrite(tmp_path / "negative.tif", np.array([[0, -1], [-1, 2]], "i2"))
    tifffile.imwrite(tmp_path / "half.tif", np.array([[0, 0.5]], "f4"))
    tifffile.imwrite(tmp_path / "pages.tif", np.zeros((6, 8, 9), "u1"))
    for name, words in {"colors.png": "colored", "colors.tif": "3 channels", "negative.tif": "2 pixel.* -1",
                        "half.tif": "not whole", "pages.tif": "6 pages"}.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}.*{words}"):
            read_labels(tmp_path / name)


def made(image, labels, name="t000"):
    return LoadedFrame(Frame("01", 0, Path(f"{name}.tif"), Path(f"mask_{name}.tif")), image, labels)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**31 - 1), crop=st.sampled_from([0, 16, 40, 100]), height=st.integers(16, 60),
    width=st.integers(16, 60), border=st.integers(0, 40),
)  # fmt: skip
def test_samples_stay_aligned_and_depend_on_their_key_alone(seed, crop, height, width, border):
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.int32)
    labels[rng.random(labels.shape) < 0.3] = 60_000
    image = np.where(labels > 0, 40_000, 33_000).astype("u2")  # bright exactly where the truth is
    data = FrameCrops([made(image, labels)], crop=crop, length=7, border=border)
    assert len(data) == 7
    sample, again = data[(3, seed)], data[(4, seed)]
    side = (crop, crop) if crop else (height, width)
    assert sample["image"].shape == (1, *side)
    assert sample["target"].shape == sample["distance"].shape == side
    assert (sample["image"].dtype, sample["target"].dtype) == (torch.float32, torch.int64)
    assert all(torch.equal(sample[key], again[key]) for key in ("image", "target", "distance"))
    target, bright = sample["target"], sample["image"][0] > sample["image"].mean()
    valid = target != 255
    assert torch.equal((target == 1)[valid], (sample["distance"] > 0)[valid])
    if 0 < (target == 1).sum() < valid.sum() and crop <= min(height, width):
        assert torch.equal((target == 1)[valid], bright[valid])


def test_crops_differ_and_plain_samples_are_the_frame(scene):
    loaded, problems = load_frames(find_frames(scene).frames)
    assert not problems
    crops = FrameCrops(loaded, crop=32, length=100)
    assert not torch.equal(crops[(0, 1)]["image"], crops[(0, 2)]["image"])
    whole, plain = WholeFrames(loaded, border=10), FrameCrops(loaded, crop=0, border=10, augment=False)
    for i, item in enumerate(loaded):
        sample = whole[i]
        assert all(torch.equal(sample[k], plain[(i, 5)][k]) for k in ("image", "target", "distance"))
        np.testing.assert_allclose(sample["distance"], distance_map(item.labels), atol=1e-3)
        assert (float(sample["image"].min()), float(sample["image"].max())) == (0, 1)
        assert sample["id"] == item.frame.id
    small = made(np.zeros((20, 20), "u1"), np.zeros((20, 20), np.int32))
    with pytest.raises(ValueError, match="--crop-size"):
        FrameCrops([loaded[0], small], crop=0)
    facts = dict(audit([*loaded, small]))
    assert facts["size (rows x columns)"] == "96 x 128 (10), 20 x 20 (1: 01/t000)"
    assert facts["type"] == "uint16 (10), uint8 (1: 01/t000)"
    assert facts["without any nucleus"] == "01/t000"


def test_target_ignores_unlabeled_border():
    labels = np.zeros((20, 30), np.int32)
    labels[0:6, 0:6], labels[10:12, 12:14] = 4, 9
    target = semantic_target(labels, 5)
    rows, columns = np.indices(labels.shape)
    band = (np.minimum(rows, 19 - rows) < 5) | (np.minimum(columns, 29 - columns) < 5)
    np.testing.assert_array_equal(target, np.where(labels > 0, 1, np.where(band, 255, 0)))
    assert (semantic_target(labels, 0) == (labels > 0)).all()
    assert (semantic_target(np.zeros((8, 8), np.int32), 25) == 255).all()
