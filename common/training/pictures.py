"""Pictures of a training's samples: before it starts (``--preview``), and of its predictions after every epoch."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from common.command.cli import say
from common.data.sampling import EpochBatches
from common.images.display import Palette, Pixels, colorize, overlay, stretch, strip
from common.labels import IGNORE
from common.report.examples import panels
from common.report.plots import grid
from common.samples import SegmentationData
from common.training.experiment import Engine, Experiment
from common.training.runs import RunFolder
from common.training.state import TrainState

SHOWN = 4
"""Samples of each part in a preview."""
WATCHED = 3
"""Validation samples whose predictions are drawn after every epoch."""
SPARSE = 0.02
"""Labels that cover less of a sample than this are points, and drawn larger."""


def preview(experiment: Experiment, run: RunFolder, seed: int) -> int:
    """Write ``preview.png``: training samples as the network will see them, validation samples, labels over both.

    Args:
        experiment: whose samples are drawn; the first of the first epoch, validation samples from first to last.
        run: the folder to write into.
        seed: of the training, so that these are the samples it starts with.

    Returns:
        The exit code, 0.
    """
    palette = {index: experiment.card.palette[index] for index in range(len(experiment.card.classes))}
    train, val = experiment.train_data, experiment.val_data
    first = next(iter(EpochBatches(len(train), min(SHOWN, len(train)), seed)))
    rows = [_labeled("train", train[key], palette) for key in first]
    rows += [_labeled("val", val[index], palette) for index in spread(len(val), SHOWN)]
    path = run.path / "preview.png"
    grid(rows, path, {name: palette[index] for index, name in enumerate(experiment.card.classes)})
    say(f"preview: {path}; nothing was trained")
    return 0


def spread(length: int, count: int) -> list[int]:
    """At most ``count`` indices from the first to the last of ``length``."""
    return sorted({round(index) for index in np.linspace(0, length - 1, min(count, length))})


def _labeled(part: str, sample: dict[str, Any], palette: Palette) -> list[tuple[str, Pixels]]:
    image, target = stretch(_numpy(sample["image"])), thicken(_numpy(sample["target"]).astype(np.uint8))
    picture = _resized(image, target.shape)
    both = overlay(picture, target, palette)
    return [(f"{part}: {sample['id']}", picture), ("label", colorize(target, palette)), ("both", both)]


@torch.inference_mode()
def draw_epoch(state: TrainState, experiment: Experiment, engine: Engine, run: RunFolder) -> None:
    """Add input, truth, prediction and errors of some validation samples to the run's TensorBoard events."""
    palette = {index: experiment.card.palette[index] for index in range(len(experiment.card.classes))}
    network = state.inference_model.eval()
    data: SegmentationData = experiment.val_data
    for number, index in enumerate(spread(len(data), WATCHED)):
        sample = data[index]
        batch = engine.receive({"image": torch.as_tensor(sample["image"])[None]})
        target = _numpy(sample["target"]).astype(np.uint8)
        logits = F.interpolate(engine.logits(network, batch), size=target.shape, mode="bilinear")
        classes = engine.classes(logits, state.threshold)[0].cpu()
        picture = _resized(stretch(_numpy(sample["image"])), target.shape)
        shown = panels(picture, {"truth": target, "prediction": classes.numpy().astype(np.uint8)}, palette)
        tag = f"validation/{number} {sample['id']}: {', '.join(title for title, _ in shown)}"
        run.writer.add_image(tag, strip([each for _, each in shown]), state.epoch, dataformats="HWC")


def _numpy(values: Tensor | NDArray[Any]) -> NDArray[Any]:
    return torch.as_tensor(values).numpy()


def _resized(picture: Pixels, size: tuple[int, ...]) -> Pixels:
    """A picture at the size of its labels, where the network sees it smaller."""
    if picture.shape[:2] == size:
        return picture
    rows, columns = (np.arange(wanted) * own // wanted for wanted, own in zip(size, picture.shape[:2], strict=True))
    return np.ascontiguousarray(picture[rows[:, None], columns])


def thicken(classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw sparse points as squares of 3 pixels, so that they can be seen; dense labels stay."""
    rows, columns = np.nonzero(classes != IGNORE)
    if len(rows) > SPARSE * classes.size:
        return classes
    shown = np.full_like(classes, IGNORE)
    for dy, dx in product((-1, 0, 1), repeat=2):
        y, x = (rows + dy).clip(0, classes.shape[0] - 1), (columns + dx).clip(0, classes.shape[1] - 1)
        shown[y, x] = classes[rows, columns]
    return shown
