"""Every odd file through every command, one at a time; what does not hold is printed by cause.

python tests/hostile/campaign.py --groups images checkpoints --tasks footprints --only web
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(ROOT)

import tyro  # noqa: E402 - imports begin at the repository's root

from tests.hostile import cases_more as more  # noqa: E402
from tests.hostile import zoo, zoo_checkpoints, zoo_places, zoo_texts  # noqa: E402
from tests.hostile.arena import Arena  # noqa: E402
from tests.hostile.cases import TASKS, Bench, Listener, Verdict, infer_apart  # noqa: E402
from tests.hostile.kit import write_geotiff  # noqa: E402

Case = Callable[[], Verdict | Iterator[Verdict]]
BATCH = 20
GROUPS = ("images", "checkpoints", "texts", "vectors", "training", "evaluation", "folders", "flags", "way")


@dataclass(frozen=True)
class Config:
    """Look for faults."""

    groups: tuple[str, ...] = GROUPS
    """What is tried."""
    tasks: tuple[str, ...] = TASKS
    """Whose inference and training."""
    only: str = ""
    """Only files whose names hold this."""
    log: Path | None = None
    """Write a JSON line for each case."""


@dataclass(frozen=True)
class Zoo:
    """All odd files, those included that point to a forbidden file and to a port that counts."""

    bench: Bench
    secret: Path
    port: int
    only: str = ""

    def chosen(self, *groups: tuple[zoo.Specimen, ...]) -> list[zoo.Specimen]:
        """Those whose names hold what is looked for."""
        return [specimen for group in groups for specimen in group if self.only in specimen.name]

    def images(self) -> list[zoo.Specimen]:
        """Everything that could be an image."""
        elsewhere = zoo_places.elsewhere(self.secret, self.port)
        return self.chosen(zoo.FORMATS, zoo.TIFFS, zoo.NAMES, zoo_places.PLACES, elsewhere)

    def checkpoints(self, task: str = "footprints") -> list[zoo.Specimen]:
        """Broken checkpoints of a task."""
        good, other = (
            self.bench.network(task),
            self.bench.network("hela_nuclei" if task != "hela_nuclei" else "rooftops"),
        )
        return self.chosen(tuple(zoo_checkpoints.broken(good, other)))


def cases(odd: Zoo, group: str, tasks: tuple[str, ...]) -> Iterator[Case]:
    """The cases of a group."""
    bench = odd.bench
    if group == "images":
        images = odd.images()
        for task in tasks:
            yield from (partial(infer_apart, bench, task, images[n : n + BATCH]) for n in range(0, len(images), BATCH))
    elif group == "checkpoints":
        for command in ("common.checkpoint", "footprints.infer", "footprints.evaluate", "footprints.train"):
            yield from (partial(more.with_checkpoint, bench, command, one) for one in odd.checkpoints())
        for command in ("hela_nuclei.make_video", "hela_nuclei.infer"):
            yield from (partial(more.with_checkpoint, bench, command, one) for one in odd.checkpoints("hela_nuclei"))
        for one in odd.checkpoints("rooftops"):
            yield partial(more.with_checkpoint, bench, "rooftops.export", one)
    elif group == "texts":
        for command, flag, files in (
            ("footprints.train", "--config", zoo_texts.configurations()),
            ("rooftops.evaluate", "--classes", zoo_texts.class_lists()),
            ("potsdam_points.train", "--points-file", zoo_texts.point_tables()),
        ):
            yield from (partial(more.with_text, bench, command, flag, one) for one in odd.chosen(tuple(files)))
    elif group == "vectors":
        files = odd.chosen(tuple(zoo_texts.vectors(odd.port, odd.secret)))
        for command in ("permeability.make_masks", "footprints.crop"):
            yield from (partial(more.with_vector, bench, command, one) for one in files)
    else:
        yield from data_cases(odd, group, tasks)


def data_cases(odd: Zoo, group: str, tasks: tuple[str, ...]) -> Iterator[Case]:
    """Cases of whole data sets and folders, and of flags."""
    bench, images = odd.bench, odd.images()
    if group in ("training", "evaluation"):
        action, flags = ("train", ("--skip-bad",)) if group == "training" else ("evaluate", ())
        for task in tasks:
            for spoil in ("image", "label"):
                for start in range(0, len(images), BATCH):
                    part = images[start : start + BATCH]
                    yield partial(more.with_data, bench, f"{task}.{action}", part, *flags, spoil=spoil)
    elif group == "folders":
        commands = ("footprints.crop", "permeability.make_masks", "hela_nuclei.make_video", "hela_nuclei.infer")
        for command in (*commands, "footprints.infer"):
            for one in (*images, *odd.chosen(zoo.LINKS)):
                yield partial(more.of_folder, bench, command, [one])
    elif group == "flags":
        yield from (partial(more.with_flags, bench, command, *words) for command, words in more.FLAGS)
    elif group == "way":
        for task in tasks:
            yield partial(more.in_the_way, bench, task)
            if task != "hela_nuclei":
                yield from (partial(more.in_the_way, bench, task, "--vector", v) for v in ("shp", "gpkg", "geojson"))


def report(verdict: Verdict, log: Path | None) -> None:
    """Print the faults of a case; note it."""
    if verdict.faults:
        print(f"{verdict.what}: exit {verdict.outcome.code}")
        print("".join(f"    {fault}\n" for fault in verdict.faults), end="", flush=True)
    if log:
        record = {"what": verdict.what, "code": verdict.outcome.code, "seconds": verdict.outcome.seconds}
        record |= {"faults": verdict.faults, "err": verdict.outcome.err[-3000:]}
        with log.open("a") as file:
            file.write(json.dumps(record) + "\n")


def main() -> None:
    """Run, count, print."""
    config = tyro.cli(Config)
    warnings.simplefilter("ignore")
    arena, listener = Arena(), Listener()
    root = Path(tempfile.mkdtemp(prefix="campaign-"))
    causes: Counter[str] = Counter()
    tried = bad = 0
    try:
        secret = write_geotiff(root / "elsewhere" / "secret.tif", zoo.RGB)
        odd = Zoo(Bench(arena, root), secret, listener.port, config.only)
        for case in (case for group in config.groups for case in cases(odd, group, config.tasks)):
            knocks = listener.knocks
            found = case()
            for verdict in [found] if isinstance(found, Verdict) else found:
                if listener.knocks > knocks:
                    verdict.faults.append(f"network: {listener.knocks - knocks} connections")
                    knocks = listener.knocks
                tried += 1
                bad += bool(verdict.faults)
                causes.update({fault.split(":")[0] for fault in verdict.faults})
                report(verdict, config.log)
    finally:
        arena.close()
        listener.close()
        shutil.rmtree(root, ignore_errors=True)
    print(f"{tried} cases, {bad} with faults: {dict(causes.most_common())}")


if __name__ == "__main__":
    main()
