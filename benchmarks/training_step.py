"""Time of a training step: our DeepLabV3+ against segmentation-models-pytorch's, with the same weights and batch.

    python benchmarks/training_step.py --rounds 12

A step is forward, loss, backward and AdamW. The variants are taken in turn within one run, so that whatever else the
machine does hits all of them; a figure is the median over the rounds, a ratio the median of the ratios within a round.
The table is written beside this script. Needs requirements-dev.txt.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[0] = str(REPOSITORY)

import segmentation_models_pytorch as smp  # noqa: E402 - imports begin at the repository's root
import torch  # noqa: E402
import tyro  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.tables import processor, write_table  # noqa: E402
from common.losses import build_loss  # noqa: E402
from common.networks.precision import Precision, choose_precision  # noqa: E402
from rooftops.model import DeepLabV3Plus  # noqa: E402

LOSS = "0.6*ce+0.4*dice"
PEER = "SMP, fp32 eager"


@dataclass(frozen=True)
class Config:
    """Compare a training step with the peer's."""

    encoder: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    """Encoder of both networks."""
    batch_size: int = 4
    """Images in a batch."""
    side: int = 256
    """Side of the images, pixels."""
    rounds: int = 12
    """Steps of each variant that count."""
    warmup: int = 2
    """Steps of each variant before."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    threads: int = 0
    """CPU threads (0 = PyTorch's own choice)."""
    compile: bool = False
    """Also measure our network under torch.compile."""


@dataclass(frozen=True)
class Variant:
    """A way to take training steps."""

    name: str
    network: nn.Module
    precision: Precision
    channels_last: bool
    peer: str = ""
    """Name of the peer's variant in the same form."""


def variants(config: Config) -> list[Variant]:
    """The peer as it comes, both networks in the same precision, and ours as ``train.py`` runs it."""
    auto = choose_precision(config.device, "auto")
    full = Precision(auto.device, None)
    torch.manual_seed(0)
    state = smp.DeepLabV3Plus(config.encoder, encoder_weights=None, classes=2).state_dict()

    def loaded(network: nn.Module) -> nn.Module:
        network.load_state_dict(state)
        return network

    def peer() -> nn.Module:
        return loaded(smp.DeepLabV3Plus(config.encoder, encoder_weights=None, classes=2))

    def ours() -> nn.Module:
        return loaded(DeepLabV3Plus(config.encoder))

    found = [
        Variant(PEER, peer(), full, False),
        Variant("ours, fp32", ours(), full, False, PEER),
        Variant("SMP, fp32 channels_last", peer(), full, True),
        Variant("ours, fp32 channels_last", ours(), full, True, "SMP, fp32 channels_last"),
    ]
    if auto.amp_dtype is not None:
        form = f"{str(auto).split(', ')[1]} channels_last"
        found += [
            Variant(f"SMP, {form}", peer(), auto, True),
            Variant(f"ours, {form}", ours(), auto, True, f"SMP, {form}"),
        ]
        if config.compile:
            compiled = cast(nn.Module, torch.compile(ours()))
            found.append(Variant(f"ours, {form}, compiled", compiled, auto, True, f"SMP, {form}"))
    return found


def stepper(variant: Variant, image: Tensor, target: Tensor) -> Callable[[], float]:
    """A function that takes one step and returns its seconds."""
    device, layout = variant.precision.device, torch.channels_last if variant.channels_last else torch.contiguous_format
    network = variant.network.train().to(device, memory_format=layout)  # type: ignore[call-overload]
    image, target = image.to(device, memory_format=layout), target.to(device)
    optimizer, loss = torch.optim.AdamW(network.parameters(), lr=1e-4), build_loss(LOSS)
    scaler = torch.amp.GradScaler(device.type, enabled=variant.precision.needs_scaler)

    def step() -> float:
        synchronize(device)
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with variant.precision.autocast():
            logits = network(image)
        value = loss(logits.float(), target)
        torch.autograd.backward(scaler.scale(value))
        scaler.step(optimizer)
        scaler.update()
        value.item()
        synchronize(device)
        return time.perf_counter() - started

    return step


def synchronize(device: torch.device) -> None:
    """Wait for what an accelerator still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(steps: list[Callable[[], float]], rounds: int, warmup: int) -> list[list[float]]:
    """Seconds of every step by variant; the order of the variants is turned around from round to round."""
    seconds: list[list[float]] = [[] for _ in steps]
    for number in range(warmup + rounds):
        order = range(len(steps)) if number % 2 == 0 else reversed(range(len(steps)))
        for index in order:
            taken = steps[index]()
            if number >= warmup:
                seconds[index].append(taken)
    return seconds


def rows_of(found: list[Variant], seconds: list[list[float]]) -> list[dict[str, object]]:
    """A row for each variant."""
    by_name = {variant.name: times for variant, times in zip(found, seconds, strict=True)}
    return [
        {
            "variant": variant.name,
            "seconds per step": f"{statistics.median(times):.3f}",
            f"speed against {PEER}": f"{ratio(by_name[PEER], times):.2f}",
            "speed against SMP in the same form": f"{ratio(by_name[variant.peer], times):.2f}" if variant.peer else "",
        }
        for variant, times in zip(found, seconds, strict=True)
    ]


def ratio(base: list[float], times: list[float]) -> float:
    """How many times as fast: the median over the rounds."""
    return statistics.median(b / t for b, t in zip(base, times, strict=True))


def main() -> None:
    """Measure all variants and write training_step.csv and .md."""
    config = tyro.cli(Config)
    if config.threads:
        torch.set_num_threads(config.threads)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(config.batch_size, 3, config.side, config.side, generator=generator)
    target = torch.randint(0, 2, (config.batch_size, config.side, config.side), generator=generator)
    found = variants(config)
    seconds = measure([stepper(variant, image, target) for variant in found], config.rounds, config.warmup)
    device = found[0].precision.device
    note = (
        f"DeepLabV3+ {config.encoder}, batch {config.batch_size} x {config.side}², {LOSS}, AdamW; median of "
        f"{config.rounds} rounds; {torch.cuda.get_device_name(device) if device.type == 'cuda' else processor()}; "
        f"segmentation-models-pytorch {smp.__version__}"
    )
    write_table(Path(__file__), rows_of(found, seconds), note)


if __name__ == "__main__":
    main()
