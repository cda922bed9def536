"""Joining images and labels that lie in two folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.command.cli import say
from common.data.inputs import images_in
from common.images.ranges import ValueRanges

Facts = list[tuple[str, str]]
"""What was found in the data, as (name, value) rows."""
LABEL_SUFFIXES = ("_label", "_mask")
NAMED = 3
"""Files of one kind that are named."""


@dataclass(frozen=True)
class Pair:
    """One image and its label on disk."""

    id: str
    """Unique name, as a rule the image's stem."""
    image: Path
    label: Path


def list_images(folder: Path, flag: str) -> list[Path]:
    """Image files directly in a folder, see `images_in`.

    Args:
        folder: the folder.
        flag: the command-line flag that named it, for the message.

    Raises:
        FileNotFoundError: it is not a folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{flag} {folder} is not a folder")
    return images_in(folder)


def same_stem(stem: str) -> str:
    """Key of the usual join: the stem without ``_label`` or ``_mask``."""
    for suffix in LABEL_SUFFIXES:
        if stem.endswith(suffix) and len(stem) > len(suffix):
            return stem.removesuffix(suffix)
    return stem


def join(
    images: Sequence[Path], labels: Sequence[Path], *, key: Callable[[str], str] = same_stem
) -> tuple[list[Pair], list[str]]:
    """Join images and labels whose stems have the same key.

    Args:
        images: image files.
        labels: label files.
        key: what two stems must have in common; it is also the pair's id.

    Returns:
        The pairs in the images' order, and a line for each file that found no partner.

    Raises:
        ValueError: two images, or two labels, have the same key.
    """
    partners = _by_key(labels, key)
    pairs, notes = [], []
    for name, image in _by_key(images, key).items():
        label = partners.pop(name, None)
        if label is None:
            notes.append(f"{image}: no label, left out")
        else:
            pairs.append(Pair(name, image, label))
    return pairs, notes + [f"{label}: no image, left out" for label in partners.values()]


def _by_key(paths: Sequence[Path], key: Callable[[str], str]) -> dict[str, Path]:
    table: dict[str, Path] = {}
    for path in paths:
        name = key(path.stem)
        if name in table:
            raise ValueError(f"{table[name]} and {path} have the same name '{name}'; rename or remove one of them")
        table[name] = path
    return table


def say_facts(facts: Facts) -> None:
    """Print what was found, a line for each (name, value) row."""
    for name, value in facts:
        say(f"{name + ':':24}{value}")


def say_notes(notes: Sequence[str]) -> None:
    """Print what is worth knowing; of more than `NAMED` notes ``file: text`` with one text a single line."""
    kinds: dict[str, list[str]] = {}
    for note in notes:
        name, colon, text = note.partition(": ")
        kinds.setdefault(text if colon else note, []).append(note if not colon else name)
    for text, names in kinds.items():
        if len(names) > NAMED:
            say(f"note: {len(names)} files: {text}; such as {', '.join(names[:NAMED])}")
        else:
            for name in names:
                say(f"note: {name}" if name == text else f"note: {name}: {text}")


def value_rows(ranges: ValueRanges) -> Facts:
    """Which values the images hold, as (name, value) rows; says in a line where they hardly fit their range."""
    for warning in ranges.warnings():
        say(f"warning: {warning}")
    return [("values", ranges.describe())]


def require_usable(usable: int, problems: Sequence[str], *, skip_bad: bool) -> None:
    """Name every bad file; stop unless ``skip_bad``.

    Args:
        usable: how many pairs can be used.
        problems: a line for each one that cannot.
        skip_bad: go on without those.

    Raises:
        ValueError: there are bad files and they are not to be skipped, or nothing is left.
    """
    for problem in problems:
        say(f"{'skipped' if skip_bad else 'bad'}: {problem}")
    if problems and not skip_bad:
        raise ValueError(
            f"{len(problems)} bad file(s), listed above, such as {problems[0]}; repair or remove them, "
            "or pass --skip-bad to go on without them"
        )
    if not usable:
        raise ValueError(f"none of the {len(problems)} pairs can be used; they are listed above")
