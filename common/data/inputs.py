"""From what the command line names to image files, and from those to names of outputs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".jp2")
OUTPUT_ENDINGS = ("_mask", "_prob", "_overlay")


def _natural_key(path: Path) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", path.name.casefold())
    return [(int(part), "") if index % 2 else (0, part) for index, part in enumerate(parts)], path.name


def _images_of_folder(folder: Path) -> list[Path]:
    images = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_EXTENSIONS
        and not path.name.startswith(".")
        and not path.stem.endswith(OUTPUT_ENDINGS)
        and path.is_file()
    ]
    return sorted(images, key=_natural_key)


def find_images(inputs: Sequence[Path]) -> list[Path]:
    """Image files named directly or lying in the folders named, each once.

    Folders are not searched recursively and are sorted naturally (``t2`` before ``t10``); hidden files and our own
    outputs (``*_mask``, ``*_prob``, ``*_overlay``) in them are passed over. A file named directly is always taken.

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
        for image in _images_of_folder(path) if path.is_dir() else [path]:
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
