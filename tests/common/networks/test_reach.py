from __future__ import annotations

import torch
from torch import nn

from common.networks.checkpoint import ModelCard
from common.networks.reach import FARTHEST, measure_reach

CARD = ModelCard("toys", "toy", {}, ["a", "b"], {})


class Shifted(nn.Module):
    """Adds the picture moved by some pixels, times a weight."""

    def __init__(self, shift: int, weight: float = 0.1) -> None:
        super().__init__()
        self.shift, self.weight = shift, nn.Parameter(torch.tensor(weight))

    def forward(self, x):
        return (x + self.weight * x.roll(self.shift, -1))[:, :1]


def test_the_reach_of_known_networks():
    for shift in (0, 9, 15, 16, -50, 100):
        assert measure_reach(Shifted(shift), CARD) == (abs(shift) // 16 + 1) * 16
    assert measure_reach(Shifted(50, weight=1e-4), CARD) == 16, "what is less than rounding is no reach"


def test_a_network_that_sees_everything_reaches_as_far_as_is_measured():
    class Whole(Shifted):
        def forward(self, x):
            return x[:, :1] + 1e4 * x.mean(dim=(1, 2, 3), keepdim=True)

    assert measure_reach(Whole(3), CARD) == FARTHEST


def test_outputs_of_another_size_and_any_number_of_bands():
    class Half(Shifted):
        def forward(self, x):
            return x[:, 4:, ::2, ::2]

    assert measure_reach(Half(3), ModelCard("toys", "toy", {"channels": 5}, ["a", "b"], {})) == 16
