"""Tiled inference against the network alone, MONAI's sliding window and a plain loop that accumulates in numpy.

    python benchmarks/tiled_inference.py --size 3000

All run in turns on one picture, several times; the table has the medians. "Network alone" predicts the picture in
pieces of 512 without any overlap or blending: what tiling costs is measured against it. "Ours" is the default: tiles
planned from the network's reach. "Ours, 512 / 0.25" was the default before. MONAI and the loop take tiles of 512, the
overlap that is named, and what a user gets who sets nothing (float32, contiguous) or what ours has (bfloat16,
channels-last).
Agreement is the share of pixels that have the class of one float32 pass over the whole picture. What bfloat16 alone
costs of it is in the row of the whole picture in bfloat16. The table is written beside this script.
"""

from __future__ import annotations

import copy
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
from common.inference.predictor import Cut, Predictor  # noqa: E402
from common.inference.tiling import Tiling  # noqa: E402
from common.networks.precision import Precision, choose_precision  # noqa: E402
from common.scenes.aerial_world import AerialWorld  # noqa: E402
from footprints.task import TASK  # noqa: E402

Image = NDArray[np.float32]
Run = Callable[[], NDArray[np.float32]]


TILE, BATCH = 512, 4
"""Of MONAI and the loop; of the network alone, one at a time."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Config:
    """Compare ways to predict a large picture."""

    size: int = 3000
    """Side of the picture, pixels."""
    rounds: int = 3
    """How often each contender runs."""
    checkpoint: Path = REPOSITORY / "data" / "benchmarks" / "unet_small.pt"
    """Weights of unet_small of footprints; trained briefly if there are none."""


@dataclass(frozen=True)
class Way:
    """A network as its users run it."""

    network: nn.Module
    precision: Precision
    memory: torch.memory_format

    def predict(self, tiles: Tensor) -> Tensor:
        """P(foreground) of tiles."""
        return torch.sigmoid(self.network(tiles.to(memory_format=self.memory)).float())


def monai(way: Way, image: Image, overlap: float, mode: str) -> Run:
    """MONAI's sliding window."""
    inputs = torch.from_numpy(image)[None].to(memory_format=way.memory)

    def run() -> Image:
        with torch.inference_mode(), way.precision.autocast():
            output = sliding_window_inference(inputs, (TILE, TILE), BATCH, way.predict, overlap=overlap, mode=mode)
        assert isinstance(output, Tensor)
        return np.asarray(output[0].numpy())

    return run


def numpy_loop(way: Way, image: Image, overlap: float) -> Run:
    """Tile after tile, probabilities and counts added up in numpy, divided at the end."""

    def run() -> Image:
        total = np.zeros((1, *image.shape[1:]), np.float32)
        count = np.zeros(image.shape[1:], np.float32)
        for window in Tiling(TILE, overlap).windows(image.shape[1:]):
            rows, cols = window.slices
            with torch.inference_mode(), way.precision.autocast():
                output = way.predict(torch.from_numpy(image[None, :, rows, cols].copy()))
            total[:, rows, cols] += output[0].numpy()
            count[rows, cols] += 1
        return np.asarray(total / count, np.float32)

    return run


def alone(predictor: Predictor, image: Image) -> Run:
    """The network on pieces that cover the picture once."""
    pieces = [
        torch.from_numpy(image[None, :, row : row + TILE, col : col + TILE].copy()).contiguous(
            memory_format=torch.channels_last
        )
        for row in range(0, image.shape[1], TILE)
        for col in range(0, image.shape[2], TILE)
    ]

    def run() -> Image:
        with torch.inference_mode(), predictor.precision.autocast():
            for piece in pieces:
                output = predictor.probabilities(piece)
        return np.asarray(output.numpy())

    return run


def tiled(predictor: Predictor, image: Image) -> Run:
    """Ours."""
    return lambda: predictor(image)


def contenders(config: Config, image: Image) -> dict[str, Run]:
    """What is compared, by name."""
    fast, exact = choose_precision("cpu"), Precision(CPU, None)
    network, card = TASK.load(config.checkpoint)
    runs: dict[str, Run] = {}
    for name, precision in (("", fast), (", fp32", exact)):
        runs[f"network alone{name}"] = alone(Predictor([(network, card)], precision), image)
        runs[f"ours{name}"] = tiled(Predictor([(network, card)], precision), image)
    runs["ours, 512 / 0.25"] = tiled(Predictor([(network, card)], fast, cut=Cut(TILE, 0.25)), image)
    plain = Way(network, exact, torch.contiguous_format)
    equal = Way(copy.deepcopy(network).to(memory_format=torch.channels_last), fast, torch.channels_last)
    for name, way in (("default precision", plain), ("equal precision", equal)):
        runs[f"MONAI, {name}, 0.25"] = monai(way, image, 0.25, "constant")
        runs[f"MONAI, {name}, 0.5 gaussian"] = monai(way, image, 0.5, "gaussian")
        runs[f"numpy loop, {name}, 0.25"] = numpy_loop(way, image, 0.25)
    return runs


def main() -> None:
    """Run all contenders in turns and write tiled_inference.csv and .md."""
    config = tyro.cli(Config)
    quick_checkpoint(config.checkpoint)
    pixels, _ = AerialWorld(1).render(0, 0, config.size, config.size)
    image = np.ascontiguousarray(np.moveaxis(pixels, -1, 0)).astype(np.float32) / np.float32(255)
    runs = contenders(config, image)
    masks = {name: run() >= 0.5 for name, run in runs.items() if not name.startswith("network")}  # and warm up
    network = TASK.load(config.checkpoint)
    exact, half = (
        Predictor([network], precision, cut=Cut(config.size, 0))(image) >= 0.5
        for precision in (Precision(CPU, None), choose_precision("cpu"))
    )
    masks["whole picture, bf16"] = half
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    spent: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(config.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started, before = time.perf_counter(), time.process_time()
            runs[name]()
            seconds[name].append(time.perf_counter() - started)
            spent[name].append(time.process_time() - before)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    busy = {name: statistics.median(values) for name, values in spent.items()}
    base = median["network alone"]
    rows = [
        {
            "contender": name,
            "seconds": round(median[name], 2) if name in median else "",
            "Mpx/s": round(config.size**2 / 1e6 / median[name], 2) if name in median else "",
            "of the network's own speed": round(base / median[name], 2) if name in median else "",
            "of its processor time": round(busy[name] / busy["network alone"], 2) if name in median else "",
            "ours is faster by": round(median[name] / median["ours"], 2) if name in median else "",
            "agreement, %": round(100 * float((masks[name] == exact).mean()), 3) if name in masks else "",
        }
        for name in [*names, "whole picture, bf16"]
    ]
    tiling = Predictor([network], choose_precision("cpu")).tiling((config.size, config.size))
    window = tiling.windows((config.size, config.size))[0]
    note = (
        f"{config.size} x {config.size} pixels, {config.rounds} rounds, {processor()}. Ours takes tiles of "
        f"{window.height} x {window.width} that share {tiling.overlap:g} px; in fp32 it is at "
        f"{median['network alone, fp32'] / median['ours, fp32']:.2f} of the network's own speed in fp32."
    )
    write_table(Path(__file__), rows, note)


if __name__ == "__main__":
    main()
