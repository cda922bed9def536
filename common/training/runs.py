"""Run folders: where a training writes, how it is found again, and what lies in it."""

from __future__ import annotations

import contextlib
import csv
import io
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import processes
from common.command.cli import FULL, DiskFull, one_line, say
from common.command.config import (
    ELSEWHERE,
    NOTHING,
    C,
    TrainConfig,
    config_values,
    flag_name,
    flag_value,
    parse_config,
    read_yaml,
    save_config,
)
from common.command.help import HELP
from common.command.recipes import read_recipe
from common.files import atomic_path, write_text
from common.networks.checkpoint import RUNS, ModelCard, StateDict, is_demo_run, load_checkpoint, save_checkpoint
from common.report.plots import curves

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from common.training.state import TrainState


MARKER = ".run"
"""In every run folder: made, and so owned, by a training of ours."""
MAY_CHANGE = frozenset({
    "data_root", "images", "labels", "skip_bad", "epochs", "max_minutes", "early_stopping", "workers", "device", "amp",
    "compile", "preview", "resume", "output_dir", "config", "recipe",
})  # fmt: skip
"""Settings that a resumed run may have otherwise than the run had: where, how long and on what, but not what."""


class RunFolder:
    """One training's folder: checkpoints, configuration, history, TensorBoard events, pictures, the report.

    Of several processes only the first one writes.

    Args:
        path: the folder; `create` makes it.
        resume_from: the ``last.pt`` to go on from.
        exact: False = another name may be taken where ``path`` is.
        again: a run that was killed before its first checkpoint starts anew in its folder.
    """

    def __init__(self, path: Path, resume_from: Path | None = None, *, exact: bool = True, again: bool = False) -> None:
        self.path, self.resume_from, self._exact, self._again = path, resume_from, exact, again
        self._resumed: tuple[ModelCard, StateDict, dict[str, Any]] | None = None
        self._writer: SummaryWriter | None = None
        self._drawn, self._drawing = time.monotonic(), 0.5  # when the curves were drawn, and for how long
        self._made = False

    def check_resume(self, task: str, config: TrainConfig) -> None:
        """Read what is resumed, and make sure that it is the same training.

        Raises:
            ValueError: the checkpoint belongs to another task, holds the best weights only, or was trained with other
                settings; names the first of them.
        """
        card, _, _ = self._read(task)
        defaults = config_values(type(config)())
        for name, value in config_values(config).items():
            before = card.config.get(name, defaults[name])
            if name not in MAY_CHANGE and value != before:
                raise ValueError(
                    f"{flag_name(name)} is {value}, but {self.resume_from} was trained with {before}: a resumed run "
                    f"keeps its settings; leave that out, or start a new run with --weights {self.resume_from}"
                )

    def _read(self, task: str) -> tuple[ModelCard, StateDict, dict[str, Any]]:
        """What is resumed, read once."""
        if self._resumed is None:
            assert self.resume_from is not None
            self._resumed = load_checkpoint(self.resume_from, task)
            if not self._resumed[2]:
                raise ValueError(
                    f"{self.resume_from} holds the best weights only, which cannot be resumed; "
                    "give the run's last.pt, or use --weights"
                )
        return self._resumed

    def create(self, config: TrainConfig, split: Mapping[str, Sequence[str]] | None = None) -> None:
        """Make the folder (once), which no other training then gets, and write the resolved configuration into it.

        Args:
            config: the resolved configuration.
            split: the ids of each part, which must be those that a resumed run began with.

        Raises:
            ValueError: they are others, or another training has just taken the folder.
        """
        if self._made:
            return
        if self._resumed is not None and split is not None:
            self._check_split(self._resumed[0].split, split)
        self._claim()
        self._made = True
        save_config(self.path / "config.yaml", config)
        say(f"run folder: {self.path}")

    def _check_split(self, before: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]]) -> None:
        old, new = ({name: part for part, names in parts.items() for name in names} for parts in (before, now))
        moved = {name for name in old.keys() & new.keys() if old[name] != new[name]}
        changes = {
            f"of its {len(old)} samples are missing": old.keys() - new.keys(),
            "samples are new": new.keys() - old.keys(),
            "samples were in another part": moved,
        }
        for what, names in changes.items():
            if names:
                shown = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
                raise ValueError(
                    f"{self.resume_from} was trained on other data: {len(names)} {what} ({shown}); restore them, "
                    f"or start a new run with --weights {self.resume_from}"
                )

    def _claim(self) -> None:
        wanted, number = self.path, 1
        while not self._exact:  # whoever makes the folder has it
            with contextlib.suppress(FileExistsError):
                self.path.mkdir(parents=True)
                break
            number += 1
            self.path = wanted.with_name(f"{wanted.name}-{number}")
        self.path.mkdir(parents=True, exist_ok=True)
        own = self.resume_from is not None and self.resume_from.parent.resolve() == self.path.resolve()
        own = own or self._again
        try:
            (self.path / MARKER).touch(exist_ok=own)
        except FileExistsError as error:
            raise ValueError(f"another training has begun in {self.path}; choose another --output-dir") from error

    @property
    def writer(self) -> SummaryWriter:
        """TensorBoard events of this run (opened at first use: the import takes a second)."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.path))
        return self._writer

    def close(self) -> None:
        """Flush and close the event file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Close the event file at the end of the block, and say what is kept if the disk is full.

        Raises:
            DiskFull: it is.
        """
        try:
            yield
            self.close()
        except OSError as error:
            if error.errno not in FULL:
                raise
            last, best = self.path / "last.pt", self.path / "best_iou.pt"
            kept = f"{last} is whole: free some space and go on with --resume {last}"
            kept += f"; {best} is whole too" if best.is_file() else ""
            lost = "nothing of the run is saved yet: free some space and start again in another folder"
            raise DiskFull(f"the disk is full: {one_line(error)}; {kept if last.is_file() else lost}") from error
        finally:
            with contextlib.suppress(OSError):
                self.close()

    def save_best(self, name: str, state: TrainState, card: ModelCard) -> None:
        """Write the weights that were validated, as ``best_iou.pt`` or ``best_loss.pt``."""
        if processes.is_first():
            save_checkpoint(self.path / name, card, state.inference_model.state_dict())

    def save_last(self, state: TrainState, card: ModelCard) -> None:
        """Write ``last.pt``: weights and everything that resuming needs, of all processes."""
        snapshot = state.snapshot()
        if processes.is_first():
            save_checkpoint(self.path / "last.pt", card, state.model.state_dict(), training=snapshot)

    def restore(self, state: TrainState, task: str) -> None:
        """Bring ``state`` back to where the resumed run stopped, and ``metrics.csv`` with it.

        A run that goes on in another folder takes its best checkpoints along.

        Raises:
            ValueError: the checkpoint belongs to another task or network, or holds the best weights only.
        """
        assert self.resume_from is not None
        _, model, training = self._read(task)
        state.restore(model, training)
        if not processes.is_first():
            return
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
        if not processes.is_first():
            return
        write_history(self.path / "metrics.csv", history)
        if time.monotonic() - self._drawn > 20 * self._drawing:
            started = time.monotonic()
            curves(history, self.path / "curves.png")
            self._drawn, self._drawing = time.monotonic(), time.monotonic() - started
        row = history[-1]
        for name, value in row.items():
            if name not in ("epoch", "kept") and value is not None:
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


def remove_run(path: Path) -> None:
    """Delete a run folder, if there is one.

    Raises:
        ValueError: what is there was not made by a training of ours.
    """
    require_run(path)
    if path.exists():
        shutil.rmtree(path)


def require_run(path: Path) -> None:
    """Make sure that there is a run folder, or nothing.

    Raises:
        ValueError: what is there was not made by a training of ours.
    """
    if path.is_symlink() or (path.exists() and not (path / MARKER).is_file()):
        raise ValueError(f"{path} is in the way: no training made it, so it is left alone; move it away")


def load_train_config(config_type: type[C], folder: Path, argv: Sequence[str] | None = None) -> C:
    """Read the flags of a training over the right defaults.

    These are the resumed run's own configuration, else the recipe: the one that ``--recipe`` (or ``recipe:`` in the
    ``--config`` file) names, else ``source.yaml`` where data are named and ``demo.yaml`` where none are.

    Args:
        config_type: the task's ``TrainConfig``.
        folder: the task's folder, which holds the YAML files.
        argv: the flags; default ``sys.argv[1:]``.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    path = flag_value(argv, "config")
    values: dict[str, Any] = dict(read_yaml(Path(path))) if path else {}
    for name in ("resume", "output_dir", "data_root", "images", "recipe"):
        text = flag_value(argv, name) or values.get(name)
        values[name] = None if text in NOTHING else str(text)
    has_data = bool(values["data_root"] or values["images"])
    output_dir = Path(values["output_dir"]) if values["output_dir"] else None
    last = find_resume(folder.name, output_dir=output_dir, resume=values["resume"], demo=not has_data)
    if last is not None and (saved := last.parent / "config.yaml").is_file():
        base = {key: value for key, value in read_yaml(saved).items() if key not in ELSEWHERE}
        return parse_config(config_type, argv, base, str(saved))
    base, name = read_recipe(folder, values["recipe"], demo=not (has_data or HELP & set(argv)))
    return parse_config(config_type, argv, base, name)


