"""Run folders: where a training writes, how it is found again, and what lies in it."""

from __future__ import annotations

import csv
import io
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command.cli import say
from common.command.config import C, TrainConfig, flag_value, parse_config, read_yaml, save_config
from common.files import atomic_path, write_text
from common.networks.checkpoint import RUNS, ModelCard, is_demo_run, load_checkpoint, save_checkpoint
from common.report.plots import curves

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from common.training.state import TrainState


class RunFolder:
    """One training's folder: checkpoints, configuration, history, TensorBoard events, pictures, the report."""

    def __init__(self, path: Path, resume_from: Path | None = None) -> None:
        self.path, self.resume_from = path, resume_from
        self._writer: SummaryWriter | None = None
        self._drawn, self._drawing = time.monotonic(), 0.5  # when the curves were drawn, and for how long

    def create(self, config: TrainConfig) -> None:
        """Make the folder and write the resolved configuration into it."""
        self.path.mkdir(parents=True, exist_ok=True)
        save_config(self.path / "config.yaml", config)
        say(f"run folder: {self.path}")

    @property
    def writer(self) -> SummaryWriter:
        """TensorBoard events of this run (opened at first use: the import takes a second)."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.path))
        return self._writer

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def save_last(self, state: TrainState, card: ModelCard) -> None:
        """Write ``last.pt``: weights and everything that resuming needs."""
        save_checkpoint(self.path / "last.pt", card, state.model.state_dict(), training=state.snapshot())

    def restore(self, state: TrainState, task: str) -> None:
        """Bring ``state`` back to where the resumed run stopped, and ``metrics.csv`` with it.

        A run that goes on in another folder takes its best checkpoints along.

        Raises:
            ValueError: the checkpoint belongs to another task or network, or holds the best weights only.
        """
        assert self.resume_from is not None
        _, model, training = load_checkpoint(self.resume_from, task)
        if not training:
            raise ValueError(
                f"{self.resume_from} holds the best weights only, which cannot be resumed; "
                "give the run's last.pt, or use --weights"
            )
        state.restore(model, training)
        if state.history:
            write_history(self.path / "metrics.csv", state.history)
        for best in (self.resume_from.with_name("best_iou.pt"), self.resume_from.with_name("best_loss.pt")):
            if best.is_file() and best.parent.resolve() != self.path.resolve():
                with atomic_path(self.path / best.name) as temporary:
                    shutil.copyfile(best, temporary)
        say(f"resumed {self.resume_from}: {state.epoch} epochs and {state.batch} batches done")

    def log_epoch(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the history so far as ``metrics.csv`` and ``curves.png``, its last row as TensorBoard scalars.

        The curves wait while epochs are so short that drawing them would take a good part of the time.
        """
        write_history(self.path / "metrics.csv", history)
        if time.monotonic() - self._drawn > 20 * self._drawing:
            started = time.monotonic()
            curves(history, self.path / "curves.png")
            self._drawn, self._drawing = time.monotonic(), time.monotonic() - started
        row = history[-1]
        for name, value in row.items():
            if name != "epoch" and value is not None:
                self.writer.add_scalar(_tag(name), value, row["epoch"])
        self.writer.flush()


def _tag(name: str) -> str:
    if name.endswith("_loss"):
        return f"loss/{name.removesuffix('_loss')}"
    if "iou" in name:
        return f"iou/{name.removeprefix('iou_')}"
    return name


def write_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write one CSV row per epoch; undefined values stay empty."""
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(history)
    write_text(path, text.getvalue())


def load_train_config(config_type: type[C], folder: Path, argv: Sequence[str] | None = None) -> C:
    """Read the flags of a training over the right defaults.

    These are the resumed run's own configuration, else ``--config``, else ``source.yaml`` where data are named and
    ``demo.yaml`` where none are.

    Args:
        config_type: the task's ``TrainConfig``.
        folder: the task's folder, which holds the YAML files.
        argv: the flags; default ``sys.argv[1:]``.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    path = flag_value(argv, "config")
    values = read_yaml(Path(path)) if path else {}
    for name in ("resume", "output_dir", "data_root", "images"):
        values[name] = flag_value(argv, name) or values.get(name, "")
    has_data = bool(values["data_root"] or values["images"])
    output_dir = Path(str(values["output_dir"])) if values["output_dir"] else None
    last = find_resume(folder.name, output_dir=output_dir, resume=str(values["resume"]) or None, demo=not has_data)
    if last is not None and (saved := last.parent / "config.yaml").is_file():
        base = {key: value for key, value in read_yaml(saved).items() if key not in ("resume", "output_dir")}
        return parse_config(config_type, argv, base, str(saved))
    if path is not None:
        return parse_config(config_type, argv)
    recipe = folder / ("source.yaml" if has_data else "demo.yaml")
    return parse_config(config_type, argv, read_yaml(recipe), str(recipe))


def open_run(task: str, *, output_dir: Path | None, resume: str | None, demo: bool) -> RunFolder:
    """Choose the run folder (``create`` makes it).

    Raises:
        ValueError: ``output_dir`` is not empty and nothing is to be resumed there.
        FileNotFoundError: the checkpoint to resume does not exist.
    """
    last = find_resume(task, output_dir=output_dir, resume=resume, demo=demo)
    if last is not None:
        return RunFolder(last.parent if output_dir is None else output_dir, last)
    if resume is not None:
        say("nothing to resume: starting anew")
    elif output_dir is not None and output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(
            f"--output-dir {output_dir} is not empty; choose another one, or --resume auto to go on with the run in it"
        )
    if output_dir is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        output_dir = _free(RUNS / task / (f"demo-{stamp}" if demo else stamp))
    return RunFolder(output_dir)


def demo_data(folder: Path, kind: str, write: Callable[[Path], None]) -> Path:
    """Say that this is the demo, and generate its data at the first use.

    Args:
        folder: where they lie.
        kind: what is generated, such as ``nuclei``.
        write: writes them into a folder that does not exist yet.
    """
    print(
        f"demo: no data given, so generated {kind} under {folder} are used; pass --data-root for your own", flush=True
    )
    if not folder.exists():
        write(folder)
    return folder


def find_resume(task: str, *, output_dir: Path | None, resume: str | None, demo: bool) -> Path | None:
    """The ``last.pt`` that ``--resume`` means; None = there is none.

    Where data are named (``demo`` False), ``auto`` never means a run of the built-in demo.

    Raises:
        FileNotFoundError: a path was given and is not there.
    """
    if resume is None:
        return None
    if resume != "auto":
        path = Path(resume)
        path = path / "last.pt" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"--resume {resume} does not exist; give a run's last.pt, or auto")
        return path
    if output_dir is not None:
        candidates = [output_dir / "last.pt"]
    else:
        found = [p for p in (RUNS / task).glob("*/last.pt") if demo or not is_demo_run(p)]
        candidates = sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)
    return next((path for path in candidates if path.is_file()), None)


def _free(path: Path) -> Path:
    """``path``, or the first of ``path-2``, ``path-3``... that does not exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
