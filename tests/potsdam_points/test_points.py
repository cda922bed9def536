import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.losses import build_loss
from potsdam_points.points import (
    at_points,
    class_weights,
    draw_points,
    even_quotas,
    find_points,
    from_points,
    read_points,
    save_class_weights,
    to_points,
    write_points,
)


def dense(seed=0, shape=(30, 40)):
    return np.random.default_rng(seed).choice([0, 1, 3, 255], shape, p=[0.6, 0.28, 0.02, 0.1]).astype(np.uint8)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 1500), st.integers(0, 1000), st.sampled_from(["uniform", "balanced"]))
def test_points_are_labeled_pixels_and_as_many_as_asked(count, seed, sampling):
    classes = dense(seed)
    sparse = draw_points(classes, count, seed=seed, image_id="7", sampling=sampling)
    kept = sparse != 255
    assert kept.sum() == min(count, (classes != 255).sum())
    assert (sparse[kept] == classes[kept]).all()


def test_an_image_keeps_its_points():
    classes = dense()
    first = draw_points(classes, 50, seed=1, image_id="7")
    assert (first == draw_points(classes, 50, seed=1, image_id="7")).all()
    assert (first != draw_points(classes, 50, seed=1, image_id="8")).any()
    assert (first != draw_points(classes, 50, seed=2, image_id="7")).any()


def test_zero_points_are_full_supervision():
    assert (draw_points(dense(), 0, seed=0, image_id="a") == dense()).all()


def test_balanced_points_reach_rare_classes():
    classes = dense()
    counts = np.bincount(draw_points(classes, 60, seed=0, image_id="a", sampling="balanced").ravel(), minlength=6)[:6]
    assert counts[[0, 1, 3]].tolist() == [20, 20, 20]


def test_uniform_points_follow_the_areas():
    classes = np.zeros((100, 100), np.uint8)
    classes[:20] = 1
    counts = np.bincount(draw_points(classes, 2000, seed=0, image_id="a").ravel(), minlength=2)
    assert abs(counts[1] - 400) < 60


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 200))
def test_quotas_share_all_that_fits(sizes, total):
    quotas = even_quotas(sizes, total)
    assert sum(quotas) == min(total, sum(sizes))
    assert all(q <= s for q, s in zip(quotas, sizes, strict=True))
    most = max(quotas)
    assert all(q == s or q >= most - 1 for q, s in zip(quotas, sizes, strict=True))


def test_a_table_of_points_survives_writing(tmp_path):
    sparse = draw_points(dense(), 50, seed=0, image_id="a")
    write_points(tmp_path / "points.csv", [("a", to_points(sparse)), ("b, c", to_points(sparse)[:3])])
    assert (tmp_path / "points.csv").read_text().splitlines()[0] == "id,x,y,class"
    table = read_points(tmp_path / "points.csv")
    assert (from_points(table["a"], 30, 40, source="a") == sparse).all()
    assert len(table["b, c"]) == 3


def test_hand_made_tables_may_use_names_or_numbers(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("id,x,y,class\nImage_7,3,1,Tree\n7,0,0,5\n")
    table = read_points(path)
    assert from_points(find_points(table, "7"), 2, 4, source="7").tolist() == [[5] + [255] * 3, [255] * 4]
    assert find_points({"Image_7": table["Image_7"]}, "7")[:, :3].tolist() == [[3, 1, 3]]
    assert find_points(table, "8") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,x,y\n1,2,3\n", "column class is missing"),
        ("id,x,y,class\n1,2,3,car\n1,2,3,boat\n", "line 3: 1, 2, 3, boat"),
        ("id,x,y,class\n1,2.5,3,car\n", "line 2"),
        ("id,x,y,class\n1,2\n", "line 2"),
        ("id,x,y,class\n1,2,3,car,4\n", "line 2: there are more values than the 4 columns"),
        ("id,x,x,y,class\n1,2,2,3,car\n", "line 1: a column is given twice"),
        ("id,x,y,class\n1,99999999999999999999,3,car\n", "line 2: 1, 99999999999999999999, 3, car is no point"),
        ("id,x,y,class\n1,2,3,car\n\xff", "line 3: 'utf-8' codec"),
    ],
)
def test_bad_tables_are_refused_by_line(tmp_path, text, words):
    (tmp_path / "p.csv").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=rf"--points-file .*p\.csv, .*{words}"):
        read_points(tmp_path / "p.csv")


def test_points_outside_the_image_are_refused():
    with pytest.raises(ValueError, match=r"a\.tif: 1 point.*4 x 2 pixels.*x 4, y 1"):
        from_points(np.array([[4, 1, 0], [3, 1, 0]]), 2, 4, source="a.tif")


def test_points_of_a_table_outside_the_image_are_refused_by_line(tmp_path):
    (tmp_path / "p.csv").write_text("id,x,y,class\na,3,1,car\na,4,1,car\n")
    with pytest.raises(ValueError, match=r"p\.csv, line 3: a\.tif: 1 point.*x 4, y 1"):
        from_points(read_points(tmp_path / "p.csv")["a"], 2, 4, source="a.tif", table=tmp_path / "p.csv")


def test_class_weights_are_median_over_frequency(tmp_path):
    weights = class_weights(np.array([600, 300, 0, 90, 10, 0]))
    median = np.median([600, 300, 90, 10])
    assert weights.dtype == torch.float32
    assert torch.allclose(weights, torch.tensor([median / 600, median / 300, 0, median / 90, median / 10, 0]).float())
    save_class_weights(tmp_path / "class_weights.pt", weights)
    assert torch.equal(torch.load(tmp_path / "class_weights.pt", weights_only=True), weights)


def test_losses_at_points_equal_those_over_the_image():
    torch.manual_seed(0)
    target = torch.full((2, 32, 32), 255)
    target.view(-1)[torch.randperm(target.numel())[:20]] = torch.randint(0, 6, (20,))
    logits = torch.randn(2, 6, 32, 32)
    for name in ("partial_ce", "ce", "dice", "focal"):
        loss = build_loss(name)
        assert torch.allclose(loss(*at_points(logits, target)), loss(logits, target), atol=1e-6)


def test_a_crop_without_points_is_fine():
    logits = torch.randn(2, 6, 32, 32, requires_grad=True)
    loss = build_loss("partial_ce+dice")(*at_points(logits, torch.full((2, 32, 32), 255)))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()
