"""Train a network that segments nuclei: ``python hela_nuclei/train.py --data-root Fluo-N2DL-HeLa``; no flags: demo."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first(__file__)

import torch
from torch import nn

from common import processes
from common.command.cli import run_command, say
from common.command.config import TrainConfig
from common.data.labeled import Sample
from common.data.pairs import Facts, require_usable, say_facts, say_notes
from common.data.splits import count_parts, split_ids
from common.images.ranges import ValueRanges
from common.inference.predictor import Predictor
from common.losses import ONE_LOGIT, LossRecipe
from common.networks.precision import Precision, choose_precision
from common.report.plots import History
from common.training.budget import end_of
from common.training.command import run_training
from common.training.experiment import Experiment
from common.training.finish import Outcome, finish_run
from common.training.loop import seed_everything
from common.training.predicted import Predicted
from common.training.runs import RunFolder, demo_data, load_train_config
from common.training.suspects import without_suspects
from hela_nuclei.data import SMALLEST_SIDE, TEST, LoadedFrame, audit, find_frames, load_frames, of_one_size, range_card
from hela_nuclei.predict import NucleiPredictor
from hela_nuclei.samples import FrameCrops, LabeledFrame, WholeFrames
from hela_nuclei.scenes.sequences import write_challenge
from hela_nuclei.scoring import build_criterion, score_frames
from hela_nuclei.task import TASK

DEMO = Path("data/demo/hela_nuclei")


@dataclass(frozen=True)
class Config(TrainConfig):
    """Train a network that segments nuclei. Without --data-root (or --images and --labels): built-in demo scenes.

    Examples:
        python hela_nuclei/train.py
        python hela_nuclei/train.py --data-root Fluo-N2DL-HeLa --recipe best
        python hela_nuclei/train.py --data-root Fluo-N2DL-HeLa --arch unet_resnet18 --weights imagenet --epochs 10
    """

    # Data
    truth: Literal["ST", "GT"] = "ST"
    """Which masks of the challenge: silver or gold truth."""
    border: int = 25
    """Pixels from the edge within which nuclei are not annotated: background there is ignored."""
    # Network
    arch: Literal["unet", "unet_small", "unet_resnet18"] = "unet"
    """Network; unet is the source's, unet_small the other tasks' small one."""
    widths: tuple[int, int, int, int] = (16, 32, 64, 128)
    """Feature channels of the four resolutions of unet and unet_small."""
    separation: Literal["distance", "none"] = "none"
    """distance: also learn the map that separates touching nuclei; none: the mask's own shape must do."""
    # Samples
    crop_size: int = 0
    """Side of the training crops in pixels (0 = whole frames)."""
    samples_per_epoch: int = 0
    """Training samples per epoch (0 = as many as frames)."""
    loss: str = "bce"
    """Weighted sum of bce, edge_bce (borders count more), dice, jaccard, focal, such as bce+dice."""
    # Run
    overfit_one: bool = False
    """Only check that the network can learn one frame by heart: 120 steps, prints the IoU, writes nothing."""

    def __post_init__(self) -> None:
        """Validate fields against each other."""
        super().__post_init__()
        LossRecipe.of_config(vars(self)).check(ONE_LOGIT)
        if 0 < self.crop_size < SMALLEST_SIDE:
            raise ValueError(f"--crop-size {self.crop_size} must be 0 (whole frames) or at least {SMALLEST_SIDE}")
        if self.overfit_one and processes.launched():
            raise ValueError("--overfit-one is for one process; start it without torchrun")
        if min(self.widths) < 1:
            raise ValueError(f"--widths {' '.join(map(str, self.widths))} must be greater than 0")


@dataclass(frozen=True)
class Data:
    """What is trained and scored on."""

    part: dict[str, list[LoadedFrame]]
    """Frames of each part."""
    facts: Facts
    root: Path


def main() -> int:
    """Load data, build, fit, finish; or only see whether one frame can be learned by heart."""
    folder = Path(__file__).resolve().parent
    config = None if processes.launched() else load_train_config(Config, folder)
    if config is not None and config.overfit_one:
        seed_everything(config.seed)
        return overfit_one(config, choose_precision(config.device, config.amp))
    return run_training(TASK, Config, folder, load_data, build, finish)


def load_data(config: Config) -> Data:
    """Read and split the frames, and print what they are."""
    loaded, facts, root = read_data(config)
    test = sorted(item.frame.id for item in loaded if item.frame.sequence == TEST)  # where a folder names it
    others = [item.frame.id for item in loaded if item.frame.sequence != TEST]
    split = split_ids(others, config.val_fraction, 0 if test else config.test_fraction, config.seed)
    split["test"] = test or split["test"]
    split = without_suspects(split, config.skip_suspects)
    part = {name: [item for item in loaded if item.frame.id in set(ids)] for name, ids in split.items()}
    facts.append(("split", count_parts(split)))
    say_facts(facts[-1:])
    return Data(part, facts, root)


