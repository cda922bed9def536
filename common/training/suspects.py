"""After a training: the list of suspected label errors, for a person to look at; and images left out because of it."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.command.cli import say
from common.command.progress import progress
from common.data.labeled import Sample
from common.data.splits import PARTS, Split
from common.files import write_text
from common.metrics.suspects import Suspicion
from common.training.predicted import Predicted

FILE = "suspects.csv"
COLUMNS = ("image", "part", "share", "pixels", "label", "prediction", "row", "column", "height", "width", "sample")
MOST = 100
"""Rows in the list; the worst come first."""

LOOKED_AT = 500
"""Samples of a part that are predicted in order to look for them, evenly taken."""


class Suspect(NamedTuple):
    """A sample whose label is confidently contradicted."""

    sample: Sample
    part: str
    why: Suspicion


def find_suspects(
    samples: Mapping[str, Sequence[Sample]],
    predicted: Predicted,
    predict: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    deadline: float = math.inf,
) -> list[Suspect]:
    """List labeled samples of all parts whose labels are confidently contradicted, worst first.

    Args:
        samples: by part.
        predicted: what was predicted already; takes in what is predicted besides, at most ``LOOKED_AT`` of a part.
        predict: image -> probabilities (1 or K, H, W).
        deadline: by ``time.monotonic()``, when to stop predicting; until then the parts are looked at evenly.

    Returns:
        At most ``MOST``; a line says how many samples were not looked at.
    """
    todo: list[tuple[float, Sample]] = []
    for every in samples.values():
        unseen = [one for one in every if one.id not in predicted.suspicions]
        some = unseen[:: -(-len(unseen) // LOOKED_AT) or 1]
        todo += [(index / len(some), one) for index, one in enumerate(some)]
    todo.sort(key=lambda one: one[0])  # where time ends early, some of each part were looked at
    for _, sample in progress(todo, "looking for label errors", "sample"):
        if time.monotonic() > deadline:
            break
        pair = sample.read()
        predicted.add(sample.id, predict(pair.unit()), pair.classes)
    if (done := len(predicted.suspicions)) < (total := sum(map(len, samples.values()))):
        say(f"note: label errors were looked for in {done} of {total} labeled samples")
    found = [
        Suspect(sample, part, why)
        for part, every in samples.items()
        for sample in every
        if (why := predicted.suspicions.get(sample.id)) is not None
    ]
    return sorted(found, key=lambda one: -one.why.share)[:MOST]


def write_suspects(path: Path, found: Sequence[Suspect], classes: Sequence[str]) -> None:
    """Write the list as CSV; nothing if it is empty."""
    if not found:
        return
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for sample, part, why in found:
        named = (classes[why.label], classes[why.prediction])
        rows.writerow([sample.image_id, part, f"{why.share:.4f}", why.pixels, *named, *why.box, sample.id])
    write_text(path, text.getvalue())
    say(f"{len(found)} suspected label errors, worst first: {path}; look at them, delete the rows of good labels, and "
        f"train again with --skip-suspects {path}")  # fmt: skip


def without_suspects(split: Split, path: Path | None) -> Split:
    """The split without the images of a list; the test part is kept, so that scores stay comparable.

    Raises:
        FileNotFoundError, ValueError: the list does not exist or is not one, or nothing is left of a part.
    """
    if path is None:
        return split
    if not path.is_file():
        raise FileNotFoundError(f"--skip-suspects {path} is not a file")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if "image" not in (rows.fieldnames or ()):
                raise ValueError(
                    f"--skip-suspects {path}: its first line has no column image; a training writes {FILE}"
                )
            listed = {row["image"] for row in rows}
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"--skip-suspects {path} is no table of text: {error}") from None
    kept = {part: [name for name in ids if part == "test" or name not in listed] for part, ids in split.items()}
    skipped = sum(map(len, split.values())) - sum(map(len, kept.values()))
    say(f"left out as suspected label errors: {skipped} of the {len(listed)} images in {path}")
    for part in PARTS[:2]:
        if split.get(part) and not kept[part]:
            raise ValueError(f"--skip-suspects {path} leaves no image in the {part} part")
    return kept
