"""Networks of every task as ONNX files.

The graph is the network: normalized ``image`` (N, channels, H, W) in, ``logits`` (N, outputs, H, W) out, N, H and W
free. What belongs around it (normalization, scale, threshold, class names) is in the file's metadata, also under the
names that the QGIS plugin Deepness reads. It replaces an older file only after ONNX Runtime has given the network's
outputs at several sizes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from common.command.cli import VERSION, say
from common.command.config import parse_flags
from common.files import file_hash
from common.networks.checkpoint import ModelCard
from common.networks.probabilities import probabilities_of
from common.networks.task import Task
from common.outputs import OutputFolder

if TYPE_CHECKING:
    import onnx

SIZES = ((1, 256, 256), (2, 96, 160), (1, 333, 250))
"""Batch, height and width at which the file is compared with the network."""
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Config:
    """Export a checkpoint as ONNX and compare the two.

    Examples:
        python rooftops/export.py --checkpoint runs/rooftops/RUN/best_iou.pt --out model.onnx --probabilities
    """

    checkpoint: Path
    """Checkpoint: ours, or one of the original project's."""
    out: Path = Path("model.onnx")
    """File to write."""
    probabilities: bool = False
    """End in probabilities (two classes: of the foreground) instead of logits, as the QGIS plugin Deepness expects."""


class WithProbabilities(nn.Module):
    """A network followed by what turns its logits into probabilities."""

    def __init__(self, network: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.network, self.probabilities = network, probabilities_of(card)

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 1 or classes, H, W)."""
        return self.probabilities(self.network(image))


def export_command(task: Task) -> int:
    """Load, export, compare: the ``main`` of a task's export.py."""
    config = parse_flags(Config)
    if config.out.suffix.lower() != ".onnx":
        raise ValueError(f"--out {config.out} must end in .onnx")
    (checkpoint,) = task.checkpoints([config.checkpoint])
    network, card = task.load(checkpoint)
    if config.probabilities:
        network = WithProbabilities(network, card)
    with OutputFolder(config.out.parent).delivery(checkpoint, [config.out.name]) as temporary:
        difference = export(network, card, temporary / config.out.name, file_hash(checkpoint))
    sizes = ", ".join(f"{batch} x {height} x {width}" for batch, height, width in SIZES)
    say(f"{config.out}: {config.out.stat().st_size / 1e6:.1f} MB; largest difference {difference:.1e} at {sizes}")
    return 0


def export(network: nn.Module, card: ModelCard, out: Path, checkpoint_hash: str) -> float:
    """Write ``network`` as ONNX, to a temporary place.

    Returns:
        The largest difference of an output between ONNX Runtime and the network.

    Raises:
        ValueError: a package is missing, or the outputs differ: the file is of no use then.
    """
    check_packages()
    import onnx

    channels = next(layer.in_channels for layer in network.modules() if isinstance(layer, nn.Conv2d))
    graph = trace(network, channels)
    onnx.helper.set_model_props(graph, metadata(card, checkpoint_hash))
    onnx.save(graph, out)
    onnx.checker.check_model(out)
    difference = compare(network, out, channels)
    if not difference <= TOLERANCE:
        raise ValueError(f"{out.name}: not written, its logits differ from the network's by {difference:.1e}")
    return difference


def check_packages() -> None:
    """Look for what only this command needs.

    Raises:
        ValueError: a package is missing; says how to get it.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"the export needs {', '.join(missing)}: pip install -r requirements.txt")


def trace(network: nn.Module, channels: int) -> onnx.ModelProto:
    """The network as an ONNX graph with free batch, height and width."""
    axes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    example = torch.zeros(2, channels, 117, 150)  # no multiple of a stride: networks that pad then do so in the graph
    with quiet():
        program = torch.onnx.export(
            network.eval().float(),
            (example,),
            dynamo=True,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=(axes,),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def metadata(card: ModelCard, checkpoint_hash: str) -> dict[str, str]:
    """What is needed around the network, as JSON texts by name."""
    values = {
        "classes": card.classes,
        "threshold": card.threshold if len(card.classes) == 2 else None,
        "scale": card.scale,
        "normalization": card.normalization,
        "palette": {str(index): color for index, color in card.palette.items()},
        "checkpoint_sha256": checkpoint_hash,
        "version": VERSION,
        **for_deepness(card),
    }
    return {name: json.dumps(value) for name, value in values.items()}


def for_deepness(card: ModelCard) -> dict[str, object]:
    """What the QGIS plugin Deepness takes its settings from; resolution in centimetres per pixel, where it is known."""
    normalization = {
        f"standardization_{name}": card.normalization[name] for name in ("mean", "std") if name in card.normalization
    }
    resolution = {"resolution": round(100 * (card.gsd[0] * card.gsd[1]) ** 0.5, 3)} if card.gsd[1] else {}
    return {
        "model_type": "Segmentor",
        "class_names": dict(enumerate(card.classes)),
        "tiles_size": 512,
        "tiles_overlap": 15,
        "seg_thresh": card.threshold,
        **normalization,
        **resolution,
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter reports its steps on stdout and warns about its own insides."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(former)


@torch.inference_mode()
def compare(network: nn.Module, path: Path, channels: int) -> float:
    """Largest difference of a logit between an ONNX file and the network, over `SIZES` of random input.

    Logits beyond 1 are compared relative to the largest of them, as float32 rounds.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch, height, width in SIZES:
        image = torch.randn(batch, channels, height, width, generator=generator)
        (logits,) = session.run(["logits"], {"image": image.numpy()})
        expected = network(image).numpy()
        if logits.shape != expected.shape:
            raise ValueError(f"the exported network gives {logits.shape}, {expected.shape} is expected")
        differences.append(float(np.abs(logits - expected).max() / max(1.0, np.abs(expected).max())))
    return max(differences)
