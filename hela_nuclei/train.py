"""Train a network that segments nuclei: ``python hela_nuclei/train.py --data-root Fluo-N2DL-HeLa`` (without flags: the built-in demo)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from common.checkpoint import ModelCard
from common.cli import run_command, say
from common.config import TrainConfig
from common.devices import Precision, choose_precision
from common.evaluation import binary_probability
from common.finish import finish_run
from common.runs import load_train_config, open_run
from common.scenes.hela import write_challenge
from common.splits import split_ids
from common.training import fit, seed_everything
from hela_nuclei.data import FrameCrops, LoadedFrame, WholeFrames, audit, find_frames, load_frames, require_usable, semantic_target
from hela_nuclei.frames import scale_frame
from hela_nuclei.model import build_model
from hela_nuclei.predict import CLASSES, PALETTE, TASK, Predictor
from hela_nuclei.scoring import build_criterion, score_frames
from hela_nuclei.weights import initialize

DEMO = Path("data/demo/hela_nuclei")


@dataclass(frozen=True)
class Config(TrainConfig):
    """Train a network that segments nuclei. Without --data-root (or --images and --labels) the built-in demo scenes are used."""

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


def main() -> int:
    """Data, network, training, report."""
    config = load_train_config(Config, Path(__file__).resolve().parent)
    run = open_run(TASK, output_dir=config.output_dir, resume=config.resume, demo=not config.has_data)
    precision = choose_precision(config.device, config.amp)
    seed_everything(config.seed)

    root = config.data_root
    if not config.has_data:
        print(f"demo: no data given, so generated nuclei under {DEMO} are used; pass --data-root for your own", flush=True)
        if not DEMO.exists():
            write_challenge(DEMO, sequences=2, frames=12, height=256, width=320, seed=0)
        root = DEMO
    frames, unpaired = find_frames(root, images=config.images, labels=config.labels, truth=config.truth)
    for note in unpaired:
        say(f"note: {note}")
    loaded, problems = load_frames(frames)
    require_usable(problems, skip_bad=config.skip_bad)
    facts = [*audit(loaded), ("left out", f"{len(unpaired)} files without a partner, {len(problems)} bad ones")]
    for name, value in facts:
        say(f"{name + ':':24}{value}")

    arch_args = {"outputs": 2 if config.separation == "distance" else 1, "channels": 1}
    if config.arch == "unet":
        arch_args["widths"] = list(config.widths)  # type: ignore[assignment]
    model = build_model(config.arch, **arch_args)
    initialize(model, config.weights)
    criterion = build_criterion(config.loss)
    if config.overfit_one:
        return overfit_one(model, loaded[0], config, precision)

    split = split_ids([item.frame.id for item in loaded], config.val_fraction, config.test_fraction, config.seed)
    part = {name: [item for item in loaded if item.frame.id in set(ids)] for name, ids in split.items()}
    say("split: " + ", ".join(f"{name} {len(items)}" for name, items in part.items()))
    train_data = FrameCrops(
        part["train"], crop=config.crop_size, length=config.samples_per_epoch, border=config.border, augment=config.augment
    )
    card = ModelCard(
        TASK, config.arch, arch_args, CLASSES, PALETTE, normalization={"range": "minimum to maximum of each frame"}, split=split,
        data_root=str((root or config.images or Path()).resolve()),
    )  # fmt: skip
    run.create(config)
    state = fit(
        model, train_data, WholeFrames(part["val"], border=config.border), criterion=criterion, probabilities=binary_probability, card=card,
        config=config, run=run, precision=precision, test_images=len(part["test"]),
    )  # fmt: skip

    name = "test" if part["test"] else "val"
    predictor, best = Predictor.load([run.path / "best_iou.pt"], precision)
    scores = score_frames(predictor, part[name], criterion, config.border)
    by_id = {item.frame.id: item for item in part[name]}

    def example(frame_id: str) -> tuple:  # type: ignore[type-arg]
        item = by_id[frame_id]
        mask = predictor(scale_frame(item.image)).mask
        return item.image[None], semantic_target(item.labels, 0), mask.astype("uint8")

    result = scores.result()
    finish_run(
        run, card=best, config=config, audit=facts, history=state.history, scores=result, detail=scores.pixels, part=name, example=example
    )
    say(f"{name}: IoU {result['iou']:.4f}, field of interest {result['iou_foi']:.4f}, SEG {result['seg'] or 0:.4f}, DET {result['det'] or 0:.4f}")
    return 0


def overfit_one(model: torch.nn.Module, item: LoadedFrame, config: Config, precision: Precision) -> int:
    """Learn one frame by heart: 20 steps at 3e-4, then 100 at 1e-3, and print the IoU on it. A network that cannot is broken."""
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
            loss.backward()
            optimizer.step()
            guess, truth = (logits[:, 0] >= 0) & valid, (target == 1) & valid
            iou = float((guess & truth).sum() / (guess | truth).sum().clamp(min=1))
            if step % 10 == 0:
                say(f"lr {lr:g} step {step:3d}  loss {float(loss):.5f}  IoU {iou:.4f}")
    print(f"IoU on {item.frame.id} after 120 steps: {iou:.4f}", flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
