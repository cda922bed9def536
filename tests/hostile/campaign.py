"""Every odd file through every command, one at a time; what does not hold is printed by cause.

python tests/hostile/campaign.py --tasks rooftops hela_nuclei --only web
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(ROOT)

import tyro  # noqa: E402 - imports begin at the repository's root

from tests.hostile import cases, zoo, zoo_places  # noqa: E402
from tests.hostile.arena import Arena  # noqa: E402
from tests.hostile.kit import write_geotiff  # noqa: E402


@dataclass(frozen=True)
class Config:
    """Look for faults."""

    tasks: tuple[str, ...] = cases.TASKS
    """Whose commands."""
    only: str = ""
    """Only files whose names hold this."""
    log: Path | None = None
    """Write a JSON line for each case."""


def main() -> None:
    """Run, count, print."""
    config = tyro.cli(Config)
    warnings.simplefilter("ignore")
    arena, listener = Arena(), cases.Listener()
    root = Path(tempfile.mkdtemp(prefix="campaign-"))
    secret = write_geotiff(root / "elsewhere" / "secret.tif", zoo.RGB)
    specimens = [*zoo.FORMATS, *zoo.TIFFS, *zoo.NAMES, *zoo_places.PLACES]
    specimens += zoo_places.elsewhere(secret, listener.port)
    causes: Counter[str] = Counter()
    tried = bad = 0
    try:
        bench = cases.Bench(arena, root)
        for task in config.tasks:
            for specimen in (s for s in specimens if config.only in s.name):
                knocks = listener.knocks
                verdict = cases.infer(bench, task, [specimen])
                if listener.knocks > knocks:
                    verdict.faults.append(f"network: {listener.knocks - knocks} connections")
                tried += 1
                bad += bool(verdict.faults)
                causes.update({fault.split(":")[0] for fault in verdict.faults})
                if verdict.faults:
                    print(f"{task} {specimen.name!r}: exit {verdict.outcome.code}")
                    print("".join(f"    {fault}\n" for fault in verdict.faults), end="", flush=True)
                if config.log:
                    record = {"task": task, "file": specimen.name, "code": verdict.outcome.code}
                    record |= {"faults": verdict.faults, "err": verdict.outcome.err[-3000:]}
                    with config.log.open("a") as file:
                        file.write(json.dumps(record) + "\n")
    finally:
        arena.close()
        listener.close()
        shutil.rmtree(root, ignore_errors=True)
    print(f"{tried} cases, {bad} with faults: {dict(causes.most_common())}")


if __name__ == "__main__":
    main()
