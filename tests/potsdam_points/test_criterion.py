from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from common.losses import build_loss, partial_cross_entropy
from common.networks.precision import Precision
from potsdam_points.criterion import PointCriterion, affinity, at_points, pseudo_labels

CPU = Precision(torch.device("cpu"), None)


def batch(labeled=20, size=16):
    torch.manual_seed(0)
    target = torch.full((2, 2 * size, 2 * size), 255)
    target.view(-1)[torch.randperm(target.numel())[:labeled]] = torch.randint(0, 6, (labeled,))
    image = torch.rand(2, 3, size, size)
    return {"image": image, "weak": image, "target": target, "id": ["a", "b"]}, torch.randn(
        2, 6, 2 * size, 2 * size, requires_grad=True
    )


class Constant(nn.Module):
    """A teacher that is sure of one class everywhere."""

    def forward(self, image):
        logits = image.new_zeros(len(image), 6, 2 * image.shape[2], 2 * image.shape[3])
        logits[:, 3] = 20
        return logits


def test_losses_at_points_equal_those_over_the_image():
    data, logits = batch()
    for name in ("partial_ce", "ce", "dice", "focal"):
        loss = build_loss(name)
        assert torch.allclose(loss(*at_points(logits, data["target"])), loss(logits, data["target"]), atol=1e-6)


def test_a_crop_without_points_is_fine():
    data, logits = batch(labeled=0)
    loss = PointCriterion(build_loss("partial_ce+dice"), CPU)(logits, data, None)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_source_loss_is_partial_focal_cross_entropy():
    data, logits = batch()
    weight = torch.tensor([1.0, 2, 0, 3, 1, 1])
    expected = partial_cross_entropy(logits, data["target"], gamma=2.0, weight=weight)
    assert torch.allclose(PointCriterion(build_loss("partial_ce", weight=weight), CPU)(logits, data, None), expected)


def test_pseudo_labels_are_believed_from_the_threshold_on():
    probability = torch.tensor([[0.79, 0.1], [0.11, 0.85], [0.1, 0.05]]).view(1, 3, 1, 2)
    assert pseudo_labels(probability, 0.8).tolist() == [[[255, 1]]]


def test_the_teacher_moves_unlabeled_pixels_alone():
    data, logits = batch()
    criterion = PointCriterion(build_loss("partial_ce"), CPU, pseudo=1.0, ramp=0.5)
    state = SimpleNamespace(inference_model=Constant(), progress=1.0)
    (criterion(logits, data, state) - build_loss("partial_ce")(logits, data["target"])).backward()
    pulled = logits.grad[..., ::2, ::2].abs().sum(1)
    unlabeled = data["target"][..., ::2, ::2] == 255
    assert (pulled[unlabeled] > 0).all()
    assert pulled[~unlabeled].abs().max() < 1e-7
    assert logits.grad[:, 3].sum() < 0


def test_unlabeled_terms_rise_and_stay_out_of_validation():
    data, logits = batch()
    plain = build_loss("partial_ce")(logits, data["target"])
    criterion = PointCriterion(build_loss("partial_ce"), CPU, pseudo=1.0, affinity=1.0, ramp=0.5)
    assert torch.equal(criterion(logits, data, None), plain)
    values = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        state = SimpleNamespace(inference_model=Constant(), progress=progress)
        values.append((criterion(logits, data, state) - plain).item())
    assert abs(values[0]) < 1e-6
    assert abs(values[1] - values[2] / 2) < 1e-5
    assert values[2] == values[3]
    with torch.inference_mode():
        assert torch.allclose(criterion(logits, {"target": data["target"]}, None), plain)


def test_affinity_wants_one_class_where_the_color_is_one():
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4:] = 5.0
    one, edge, other = (torch.zeros(1, 2, 8, 8) for _ in range(3))
    one[:, 0] = 20
    edge[:, 0, :, :4], edge[:, 1, :, 4:] = 20, 20
    other[:, 0, :4], other[:, 1, 4:] = 20, 20
    assert float(affinity(one, image)) < 1e-4
    assert float(affinity(edge, image)) < 1e-4
    assert float(affinity(other, image)) > 0.05


def test_affinity_by_its_definition():
    torch.manual_seed(1)
    logits, image = torch.randn(1, 3, 5, 6), torch.rand(1, 3, 5, 6)
    p = F.softmax(logits, 1)[0]
    total = 0.0
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        terms = []
        for y in range(5):
            for x in range(6):
                v, u = y + dy, x + dx
                if 0 <= v < 5 and 0 <= u < 6:
                    color = (image[0, :, y, x] - image[0, :, v, u]).square().mean()
                    terms.append(torch.exp(-color / (2 * 0.35**2)) * (1 - (p[:, y, x] * p[:, v, u]).sum()))
        total += torch.stack(terms).mean()
    assert torch.allclose(affinity(logits, image, distance=1), total / 4, atol=1e-5)
