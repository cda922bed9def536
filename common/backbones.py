"""Encoders from torchvision: ImageNet weights, and first convolutions for any number of input channels.

Weights are downloaded by torchvision into its usual cache. They were trained on ImageNet, whose terms allow non-commercial research use;
torchvision's code is under the BSD 3-Clause license.
"""

from __future__ import annotations

import urllib.error
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from common.cli import say

LICENSE = "trained on ImageNet (non-commercial research terms); torchvision is under the BSD 3-Clause license"


def imagenet_state(name: str) -> dict[str, Tensor]:
    """Download (or take from the cache) torchvision's default ImageNet weights of a network, such as ``resnet18``.

    Raises:
        ValueError: the download failed; names the alternatives.
    """
    weights = get_model_weights(name).DEFAULT
    say(f"weights: {weights} from {weights.url}, {LICENSE}")
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise ValueError(
            f"the ImageNet weights of {name} could not be downloaded from {weights.url} ({error}); use --weights none to start from scratch, "
            "or --weights PATH for a file you have"
        ) from error


def adapt_stem(weight: Tensor, channels: int, *, single: Literal["sum", "mean"] = "sum") -> Tensor:
    """First-layer filters (O, 3, k, k) for another number of input channels.

    One channel takes the sum of the RGB filters, so that a grey picture gives what it gave as RGB. With more than three, the RGB filters are
    kept exactly and the further channels get their mean divided by the number of channels.

    Returns:
        (O, channels, k, k).
    """
    if channels == 3:
        return weight
    if channels == 1:
        total = weight.sum(1, keepdim=True)
        return total if single == "sum" else total / 3
    if channels == 2:
        return weight.mean(1, keepdim=True).expand(-1, 2, -1, -1) * 1.5
    extra = weight.mean(1, keepdim=True).expand(-1, channels - 3, -1, -1) / channels
    return torch.cat([weight, extra], dim=1)


def load_encoder(encoder: nn.Module, state: dict[str, Tensor], *, stem: str = "conv1.weight") -> None:
    """Load ImageNet weights into an encoder in place: the stem is adapted to its channels, layers that it lacks (the classifier) are left out.

    Raises:
        ValueError: the encoder has weights that ``state`` lacks.
    """
    own = encoder.state_dict()
    state = {key: value for key, value in state.items() if key in own}
    state[stem] = adapt_stem(state[stem], own[stem].shape[1])
    missing = own.keys() - state.keys()
    if missing:
        raise ValueError(f"the weights lack {len(missing)} of the encoder's tensors, such as {sorted(missing)[0]}")
    encoder.load_state_dict(state)


__all__ = ["adapt_stem", "get_model", "imagenet_state", "load_encoder"]
