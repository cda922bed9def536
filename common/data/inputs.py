"""From what the command line names to image files, and from those to names of outputs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common.command.cli import say

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".jp2")
NAMED = 5
"""Files that a note lists."""
MASK_ENDING = "_mask"
OUTPUT_ENDINGS = (MASK_ENDING, "_prob", "_overlay", "_figure")


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorting key under which ``t2`` comes before ``t10``."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(int(part), "") if index % 2 else (0, part) for index, part in enumerate(parts)], name


def images_in(folder: Path, without: tuple[str, ...] = ()) -> list[Path]:
    """Image files directly in a folder, in natural order; hidden ones are passed over.

    What is left out besides is said in a line: files whose stems end in one of ``without``, pipes and devices.
    """
    found = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_EXTENSIONS and not p.name.startswith(".")]
    found = sorted((p for p in found if not p.is_dir()), key=lambda path: natural_key(path.name))
    results = [path for path in found if without and path.stem.endswith(without)]
    strange = [path for path in found if path not in results and not path.is_file()]
    for paths, what in ((results, f"by their names results ({', '.join(without)})"), (strange, "no regular files")):
        if paths:
            say(
                f"note: {len(paths)} left out of {folder}, {what}: {', '.join(p.name for p in paths[:NAMED])}"
                + (" ..." if len(paths) > NAMED else "")
            )
    return [path for path in found if path not in results and path not in strange]


def find_images(inputs: Sequence[Path]) -> list[Path]:
    """Image files named directly or lying in the folders named, each once.

    Folders are not searched recursively and are sorted naturally (``t2`` before ``t10``); hidden files and our own
    outputs (``*_mask``, ``*_prob``, ``*_overlay``, ``*_figure``) in them are left out. A file named directly is taken.

    Raises:
        FileNotFoundError: An input does not exist.
        ValueError: Nothing is named, or there is no image at all.
    """
    if not inputs:
        raise ValueError("no INPUT given; pass images or folders of images")
    found: dict[Path, Path] = {}
    for path in inputs:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder; check the path")
        for image in images_in(path, OUTPUT_ENDINGS) if path.is_dir() else [path]:
            found.setdefault(image.resolve(), image)
    if not found:
        places = ", ".join(str(path) for path in inputs)
        known = " ".join(extension.lstrip(".") for extension in IMAGE_EXTENSIONS)
        raise ValueError(f"{places}: no images found; name files, or folders that directly hold images ({known})")
    return list(found.values())


def output_stems(paths: Sequence[Path]) -> dict[Path, str]:
    """Name stem of the outputs of each input, unique among them.

    It is the input's stem; where inputs share it, with extension (``a.png`` and ``a.tif``); where they share that too,
    with the folder's name before it (``01_t000`` and ``02_t000``), and so on upwards.
    """
    candidates: dict[Path, list[str]] = {}
    for path in paths:
        folders = path.absolute().parts[1:-1]
        heads = ["_".join((*folders[len(folders) - depth :], "")) for depth in range(len(folders) + 1)]
        candidates[path] = [head + tail for head in heads for tail in (path.stem, path.name)]
    level = dict.fromkeys(paths, 0)
    while True:
        stems = {path: names[min(level[path], len(names) - 1)] for path, names in candidates.items()}
        counts = Counter(stem.casefold() for stem in stems.values())  # some file systems ignore case
        shared = [path for path, stem in stems.items() if counts[stem.casefold()] > 1]
        if not shared:
            return stems
        if all(level[path] >= len(candidates[path]) for path in shared):
            return stems | {path: f"{index}_{stems[path]}" for index, path in enumerate(shared, start=1)}
        for path in shared:
            level[path] += 1
