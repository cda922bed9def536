"""Train a network that segments nuclei: ``python hela_nuclei/train.py --data-root Fluo-N2DL-HeLa``; no flags: demo."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from common.command.cli import run_command, say
from common.command.config import TrainConfig, config_values
from common.data.pairs import require_usable
from common.data.splits import split_ids
from common.networks.checkpoint import ModelCard
from common.networks.precision import Precision, choose_precision
from common.networks.probabilities import binary_probability
from common.training.finish import Example, finish_run
from common.training.loop import fit, seed_everything
from common.training.runs import RunFolder, demo_data, load_train_config, open_run
from hela_nuclei.data import (
    SMALLEST_SIDE,
    Found,
    FrameCrops,
    LoadedFrame,
    WholeFrames,
    audit,
    find_frames,
    load_frames,
    of_one_size,
    semantic_target,
)
from hela_nuclei.frames import scale_frame
from hela_nuclei.model import build_model
from hela_nuclei.predict import CLASSES, PALETTE, TASK, Predictor, initialize
from hela_nuclei.scenes.sequences import write_challenge
from hela_nuclei.scoring import build_criterion, score_frames

DEMO = Path("data/demo/hela_nuclei")
Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Config(TrainConfig):
    """Train a network that segments nuclei. Without --data-root (or --images and --labels): built-in demo scenes."""

    arch: Literal["unet", "unet_resnet18"] = "unet"
    """Network."""
    widths: tuple[int, int, int, int] = (16, 32, 64, 128)
    """Feature channels of the four resolutions of unet."""
    separation: Literal["distance", "none"] = "none"
    """distance: also learn the map that separates touching nuclei; none: the mask's own shape must do."""
    truth: Literal["ST", "GT"] = "ST"
    """Which masks of the challenge: silver or gold truth."""
    border: int = 25
    """Pixels from the edge within which nuclei are not annotated: background there is ignored."""
    crop_size: int = 0
    """Side of the training crops in pixels (0 = whole frames)."""
    samples_per_epoch: int = 0
    """Training samples per epoch (0 = as many as frames)."""
    overfit_one: bool = False
    """Only check that the network can learn one frame by heart: 120 steps, prints the IoU, writes nothing."""

    def __post_init__(self) -> None:
        """Check what one field cannot check alone."""
        super().__post_init__()
        if self.crop_size and self.crop_size < SMALLEST_SIDE:
            raise ValueError(f"--crop-size {self.crop_size} must be 0 (whole frames) or at least {SMALLEST_SIDE}")
        if min(self.border, self.samples_per_epoch, self.crop_size) < 0 or min(self.widths) < 1:
            raise ValueError("--border, --crop-size and --samples-per-epoch must not be negative, --widths positive")


def main() -> int:
    """Data, network, training, report."""
    config = load_train_config(Config, Path(__file__).resolve().parent)
    run = open_run(TASK, output_dir=config.output_dir, resume=config.resume, demo=not config.has_data)
    precision = choose_precision(config.device, config.amp)
    seed_everything(config.seed)

    root = config.data_root if config.has_data else demo_scenes()
    loaded, facts = look(find_frames(root, images=config.images, labels=config.labels, truth=config.truth), config)

    arch_args: dict[str, Any] = {"outputs": 2 if config.separation == "distance" else 1, "channels": 1}
    if config.arch == "unet":
        arch_args["widths"] = list(config.widths)
    model = build_model(config.arch, **arch_args)
    initialize(model, config.weights)
    criterion = build_criterion(config.loss)
    if config.overfit_one:
        return overfit_one(model, loaded[0], config, precision)

    split = split_ids([item.frame.id for item in loaded], config.val_fraction, config.test_fraction, config.seed)
    part = {name: [item for item in loaded if item.frame.id in set(ids)] for name, ids in split.items()}
    say("split: " + ", ".join(f"{name} {len(items)}" for name, items in part.items()))
    train_data = FrameCrops(
        part["train"], crop=config.crop_size, length=config.samples_per_epoch, border=config.border,
        augment=config.augment,
    )  # fmt: skip
    absolute = {k: str(v.resolve()) for k in ("images", "labels") if (v := getattr(config, k)) is not None}
    card = ModelCard(
        TASK, config.arch, arch_args, CLASSES, PALETTE, normalization={"range": "minimum to maximum of each frame"},
        split=split, data_root=str((root or config.images or Path()).resolve()),
        config={**config_values(config), **absolute},
    )  # fmt: skip
    run.create(config)
    state = fit(
        model, train_data, WholeFrames(part["val"], border=config.border), criterion=criterion,
        probabilities=binary_probability, card=card, config=config, run=run, precision=precision,
        test_images=len(part["test"]),
    )  # fmt: skip

    name = "test" if part["test"] else "val"
    finish(run, config, precision, state.history, facts, part[name], name)
    return 0