def read_data(config: Config) -> tuple[list[LoadedFrame], Facts, Path]:
    """Read the frames and print what they are; also where they lie."""
    root = config.data_root if config.has_data else demo_scenes()
    found = find_frames(root, images=config.images, labels=config.labels, truth=config.truth)
    say_notes(found.notes())
    loaded, problems = load_frames(found.frames, ValueRanges(config.input_range))
    if loaded and not config.crop_size:
        loaded, others = of_one_size(loaded)
        problems += others
    require_usable(len(loaded), problems, skip_bad=config.skip_bad)
    unpaired = f"{len(found.without_mask)} frames without a mask, {len(found.without_frame)} masks without a frame"
    facts = [*audit(loaded), ("left out", f"{unpaired}, {len(problems)} bad pairs")]
    say_facts(facts)
    return loaded, facts, root or config.images or Path()


def new_model(config: Config) -> tuple[nn.Module, dict[str, Any]]:
    """The network with its initial weights, and the arguments that build it."""
    arch_args: dict[str, Any] = {"outputs": 2 if config.separation == "distance" else 1, "channels": 1}
    if config.arch != "unet_resnet18":
        arch_args["widths"] = list(config.widths)
    model = TASK.build(config.arch, **arch_args)
    TASK.initialize(model, config.weights)
    return model, arch_args


def build(config: Config, data: Data) -> Experiment:
    """The network with its initial weights, its card, its criterion, and the samples it is trained on."""
    model, arch_args = new_model(config)
    loss = LossRecipe.of_config(vars(config))
    card = TASK.card(
        config.arch,
        arch_args,
        normalization=range_card(data.part["train"]),
        loss=loss,
        maps=("distance",) if config.separation == "distance" else (),
        split={name: [item.frame.id for item in items] for name, items in data.part.items()},
        data_root=str(data.root.resolve()),
    )
    side, length = config.crop_size, config.samples_per_epoch
    crops = FrameCrops(data.part["train"], crop=side, length=length, border=config.border, augment=config.augment)
    whole = WholeFrames(data.part["val"], border=config.border)
    return Experiment(model, card, crops, whole, len(data.part["test"]), build_criterion(loss))


def finish(run: RunFolder, config: Config, data: Data, history: History, precision: Precision) -> None:
    """Score the best network on the test (else validation) part, and write pictures and report."""
    shared = Predictor.load(TASK, [run.path / "best_iou.pt"], precision)
    part, predicted = "test" if data.part["test"] else "val", Predicted(shared.classify)

    def sample(item: LoadedFrame) -> Sample:
        return Sample(item.frame.id, item.frame.id, lambda: LabeledFrame.of(item, config.border))

    samples = {name: list(map(sample, items)) for name, items in data.part.items()}
    scores = score_frames(NucleiPredictor(shared), data.part[part], config.border, end_of(config), predicted.add)
    nuclei = lambda image: shared(image)[:1]  # noqa: E731
    outcome = Outcome(part, shared.card, scores.result(), scores.pixels, predicted, samples, nuclei)
    finish_run(run, config, data.facts, history, precision, outcome)


def demo_scenes() -> Path:
    """The folder of the generated scenes, written at the first use."""
    return demo_data(
        DEMO, "nuclei", lambda folder: write_challenge(folder, sequences=2, frames=12, height=256, width=320, seed=0)
    )


def overfit_one(config: Config, precision: Precision) -> int:
    """Learn one frame by heart: 20 steps at 3e-4, then 100 at 1e-3. A network that cannot is broken."""
    item, model = read_data(config)[0][0], new_model(config)[0]
    data = FrameCrops([item], crop=0, border=config.border, augment=False)[(0, 0)]
    image, target = data["image"][None].to(precision.device), data["target"][None].to(precision.device)
    batch = {"target": target, "distance": data["distance"][None].to(precision.device)}
    criterion = build_criterion(LossRecipe.of_config(vars(config)))
    model.to(precision.device).train()
    valid, iou = target != 255, 0.0
    for lr, steps in ((3e-4, 20), (1e-3, 100)):
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            with precision.autocast():
                logits = model(image)
            loss = criterion(logits.float(), batch)
            torch.autograd.backward(loss)
            optimizer.step()
            guess, truth = (logits[:, 0] >= 0) & valid, (target == 1) & valid
            iou = float((guess & truth).sum() / (guess | truth).sum().clamp(min=1))
            if step % 10 == 0:
                say(f"lr {lr:g} step {step:3d}  loss {float(loss.detach()):.5f}  IoU {iou:.4f}")
    print(f"IoU on {item.frame.id} after 120 steps: {iou:.4f}", flush=True)
    return 0


if __name__ == "__main__":
    run_command(main, several=True)
