"""Tiled inference against MONAI's sliding window and a plain loop that accumulates in numpy, on one image and network.

    python benchmarks/tiled_inference.py --size 4000 --overlap 0.5

All contenders cut the same tiles of the same picture and run in turns, several times; the table has the medians.
"Default" is what a user gets who sets nothing: float32, contiguous tensors. "Equal precision" gives MONAI and the loop
what ours has: bfloat16 and channels-last. "Forward" is the network alone on the same tiles. Classes are compared with
MONAI's and with those of the whole picture in one pass, in float32. The table is written beside this script.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[0] = str(REPOSITORY)

import numpy as np  # noqa: E402 - imports begin at the repository's root
import torch  # noqa: E402
import tyro  # noqa: E402
from monai.inferers import sliding_window_inference  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.quick_model import quick_checkpoint  # noqa: E402
from benchmarks.tables import processor, write_table  # noqa: E402
from common.images.windows import Window  # noqa: E402
from common.inference.predictor import Predictor  # noqa: E402
from common.inference.windows import plan_windows  # noqa: E402
from common.networks.checkpoint import load_checkpoint  # noqa: E402
from common.networks.precision import Precision, choose_precision  # noqa: E402
from common.scenes.aerial_world import AerialWorld  # noqa: E402
from footprints.task import TASK  # noqa: E402

Image = NDArray[np.float32]
Run = Callable[[], NDArray[np.float32]]


@dataclass(frozen=True)
class Config:
    """Compare ways to predict a large picture."""

    size: int = 4000
    """Side of the picture, pixels."""
    tile: int = 512
    """Side of the tiles."""
    overlap: float = 0.5
    """Share of a tile that the next one covers again."""
    batch: int = 4
    """Tiles at once of MONAI."""
    rounds: int = 3
    """How often each contender runs."""
    checkpoint: Path = REPOSITORY / "data" / "benchmarks" / "unet_small.pt"
    """Weights of unet_small; trained briefly if there are none."""
    compile: bool = False
    """Compile ours and its forward pass with torch.compile; the compilation is not timed."""


def monai(network: nn.Module, image: Image, config: Config, precision: Precision, memory: torch.memory_format) -> Run:
    """MONAI's sliding window."""
    inputs = torch.from_numpy(image)[None].to(memory_format=memory)

    def predict(tiles: Tensor) -> Tensor:
        return torch.sigmoid(network(tiles.to(memory_format=memory)).float())

    def run() -> NDArray[np.float32]:
        with torch.inference_mode(), precision.autocast():
            roi = (config.tile, config.tile)
            output = sliding_window_inference(inputs, roi, config.batch, predict, overlap=config.overlap)
        assert isinstance(output, Tensor)
        return np.asarray(output[0].numpy())

    return run


def numpy_loop(
    network: nn.Module, image: Image, config: Config, precision: Precision, memory: torch.memory_format
) -> Run:
    """Tile after tile, probabilities and counts added up in numpy, divided at the end."""

    def run() -> NDArray[np.float32]:
        total = np.zeros((1, *image.shape[1:]), np.float32)
        count = np.zeros(image.shape[1:], np.float32)
        for window in plan_windows(image.shape[1], image.shape[2], config.tile, config.overlap):
            rows, cols = window.slices
            tile = torch.from_numpy(image[None, :, rows, cols].copy()).to(memory_format=memory)
            with torch.inference_mode(), precision.autocast():
                output = torch.sigmoid(network(tile).float())
            total[:, rows, cols] += output[0].numpy()
            count[rows, cols] += 1
        return np.asarray(total / count, np.float32)

    return run


def forward(predictor: Predictor, tiles: list[Tensor]) -> Run:
    """The network alone."""

    def run() -> NDArray[np.float32]:
        with torch.inference_mode(), predictor.precision.autocast():
            for batch in tiles:
                output = predictor.probabilities(batch)
        return output.numpy()

    return run


def cut(image: Image, windows: list[Window], batch: int) -> list[Tensor]:
    """All tiles, ready for the network."""
    stacks = [windows[first : first + batch] for first in range(0, len(windows), batch)]
    return [
        torch.from_numpy(np.stack([image[:, w.slices[0], w.slices[1]] for w in stack])).contiguous(
            memory_format=torch.channels_last
        )
        for stack in stacks
    ]


def contenders(config: Config, image: Image) -> dict[str, Run]:
    """What is compared, by name."""
    fast, exact = choose_precision("cpu"), Precision(torch.device("cpu"), None)
    network, card = TASK.load(config.checkpoint)
    ours = {
        "": Predictor([(network, card)], fast, tile=config.tile, overlap=config.overlap),
        ", fp32": Predictor([(network, card)], exact, tile=config.tile, overlap=config.overlap),
    }
    if config.compile:
        for predictor in ours.values():
            predictor.compile()
    plain = TASK.build(card.arch, **card.arch_args).eval()
    plain.load_state_dict(load_checkpoint(config.checkpoint, TASK.name)[1])
    last = TASK.build(card.arch, **card.arch_args).eval().to(memory_format=torch.channels_last)
    last.load_state_dict(plain.state_dict())
    windows = plan_windows(image.shape[1], image.shape[2], config.tile, config.overlap)
    runs: dict[str, Run] = {}
    for name, predictor in ours.items():
        runs[f"ours{name}"] = lambda predictor=predictor: predictor(image)  # type: ignore[misc]
        runs[f"forward{name}"] = forward(predictor, cut(image, windows, predictor.batch))
    for name, make in (("MONAI", monai), ("numpy loop", numpy_loop)):
        runs[f"{name}, default"] = make(plain, image, config, exact, torch.contiguous_format)
        runs[f"{name}, equal precision"] = make(last, image, config, fast, torch.channels_last)
    return runs


def main() -> None:
    """Run all contenders in turns and write tiled_inference.csv and .md."""
    config = tyro.cli(Config)
    quick_checkpoint(config.checkpoint)
    pixels, _ = AerialWorld(1).render(0, 0, config.size, config.size)
    image = np.ascontiguousarray(np.moveaxis(pixels, -1, 0)).astype(np.float32) / np.float32(255)
    runs = contenders(config, image)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    masks = {name: run() > 0.5 for name, run in runs.items() if not name.startswith("forward")}  # and warm up
    names = list(runs)
    for turn in range(config.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - started)
    exact = Precision(torch.device("cpu"), None)
    network = TASK.load(config.checkpoint)
    masks["whole"] = Predictor([network], exact, tile=config.size, overlap=0)(image) > 0.5
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        {
            "contender": name,
            "seconds": round(median[name], 2),
            "Mpx/s": round(config.size**2 / 1e6 / median[name], 2),
            "ours is faster by": round(median[name] / median["ours"], 2),
            **{
                f"same class as {title}": round(float((masks[name] == masks[other]).mean()), 5) if name in masks else ""
                for title, other in (("MONAI, default", "MONAI, default"), ("the whole picture at once", "whole"))
            },
        }
        for name in names
    ]
    over = {name: median[f"ours{name}"] / median[f"forward{name}"] - 1 for name in ("", ", fp32")}
    note = (
        f"{config.size} x {config.size} pixels, tiles of {config.tile}, overlap {config.overlap}, "
        f"{config.rounds} rounds, {processor()}, compiled: {config.compile}. "
        f"Ours takes {over['']:.1%} more than the network alone on the same tiles ({over[', fp32']:.1%} in fp32)."
    )
    write_table(Path(__file__), rows, note)


if __name__ == "__main__":
    main()