def open_run(task: str, config: TrainConfig) -> RunFolder:
    """Choose the run folder (``create`` makes it).

    Raises:
        ValueError: ``--output-dir`` is in use, or the run to resume was another training.
        FileNotFoundError: the checkpoint to resume does not exist.
    """
    output_dir, demo = config.output_dir, not config.has_data
    again = config.resume is not None and output_dir is not None and (output_dir / MARKER).is_file()
    last = find_resume(task, output_dir=output_dir, resume=config.resume, demo=demo)
    if output_dir is not None:
        own = last is not None and last.parent.resolve() == output_dir.resolve()
        require_free(output_dir, own=own or (again and last is None))
    if last is not None:
        run = RunFolder(last.parent if output_dir is None else output_dir, last)
        run.check_resume(task, config)
        return run
    if config.resume is not None:
        say("nothing to resume: starting anew")
    if output_dir is not None:
        return RunFolder(output_dir, again=again)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return RunFolder(RUNS / task / (f"demo-{stamp}" if demo else stamp), exact=False)


def own_folder(path: Path, owner: str, flag: str = "--output-dir") -> None:
    """Make a folder that one owner alone writes into, or make sure that it is that.

    Raises:
        ValueError: it is another's, or not empty; names the flag.
    """
    marker = path / MARKER
    if marker.is_file():
        if (found := marker.read_text(encoding="utf-8", errors="replace")) != owner:
            raise ValueError(
                f"{flag} {path} belongs to {found[:200] or 'a training'}, not to {owner}; choose another one"
            )
        return
    require_free(path, flag=flag)
    write_text(marker, owner)


def require_free(path: Path, *, own: bool = False, flag: str = "--output-dir") -> None:
    """Make sure that a training can begin in a folder.

    Raises:
        ValueError: it is not empty (unless ``own``), or no folder can be made there.
    """
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise ValueError(f"{flag} {path}: {place} is a link to nothing; mend it or choose another folder")
        if place.exists() and not place.is_dir():
            raise ValueError(f"{flag} {path}: {place} is a file; choose a folder")
    if path.is_dir() and any(path.iterdir()) and not own:
        more = ", or --resume auto to go on with the run in it" if (path / "last.pt").is_file() else ""
        raise ValueError(f"{flag} {path} is not empty; choose another one{more}")


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
