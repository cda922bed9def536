"""How far a network sees: what overlap its tiles need."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.networks.checkpoint import ModelCard
from common.networks.normalize import normalize

SIDE, PROBES = 384, 4
"""Pixels of the square on which the reach is measured, and how many of its pixels are changed, one at a time."""
FARTHEST = SIDE // 2
STEP = 16
"""The reach is told in multiples of this."""
ROUNDING = 2.0**-8
"""Relative error of a bfloat16."""


def measure_reach(network: nn.Module, card: ModelCard) -> int:
    """Pixels of the network's input beyond which a change of one pixel changes no logit by more than rounding does.

    A pixel near the middle of a picture of noise is turned from dark to bright or back. What the logits change by is
    compared with the rounding of a bfloat16 as large as the logits spread.

    Args:
        network: in evaluation mode, in full precision.
        card: its normalization and number of bands.

    Returns:
        A multiple of 16, at most `FARTHEST`: it sees so far or farther.
    """
    device = next(network.parameters()).device
    images = _noise(int(card.arch_args.get("channels", 3))).to(device)
    distance = torch.arange(SIDE, device=device)
    reach = 0
    with torch.inference_mode():
        before = _logits(network, images, card)
        least = ROUNDING * float(before.std())
        for probe in range(PROBES):
            row, col = SIDE // 2 + 5 * probe, SIDE // 2 - 7 * probe
            changed = images.clone()
            changed[:, :, row, col] = 1 - images[:, :, row, col].round()
            seen = ((_logits(network, changed, card) - before).abs() > least).any(dim=1)[0]
            away = torch.maximum((distance - row).abs()[:, None], (distance - col).abs()[None])
            reach = max(reach, int(away[seen].max()) if seen.any() else 0)
    return min(math.ceil((reach + 1) / STEP) * STEP, FARTHEST)


def _logits(network: nn.Module, images: Tensor, card: ModelCard) -> Tensor:
    outputs = network(normalize(images, card.normalization)).float()
    return outputs if outputs.shape[2:] == images.shape[2:] else F.interpolate(outputs, size=SIDE, mode="bilinear")


def _noise(channels: int) -> Tensor:
    """Clouds (1, channels, SIDE, SIDE) in 0...1: noise of all sizes, the larger the stronger, as in photographs."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(1, channels, SIDE, SIDE)
    for level in range(7):
        side = SIDE >> level
        noise = torch.randn(1, channels, side, side, generator=generator)
        total += 2 ** (level / 2) * F.interpolate(noise, size=SIDE, mode="bilinear")
    return ((total - total.mean()) / total.std() * 0.2 + 0.45).clamp(0, 1)
