"""Initial weights: ImageNet for both kinds of encoder, or any checkpoint of ours, of the peers, or of an encoder alone.

ResNets' come from torchvision. Those of the Mix Transformer are SegFormer's own, published by NVIDIA on Hugging Face
under the NVIDIA Source Code License for SegFormer (non-commercial use); files of the original layout (``mit_b4.pth``)
are read too.
"""

from __future__ import annotations

import http.client
import re
import shutil
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from common.command.cli import say
from common.files import atomic_path
from common.networks.backbones import adapt_stem, imagenet_state, load_encoder
from common.networks.checkpoint import StateDict, load_matching, read_weights
from common.networks.task import load_whole
from permeability.encoders import MIX_TRANSFORMER_DEPTHS, recognize_encoder
from permeability.model import SegmentationModel, accept_foreign

HUB = "https://huggingface.co/nvidia"
LICENSE = "NVIDIA Source Code License for SegFormer (non-commercial use), trained on ImageNet"
PUBLISHED = re.compile(r"(?:segformer\.)?encoder\.(patch_embeddings|block|layer_norm)\.(\d)\.(?:(.+)\.)?(weight|bias)")
"""Keys on Hugging Face: kind of layer, stage from 0, which layer of it, parameter."""
PARTS = {
    "layer_norm_1": "norm1",
    "layer_norm_2": "norm2",
    "attention.self.query": "attn.q",
    "attention.self.key": "attn.kv",  # joined with attention.self.value
    "attention.self.sr": "attn.sr",
    "attention.self.layer_norm": "attn.norm",
    "attention.output.dense": "attn.proj",
    "mlp.dense1": "mlp.fc1",
    "mlp.dwconv.dwconv": "mlp.dwconv.dwconv",
    "mlp.dense2": "mlp.fc2",
}
"""Parts of a block: their names on Hugging Face and the original ones."""


def published_state(name: str) -> StateDict:
    """ImageNet weights of an encoder by its name, torchvision's or SegFormer's."""
    return segformer_state(name) if name in MIX_TRANSFORMER_DEPTHS else imagenet_state(name)


def load_weights(model: nn.Module, path: Path) -> str:
    """Load a file into a network in place, and say what was loaded.

    It may hold a whole network (tensors of another shape, such as a head for other classes, keep their random start) or
    an encoder alone. Filters for RGB are adapted to other input channels.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it does not fit.
    """
    if not isinstance(model, SegmentationModel):
        return load_whole(model, path)
    encoder, state = model.encoder, original_layout(read_weights(path))
    found = recognize_encoder(state)
    if found is None:
        accept_foreign(model, state, "")
        stem = f"encoder.{encoder.stem}"
        channels = model.state_dict()[stem].shape[1]
        if stem in state and state[stem].shape[1] == 3:
            state[stem] = adapt_stem(state[stem], channels)
        return load_matching(model, state)
    if found[0] != encoder.name:
        raise ValueError(f"--weights {path} holds the encoder {found[0]}, the network has {encoder.name}")
    load_encoder(encoder, state, stem=encoder.stem)
    return f"encoder {encoder.name} (the decoder is new and untrained)"


def segformer_state(name: str) -> StateDict:
    """Download (or take from the cache) SegFormer's ImageNet weights of an encoder, such as ``mit_b4``.

    Returns:
        Weights under the encoder's names.

    Raises:
        ValueError: the download failed or the cached file is damaged; names the alternatives.
    """
    url = f"{HUB}/{name.replace('_', '-')}/resolve/main/pytorch_model.bin"
    cached = Path(torch.hub.get_dir()) / "checkpoints" / f"segformer_{name}.bin"
    say(f"weights: {name} from {url}, {LICENSE}")
    try:
        if not cached.is_file():
            with atomic_path(cached) as temporary:
                with urllib.request.urlopen(url, timeout=60) as response, temporary.open("wb") as file:
                    shutil.copyfileobj(response, file)
                read_weights(temporary)  # what is cut short or damaged is not kept
        return original_layout(read_weights(cached))
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the ImageNet weights of {name} could not be had from {url} ({reason}); "
            "use --weights none to start from scratch, or --weights PATH for a file you have"
        ) from error


def original_layout(state: Mapping[str, Tensor]) -> StateDict:
    """Weights of a Mix Transformer as published on Hugging Face, under SegFormer's original names; others unchanged.

    There query, key and value are layers of their own; the original has one for key and value.
    """
    if not any(PUBLISHED.fullmatch(key) for key in state):
        return dict(state)
    result = {}
    for key, value in state.items():
        found = PUBLISHED.fullmatch(key)
        if found is None:  # the classifier
            continue
        kind, stage, layer, parameter = found[1], int(found[2]) + 1, found[3], found[4]
        if kind == "layer_norm":
            result[f"norm{stage}.{parameter}"] = value
        elif kind == "patch_embeddings":
            result[f"patch_embed{stage}.{layer.replace('layer_norm', 'norm')}.{parameter}"] = value
        else:
            block, _, part = layer.partition(".")
            if part.endswith("self.key"):
                partner = key.replace("self.key", "self.value")
                if partner not in state:  # then both are missing for who loads this
                    continue
                value = torch.cat([value, state[partner]])
            if part in PARTS:
                result[f"block{stage}.{block}.{PARTS[part]}.{parameter}"] = value
    return result
