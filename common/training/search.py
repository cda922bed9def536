"""Search over settings: one space, one storage, two engines that propose the next trial from all earlier ones.

A space is a YAML file: a list is a choice, ``{low, high, log}`` a range, anything else is fixed for all trials. The
storage is one JSON file, replaced as a whole after every trial. Engines keep nothing themselves: what they propose for
trial n follows from the seed and the trials before it, so a search that was killed goes on as if it had not been.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from common.command.yaml_file import load_yaml
from common.files import alone, read_json, write_text

State = Literal["complete", "pruned", "failed"]
Params = dict[str, str | float | int]
STARTUP = 5
"""Trials at random before an engine uses what it has seen."""
PRUNE_AFTER = 4
"""Trials that are never pruned: the first ones, whose course the later ones are compared with."""
ATTEMPTS = 200
"""Proposals for one trial; repeated and impossible ones are passed over."""


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """A number between two bounds, whole if both bounds are; ``log``: evenly distributed in its logarithm."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def number(self, value: float) -> float | int:
        """A proposed value within the bounds, rounded to five digits, or to a whole number."""
        inside = min(max(float(f"{value:.5g}"), self.low), self.high)
        return round(inside) if self.whole else inside


@dataclass(frozen=True)
class Space:
    """What is searched, by name, and what is fixed."""

    searched: Mapping[str, Choice | Range]
    fixed: Mapping[str, str]

    def size(self) -> float:
        """Number of different trials; infinite with a range of real numbers."""
        return math.prod(
            len(kind.values) if isinstance(kind, Choice) else kind.high - kind.low + 1 if kind.whole else math.inf
            for kind in self.searched.values()
        )


def read_space(path: Path) -> Space:
    """Read a space.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no space; names the key.
    """
    found = load_yaml("--space", path)
    if not isinstance(found, dict):
        raise ValueError(
            f"--space {path} holds no mapping; write 'key: [a, b]' or 'key: {{low: 1e-4, high: 1e-2}}' lines"
        )
    searched = {str(key): _read_kind(path, key, value) for key, value in found.items() if not isinstance(value, str)}
    if not searched:
        raise ValueError(f"--space {path} leaves nothing to search; give at least one key a list or a range")
    return Space(searched, {str(key): value for key, value in found.items() if isinstance(value, str)})


def _read_kind(path: Path, key: str, value: object) -> Choice | Range:
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return Choice(tuple(dict.fromkeys(value)))
    if isinstance(value, dict) and {"low", "high"} <= set(value) <= {"low", "high", "log"}:
        try:
            low, high = float(value["low"]), float(value["high"])
        except (TypeError, ValueError):
            low = high = math.nan
        log = str(value.get("log", "false")).lower() in ("true", "yes", "on")
        if low < high < math.inf and (low > 0 or not log):
            whole = all(str(value[bound]).lstrip("-").isdigit() for bound in ("low", "high"))
            return Range(low, high, log, whole)
    raise ValueError(
        f"--space {path}: {key}: {value} is neither a list of values nor {{low: L, high: H, log: true}} with L < H "
        "(and L > 0 for log)"
    )


# Storage


@dataclass
class Trial:
    """One trial that has ended."""

    number: int
    engine: str
    params: Params
    state: State
    value: float | None = None
    """Best validation mIoU."""
    course: list[float] = field(default_factory=list)
    """Validation mIoU after each epoch."""
    seconds: float = 0.0
    note: str = ""
    """Why it failed."""

    def is_sound(self, number: int, names: list[str]) -> bool:
        """Whether a file that a hand may have changed holds what a trial of this number has.

        Raises:
            TypeError: a field is of another kind.
        """
        scores = [self.seconds, *self.course, *([] if self.value is None else [self.value])]
        plain = all(isinstance(value, (str, int, float)) for value in dict(self.params).values())
        known = self.number == number and self.state in get_args(State) and list(self.params) == names
        return known and plain and all(math.isfinite(score) for score in scores)


@dataclass
class Storage:
    """The trials of a search, in a file.

    Args:
        path: the file; made when the first trial ends.
        settings: what all trials have in common. A file with other settings is another search.

    Raises:
        ValueError: the file is of another search, or is none.
    """

    path: Path
    settings: Mapping[str, Any]
    trials: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read what is there."""
        if not self.path.exists():
            return
        try:
            found = read_json(self.path)
            self.trials, settings = [Trial(**trial) for trial in found["trials"]], dict(found["settings"])
            names = list(self.trials[0].params) if self.trials else []
            if wrong := [number for number, trial in enumerate(self.trials) if not trial.is_sound(number, names)]:
                raise ValueError(f"trial {wrong[0]} is damaged")
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise ValueError(
                f"--storage {self.path} is no storage of a search ({error}); choose another file"
            ) from error
        other = [key for key in self.settings if settings.get(key) != json.loads(json.dumps(self.settings[key]))]
        if other:
            raise ValueError(
                f"--storage {self.path} belongs to a search with another {' and '.join(other)}; choose another file"
            )

    def add(self, trial: Trial) -> None:
        """Note a trial that has ended, on disk too."""
        self.trials.append(trial)
        content = {"settings": self.settings, "trials": [asdict(each) for each in self.trials]}
        write_text(self.path, json.dumps(content, indent=1) + "\n")

    def best(self) -> Trial | None:
        """The trial with the highest value."""
        return ranked(self.trials)[0] if any(trial.value is not None for trial in self.trials) else None

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from searching with the same file; see `common.files.alone`."""
        return alone(self.path)


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Best first; pruned ones after complete ones, failed ones last."""
    order = {"complete": 0, "pruned": 1, "failed": 2}
    return sorted(trials, key=lambda trial: (order[trial.state], -(trial.value or 0.0), trial.number))


# Engines


class Proposal(Protocol):
    """The next trial's parameters, and whether it is worth going on with."""

    params: Params

    def is_hopeless(self, epoch: int, value: float) -> bool:
        """Whether to prune, told the value after an epoch (from 1)."""


