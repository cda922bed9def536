"""Encoders from torchvision: ImageNet weights, and first convolutions for any number of input channels.

Weights are downloaded by torchvision into its usual cache. They were trained on ImageNet, whose terms allow
non-commercial research use; torchvision's code is under the BSD 3-Clause license.
"""

from __future__ import annotations

import http.client
import pickle
from typing import Any

import torch
from torch import Tensor, nn

from common.command.cli import say

LICENSE = "trained on ImageNet (non-commercial research terms); torchvision is under the BSD 3-Clause license"


def torchvision_network(name: str, **options: Any) -> Any:  # noqa: ANN401 - untyped modules
    """A network of torchvision with random weights, such as ``resnet18`` (imported here: that takes a second)."""
    from torchvision.models import get_model

    return get_model(name, weights=None, **options)


def imagenet_state(name: str) -> dict[str, Tensor]:
    """Download (or take from the cache) torchvision's default ImageNet weights of a network, such as ``resnet18``.

    Raises:
        ValueError: the download failed; names the alternatives.
    """
    from torchvision.models import get_model_weights

    weights = get_model_weights(name).DEFAULT
    say(f"weights: {weights} from {weights.url}, {LICENSE}")
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, http.client.HTTPException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the ImageNet weights of {name} could not be downloaded from {weights.url} ({reason}); "
            "use --weights none to start from scratch, or --weights PATH for a file you have"
        ) from error


def adapt_stem(weight: Tensor, channels: int) -> Tensor:
    """First-layer filters (O, 3, k, k) for another number of input channels.

    One channel takes the sum of the RGB filters, so that a grey picture gives what it gave as RGB. With more than
    three, the RGB filters are kept exactly and the further channels get their mean divided by the number of channels.

    Returns:
        (O, channels, k, k).
    """
    if channels == 3:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    if channels == 2:
        return weight.mean(1, keepdim=True).expand(-1, 2, -1, -1) * 1.5
    extra = weight.mean(1, keepdim=True).expand(-1, channels - 3, -1, -1) / channels
    return torch.cat([weight, extra], dim=1)


def load_encoder(encoder: nn.Module, state: dict[str, Tensor], *, stem: str = "conv1.weight") -> None:
    """Load ImageNet weights into an encoder in place.

    The stem is adapted to the encoder's channels, layers that it lacks (the classifier) are left out.

    Raises:
        ValueError: the encoder has weights that ``state`` lacks.
    """
    own = encoder.state_dict()
    state = {key: value for key, value in state.items() if key in own}
    # Files from before PyTorch 0.4.1 lack the batch counters, which nothing here reads.
    missing = {key for key in own.keys() - state.keys() if not key.endswith("num_batches_tracked")}
    if missing:
        raise ValueError(f"the weights lack {len(missing)} of the encoder's tensors, such as {sorted(missing)[0]}")
    state[stem] = adapt_stem(state[stem], own[stem].shape[1])
    encoder.load_state_dict({**own, **state})
