"""Eight-bit networks on the CPU: speed and accuracy of the shipped unet_small, statically quantized, beside ours.

    SEG_REAL_DATA=DIR python benchmarks/int8.py

Contenders read the same windows of 512 pixels of a real orthophoto (``footprints/raster``, 0.35 m) in turns: ours
(bfloat16 where the CPU has it, channels last), ONNX Runtime in float32 and in int8 (QDQ, per channel), and PyTorch's
x86 path in int8. Both int8 networks are calibrated on generated scenes. The table is written beside this script.
"""

from __future__ import annotations

import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[0] = str(REPOSITORY)

import numpy as np  # noqa: E402 - imports begin at the repository's root
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.ao.quantization import get_default_qconfig_mapping  # noqa: E402
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx  # noqa: E402

from benchmarks.tables import processor, write_table  # noqa: E402
from common.images.rasters import read_label, read_raster  # noqa: E402
from common.inference.export import quiet  # noqa: E402
from common.inference.predictor import fold_batch_norm  # noqa: E402
from common.networks.normalize import normalize  # noqa: E402
from common.networks.precision import choose_precision  # noqa: E402
from common.networks.probabilities import foreground_probability  # noqa: E402
from common.scenes.aerial_world import AerialWorld  # noqa: E402
from footprints.task import TASK  # noqa: E402

SIDE, CALIBRATED, ROUNDS = 512, 12, 15
Run = Callable[[Tensor], Tensor]


def windows(normalization: dict[str, object]) -> tuple[list[Tensor], NDArray[np.bool_]]:
    """Nine windows (1, 3, 512, 512) of the orthophoto, normalized, and which of their pixels are buildings."""
    folder = Path(os.environ["SEG_REAL_DATA"]) / "footprints" / "raster"
    image = read_raster(next(iter(sorted((folder / "images").iterdir())))).data[:3]
    label = read_label(next(iter(sorted((folder / "labels").iterdir())))) > 0
    label = np.asarray(label if label.ndim == 2 else label.any(axis=-1))
    places = [(row, col) for row in (0, 600, 1200) for col in (0, 600, 1200)]
    cut = [(slice(row, row + SIDE), slice(col, col + SIDE)) for row, col in places]
    tiles = [torch.from_numpy(np.ascontiguousarray(image[:, rows, cols]))[None].float() / 255 for rows, cols in cut]
    return [normalize(tile, normalization) for tile in tiles], np.stack([label[spot] for spot in cut])


def scenes(normalization: dict[str, object]) -> list[Tensor]:
    """Windows of the generated world, normalized."""
    world, rng = AerialWorld(5), np.random.default_rng(0)
    places = rng.integers(0, 4000, (CALIBRATED, 2)).tolist()
    pixels = [world.render(row, col, SIDE, SIDE)[0] for row, col in places]
    return [normalize(torch.from_numpy(one).permute(2, 0, 1)[None].float() / 255, normalization) for one in pixels]


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands out scenes."""

    def __init__(self, tiles: list[Tensor]) -> None:
        self._left = [{"image": tile.numpy()} for tile in tiles]

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next scene; None at the end."""
        return self._left.pop() if self._left else None


def of_onnx(path: Path) -> Run:
    """An ONNX file in ONNX Runtime, with as many threads as torch."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda tile: torch.from_numpy(session.run(None, {"image": tile.numpy()})[0])


def contenders(network: nn.Module, calibration: list[Tensor], folder: Path) -> dict[str, Run]:
    """What is compared, by name."""
    folded = fold_batch_norm(network)
    precision = choose_precision("cpu")
    last = copy.deepcopy(folded).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def ours(tile: Tensor) -> Tensor:
        with precision.autocast():
            return last(tile.contiguous(memory_format=torch.channels_last)).float()  # type: ignore[no-any-return]

    plain, small = folder / "plain.onnx", folder / "int8.onnx"
    with quiet():
        torch.onnx.export(folded, (calibration[0],), str(plain), input_names=["image"], dynamo=False)
        quantize_static(
            plain, small, Reader(calibration), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
    runs = {f"ours, {precision}": ours, "ONNX Runtime, fp32": of_onnx(plain), "ONNX Runtime, int8": of_onnx(small)}
    try:
        with quiet():
            torch.backends.quantized.engine = "x86"
            prepared = prepare_fx(folded, get_default_qconfig_mapping("x86"), (calibration[0],))
            for tile in calibration:
                prepared(tile)
            runs["PyTorch x86, int8"] = convert_fx(prepared)
    except Exception as error:  # a network that its tracer cannot follow
        print(f"PyTorch x86: {type(error).__name__}: {error}"[:300])
    return runs


def iou(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float((found & truth).sum() / (found | truth).sum())


@torch.inference_mode()
def main() -> None:
    """Run all in turns on the same windows and write int8.csv and .md."""
    network, card = TASK.load(REPOSITORY / "weights" / "aerial.pt")
    tiles, truth = windows(card.normalization)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        runs = contenders(network, scenes(card.normalization), Path(folder))
        found = {
            name: np.concatenate([foreground_probability(run(tile)).numpy()[:, 0] >= card.threshold for tile in tiles])
            for name, run in runs.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        busy: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(ROUNDS):
            for name, run in runs.items():
                started, spent = time.perf_counter(), time.process_time()
                run(tiles[turn % len(tiles)])
                seconds[name].append(time.perf_counter() - started)
                busy[name].append(time.process_time() - spent)
    base = statistics.median(next(iter(seconds.values())))
    for name, mask in found.items():
        building, rest = (iou(mask == side, truth == side) for side in (True, False))
        middle = statistics.median(seconds[name])
        rows.append(
            {
                "contender": name,
                "ms per tile": round(1000 * middle, 1),
                "speed of ours": round(base / middle, 2),
                "processor ms": round(1000 * statistics.median(busy[name]), 1),
                "building IoU": round(building, 4),
                "mIoU": round((building + rest) / 2, 4),
                "same class as ours, %": round(100 * float((mask == next(iter(found.values()))).mean()), 3),
            }
        )
    note = (
        f"Tiles of {SIDE}, {len(tiles)} windows, {ROUNDS} rounds, {processor()}. int8 is not shipped: it is for this "
        "one size of tiles, its gain over bfloat16 is at the limit of what would pay (1.5), and it needs another "
        "runtime. PyTorch's x86 path cannot trace the network, whose padding depends on the size. Other programs ran "
        "on the machine: processor times are the better measure."
    )
    write_table(Path(__file__), rows, note)


if __name__ == "__main__":
    main()
