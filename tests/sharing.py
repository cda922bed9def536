"""Work for several processes that train together: ``python -m tests.sharing WORK FOLDER``, as torchrun starts it."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from common import processes
from common.command.cli import Interrupted, NonFiniteLoss, run_command
from common.command.config import parse_config, read_yaml
from common.losses import ONE_LOGIT, SEVERAL_LOGITS, LossRecipe, build_loss
from common.metrics.split_scores import SplitScores
from common.networks.norm import shared_batch_norm, steady_batch_norm
from common.networks.precision import choose_precision
from common.networks.probabilities import foreground_probability
from common.training import loop
from common.training.estimate import MEASURED
from common.training.experiment import Engine, Experiment
from common.training.loading import validation_loader
from common.training.loop import evaluate, fit, seed_everything
from common.training.runs import RunFolder
from common.training.together import shared_network, together
from tests.common.training.test_loop import CARD, COSINE, LENGTH, Blobs, criterion, network

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("permeability", "rooftops", "footprints", "potsdam_points", "hela_nuclei")
STEPPED = ("footprints", "potsdam_points")
SAMPLES, SIDE, STEPS = 5, 64, 20
UNEVEN = replace(COSINE, batch_size=5, grad_accum=1, epochs=4)
"""Two batches of five an epoch: three samples for one of two processes, two for the other."""


def start(work, folder, count=2):
    """Start the processes of a work."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "tests.sharing", work, str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    return [
        subprocess.Popen(line, env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **pipes)
        for rank in range(count)
    ]