def demo_scenes() -> Path:
    """The folder of the generated scenes, written at the first use."""
    return demo_data(
        DEMO, "nuclei", lambda folder: write_challenge(folder, sequences=2, frames=12, height=256, width=320, seed=0)
    )


def finish(
    run: RunFolder, config: Config, precision: Precision, history: Sequence[Mapping[str, Any]], facts: Rows,
    loaded: Sequence[LoadedFrame], part: str,
) -> None:  # fmt: skip
    """Score the best network on the test (else validation) part, and write pictures and report."""
    predictor, best = Predictor.load([run.path / "best_iou.pt"], precision)
    scores = score_frames(predictor, loaded, build_criterion(config.loss), config.border)
    by_id = {item.frame.id: item for item in loaded}

    def example(frame_id: str) -> Example:
        item = by_id[frame_id]
        mask = predictor(scale_frame(item.image)).mask.astype("uint8")
        return item.image[None], semantic_target(item.labels, 0), mask

    result = scores.result()
    finish_run(
        run, card=best, config=config, audit=facts, history=history, scores=result, detail=scores.pixels, part=part,
        example=example,
    )  # fmt: skip
    shown = {"IoU": "iou", "field of interest": "iou_foi", "SEG": "seg", "DET": "det"}
    values = {title: result[key] for title, key in shown.items()}
    say(f"{part}: " + ", ".join(f"{title} {'-' if v is None else f'{v:.4f}'}" for title, v in values.items()))


def look(found: Found, config: Config) -> tuple[list[LoadedFrame], Rows]:
    """Read the pairs and print what they are, as (name, value) rows that are returned too."""
    for note in found.notes():
        say(f"note: {note}")
    loaded, problems = load_frames(found.frames)
    if loaded and not config.crop_size:
        loaded, others = of_one_size(loaded)
        problems += others
    require_usable(len(loaded), problems, skip_bad=config.skip_bad)
    unpaired = f"{len(found.without_mask)} frames without a mask, {len(found.without_frame)} masks without a frame"
    facts = [*audit(loaded), ("left out", f"{unpaired}, {len(problems)} bad pairs")]
    for name, value in facts:
        say(f"{name + ':':24}{value}")
    return loaded, facts


def overfit_one(model: torch.nn.Module, item: LoadedFrame, config: Config, precision: Precision) -> int:
    """Learn one frame by heart: 20 steps at 3e-4, then 100 at 1e-3. A network that cannot is broken."""
    data = FrameCrops([item], crop=0, border=config.border, augment=False)[(0, 0)]
    image, target = data["image"][None].to(precision.device), data["target"][None].to(precision.device)
    batch = {"target": target, "distance": data["distance"][None].to(precision.device)}
    criterion = build_criterion(config.loss)
    model.to(precision.device).train()
    valid, iou = target != 255, 0.0
    for lr, steps in ((3e-4, 20), (1e-3, 100)):
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            with precision.autocast():
                logits = model(image)
            loss = criterion(logits.float(), batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            guess, truth = (logits[:, 0] >= 0) & valid, (target == 1) & valid
            iou = float((guess & truth).sum() / (guess | truth).sum().clamp(min=1))
            if step % 10 == 0:
                say(f"lr {lr:g} step {step:3d}  loss {float(loss.detach()):.5f}  IoU {iou:.4f}")
    print(f"IoU on {item.frame.id} after 120 steps: {iou:.4f}", flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
