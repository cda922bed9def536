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
from common.data.splits import PARTS, Split
from common.files import write_text
from common.metrics.suspects import Suspicion, suspect

FILE = "suspects.csv"
COLUMNS = ("image", "part", "share", "pixels", "label", "prediction", "row", "column", "height", "width", "sample")
MOST = 100
"""Rows in the list; the worst come first."""

LOOKED_AT = 500
"""Samples of a part among which they are looked for, evenly taken."""


class Labeled(NamedTuple):
    """A sample whose label may be wrong."""

    id: str
    image_id: str
    """Of the file, as the split has it."""
    read: Callable[[], tuple[NDArray[np.float32], NDArray[np.uint8]]]
    """Image (C, H, W) in 0...1 and truth (H, W) with 255 = ignored."""


class Suspect(NamedTuple):
    """A sample whose label is confidently contradicted."""

    sample: Labeled
    part: str
    why: Suspicion


def find_suspects(
    samples: Mapping[str, Sequence[Labeled]],
    predict: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    deadline: float = math.inf,
) -> list[Suspect]:
    """Predict labeled samples of all parts and list those whose labels are confidently contradicted, worst first.

    Args:
        samples: by part; of more than ``LOOKED_AT`` in a part so many are taken.
        predict: image -> probabilities (1 or K, H, W).
        deadline: by ``time.monotonic()``, when to stop looking; until then the parts are looked at evenly.

    Returns:
        At most ``MOST``; a line says how many samples were not looked at.
    """
    chosen: list[tuple[float, str, Labeled]] = []
    for part, every in samples.items():
        some = every[:: -(-len(every) // LOOKED_AT) or 1]
        chosen += [(index / len(some), part, one) for index, one in enumerate(some)]
    chosen.sort(key=lambda one: one[0])  # where time ends early, some of each part were looked at
    found, done = [], 0
    for _, part, sample in progress(chosen, "looking for label errors", "sample"):
        if time.monotonic() > deadline:
            break
        image, truth = sample.read()
        done += 1
        if (why := suspect(predict(image), truth)) is not None:
            found.append(Suspect(sample, part, why))
    if done < (total := sum(map(len, samples.values()))):
        say(f"note: label errors were looked for in {done} of {total} labeled samples")
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