def torchrun(*words, cwd=ROOT):
    """What a command of two processes leaves."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def best(task):
    """Network, criterion, bands, classes and factor from input to output size of a task's best recipe.

    Rooftops' is DeepLabV3+, for the BatchNorm behind its pooling; its recipe has the network of footprints.
    """
    train = import_module(f"{task}.train")
    base = read_yaml(ROOT / task / "best.yaml")
    config = parse_config(train.Config, ["--weights", "none"], {k: v for k, v in base.items() if k != "recipe"})
    recipe = LossRecipe.of_config(vars(config))
    small = {"widths": list(config.widths)} if hasattr(config, "widths") else {}
    if task == "hela_nuclei":
        return train.new_model(config)[0], train.build_criterion(recipe), 1, 2, 1
    if task == "permeability":
        model = train.TASK.build(config.arch, **train.network_args(config))
    elif task == "rooftops":
        model = train.TASK.build("deeplabv3plus", outputs=2, encoder="resnet18", dropout=0.0)
    elif task == "footprints":
        model = train.TASK.build(config.arch, **small, stem=config.stem)
    else:
        model = train.TASK.build(config.arch, outputs=6, upsample=config.shrink, **small, stem=2)
        recipe = replace(recipe, class_weights=(0.5, 1.0, 1.0, 2.0, 3.0, 0.0))
        loss = recipe.build()
        return model, lambda out, batch: loss(*train.at_points(out, batch["target"])), 3, 6, config.shrink
    loss = recipe.build()
    return model, lambda out, batch: loss(out, batch["target"]), 3, 2, 1


def batch_of(bands, classes, factor, dtype):
    """This process' share of a batch whose every other sample, all of the second process', has no labeled pixel."""
    torch.manual_seed(1)
    image = torch.randn(SAMPLES, bands, SIDE, SIDE, dtype=dtype)
    target = torch.randint(classes, (SAMPLES, SIDE * factor, SIDE * factor))
    target[torch.rand(target.shape) < 0.5] = 255
    target[1::2] = 255
    distance = torch.rand(SAMPLES, SIDE, SIDE, dtype=dtype)
    whole = {"image": image, "target": target, "distance": distance}
    return {name: value[processes.rank() :: processes.count()] for name, value in whole.items()}


def learn(task, dtype, steps):
    """Losses, gradients of the last step, weights and statistics after some steps on one batch."""
    seed_everything(0)
    model, loss_of, *kind = best(task)
    prepare = steady_batch_norm if processes.count() == 1 else lambda m: shared_batch_norm(m, torch.device("cpu"))
    model = prepare(model).to(dtype).train()
    batch, losses = batch_of(*kind, dtype), []
    forward = shared_network(model, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(forward(batch["image"]), batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    return {"losses": losses, "gradients": gradients, "state": dict(model.state_dict())}


def loss_gradients():
    """Value and gradient at every pixel of each loss, one process without a label and with classes of its own."""
    found = {}
    for channels, names in ((1, ONE_LOGIT), (3, SEVERAL_LOGITS)):
        torch.manual_seed(2)
        logits = torch.randn(4, channels, 6, 6, dtype=torch.float64)
        target = torch.randint(max(channels, 2), (4, 6, 6))
        target[1], target[3] = 255, 0
        share = slice(processes.rank(), None, processes.count())
        own = logits[share].clone().requires_grad_()
        for name in names:
            loss = build_loss(name, weight=None if channels == 1 else (1.0, 2.0, 0.5), label_smoothing=0.1)(
                own, target[share]
            )
            (gradient,) = torch.autograd.grad(loss, own)
            whole = torch.zeros_like(logits)
            whole[share] = gradient / processes.count()  # as DistributedDataParallel averages
            found[f"{name} {channels}"] = (float(loss.detach()), processes.add_up(whole))
    return found


class Logged(Blobs):
    """Blobs that write down the keys they are asked for; a signal comes to one process with a key, of two twice."""

    def __init__(self, log=None, signal_at=None, signum=signal.SIGTERM):
        super().__init__(LENGTH)
        self.log = log
        if signal_at is not None:
            self.events[signal_at] = lambda: [os.kill(os.getpid(), signum) for _ in range(processes.count())]

    def __getitem__(self, key):
        if self.log is not None and isinstance(key, tuple) and key[1] > MEASURED:  # others are the estimate's
            with self.log.with_name(f"{self.log.name}-{processes.rank()}").open("a") as file:
                file.write(f"{key[0]} {key[1]}\n")
        return super().__getitem__(key)


def key_at(epoch, batch, number):
    """The key of a sample of a batch of five; the second process has the odd ones."""
    sampler = loop.EpochBatches(LENGTH, UNEVEN.batch_size, UNEVEN.seed)
    sampler.epoch, sampler.first_batch = epoch, batch
    return next(iter(sampler))[number]


def toy(folder, data, *, resume=False, dropout=0.0, config=UNEVEN):
    """Train the toy network, from the start or from where it stopped."""
    loop.draw_epoch = lambda *_: None
    seed_everything(12345 if resume else 0)
    model = network()
    model[0].register_parameter("bias", None)  # BatchNorm follows: its gradient is rounding, which Adam makes steps of
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    run = RunFolder(folder, folder / "last.pt" if resume else None)
    return fit(
        Experiment(model, CARD, data, Blobs(7), 0, criterion_of_all), config, run, choose_precision("cpu", "off")
    )


def criterion_of_all(logits, batch):
    """The toy criterion, as a loss of the whole batch."""
    return build_loss("bce")(logits, batch["target"])


def interrupted(folder, data, **options):
    """Train until the signal that comes with a key."""
    try:
        toy(folder, data, **options)
    except Interrupted:
        return
    raise AssertionError("no signal came")


def compute(folder, stepped):
    """Everything that is compared with one process, in one start; of the tasks ``stepped``, many steps too."""
    torch.set_num_threads(1)
    found = {"losses": loss_gradients()}
    for task in TASKS:
        found[task] = learn(task, torch.float64, 1)
        if task in stepped:
            found[f"{task} {STEPS}"] = learn(task, torch.float32, STEPS)
    found["scores"] = judged()
    found["told"] = processes.gathered(told(folder))
    if processes.is_first():
        torch.save(found, folder / "found.pt")
    toy(folder / "whole", Logged(), dropout=0.3)  # the same twice, once with a stop: the random state of each process
    interrupted(folder / "parts", Logged(signal_at=key_at(1, 0, 1)), dropout=0.3)
    toy(folder / "parts", Logged(), resume=True, dropout=0.3)


def told(folder):
    """What each process raises for a loss that is not finite, and for a mistake that the first one finds."""
    data = Logged()
    data.images[key_at(0, 1, 3)[0]] = float("nan")  # in the share of the second process
    found = []
    for work in (lambda: toy(folder / "nan", data), lambda: processes.in_turn(lambda: int("no number"))):
        try:
            work()
        except (NonFiniteLoss, ValueError, SystemExit) as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def judged():
    """Scores of an untrained network on seven images, as validation takes them."""
    torch.manual_seed(0)
    scores = SplitScores(CARD.classes, quick=True)
    evaluate(
        network(),
        validation_loader(Blobs(7)),
        scores,
        Engine(criterion, foreground_probability, choose_precision("cpu", "off")),
    )
    return scores.result(), scores.ids


def main():
    """Do a work, named on the command line."""
    work, folder = sys.argv[1], Path(sys.argv[2])
    with together():
        (folder / f"pid-{processes.rank()}").write_text(str(os.getpid()))
        if work.startswith("compute"):
            compute(folder, TASKS if work == "compute all" else STEPPED)
        elif work == "go on, SIGTERM to one":
            toy(folder / "run", Logged(folder / "order-2", key_at(2, 0, 3)), resume=True)
        elif work == "SIGKILL of one":
            toy(folder / "run", Logged(None, key_at(1, 1, 3), signal.SIGKILL))
        elif work == "mistake of the second":
            if not processes.is_first():
                raise ValueError("the second cannot read")
            processes.largest(0)
    return 0


if __name__ == "__main__":
    run_command(main, several=True)