class Engine(Protocol):
    """Proposes a trial from those that have ended."""

    def __call__(self, space: Space, trials: Sequence[Trial], seed: int) -> Proposal:
        """The next trial."""


class OptunaProposal:
    """A proposal of Optuna's tree-structured Parzen estimator, pruned by the median of the earlier trials."""

    def __init__(self, space: Space, trials: Sequence[Trial], seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        kinds = {name: _optuna_kind(kind) for name, kind in space.searched.items()}
        states = {
            "complete": optuna.trial.TrialState.COMPLETE,
            "pruned": optuna.trial.TrialState.PRUNED,
            "failed": optuna.trial.TrialState.FAIL,
        }
        self._study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=PRUNE_AFTER, n_warmup_steps=2),
        )
        for trial in trials:
            past = optuna.create_trial(
                state=states[trial.state],
                value=None if trial.state == "failed" else trial.value,
                params=trial.params,
                distributions=kinds,
                intermediate_values=dict(enumerate(trial.course, start=1)),
            )
            self._study.add_trial(past)
        self._trial = self._study.ask(kinds)
        self.params: Params = {name: _plain(space.searched[name], self._trial.params[name]) for name in kinds}

    def is_hopeless(self, epoch: int, value: float) -> bool:
        """Whether it is worse than the median of the earlier trials after as many epochs."""
        self._trial.report(value, epoch)
        return bool(self._trial.should_prune())


def _optuna_kind(kind: Choice | Range) -> Any:  # noqa: ANN401 - optuna's types
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(kind, Choice):
        return CategoricalDistribution(kind.values)
    if kind.whole:
        return IntDistribution(int(kind.low), int(kind.high), log=kind.log)
    return FloatDistribution(kind.low, kind.high, log=kind.log)


def _plain(kind: Choice | Range, value: Any) -> str | float | int:  # noqa: ANN401
    return str(value) if isinstance(kind, Choice) else kind.number(float(value))


class HyperoptProposal:
    """A proposal of Hyperopt's tree-structured Parzen estimator; it prunes nothing."""

    def __init__(self, space: Space, trials: Sequence[Trial], seed: int) -> None:
        import hyperopt
        from hyperopt import tpe
        from hyperopt.base import Domain

        domain = Domain(lambda params: 0.0, {name: _hyperopt_kind(name, kind) for name, kind in space.searched.items()})
        past = hyperopt.Trials()
        past.insert_trial_docs([_hyperopt_document(space, trial) for trial in trials])
        past.refresh()
        (document,) = tpe.suggest([len(trials)], domain, past, seed, n_startup_jobs=STARTUP, verbose=False)
        values = {name: value[0] for name, value in document["misc"]["vals"].items()}
        self.params: Params = {
            name: kind.values[int(values[name])] if isinstance(kind, Choice) else kind.number(float(values[name]))
            for name, kind in space.searched.items()
        }

    def is_hopeless(self, epoch: int, value: float) -> bool:
        """Never."""
        return False


def _hyperopt_kind(name: str, kind: Choice | Range) -> Any:  # noqa: ANN401 - an expression of hyperopt's
    from hyperopt import hp

    if isinstance(kind, Choice):
        return hp.choice(name, kind.values)
    low, high = (kind.low - 0.49, kind.high + 0.49) if kind.whole else (kind.low, kind.high)
    return hp.loguniform(name, math.log(low), math.log(high)) if kind.log else hp.uniform(name, low, high)


def _hyperopt_document(space: Space, trial: Trial) -> dict[str, Any]:
    """A trial as hyperopt books it: choices by index."""
    values: dict[str, list[Any]] = {}
    for name, kind in space.searched.items():
        value = trial.params[name]
        values[name] = [kind.values.index(str(value)) if isinstance(kind, Choice) else value]
    failed = trial.value is None
    return {
        "state": 2,
        "tid": trial.number,
        "spec": None,
        "result": {"status": "fail"} if failed else {"status": "ok", "loss": -float(trial.value or 0.0)},
        "misc": {
            "tid": trial.number,
            "cmd": ("domain_attachment", "FMinIter_Domain"),
            "workdir": None,
            "idxs": {name: [trial.number] for name in values},
            "vals": values,
        },
        "exp_key": None,
        "owner": None,
        "version": 0,
        "book_time": None,
        "refresh_time": None,
    }


ENGINES: dict[str, Engine] = {"optuna": OptunaProposal, "hyperopt": HyperoptProposal}


def propose(engine: str, space: Space, trials: Sequence[Trial], seed: int) -> Iterator[Proposal]:
    """Proposals for the next trial, none of which was tried before, best first."""
    tried = [trial.params for trial in trials]
    for attempt in range(ATTEMPTS):
        draw = int(np.random.default_rng((seed, len(trials), attempt)).integers(2**31))
        # After many vain attempts the engine insists on what was tried: then anything else will do.
        proposal = ENGINES[engine](space, trials if attempt < ATTEMPTS // 2 else [], draw)
        if proposal.params not in tried:
            tried.append(proposal.params)
            yield proposal
