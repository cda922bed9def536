"""Recipes: the YAML files of a task that set its defaults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.command.config import NOTHING, Values, flag_value, read_yaml


def layers_of(folder: Path, argv: Sequence[str]) -> list[tuple[str, Values]]:
    """What sets a training's defaults where data are named: the recipe, and above it the file of ``--config``.

    Args:
        folder: the task's.
        argv: the flags.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or is no recipe.
    """
    path = flag_value(argv, "config")
    own = read_yaml(Path(path)) if path else {}
    named = flag_value(argv, "recipe") or own.get("recipe")
    base, name = read_recipe(folder, None if named in NOTHING else str(named), demo=False)
    return [(name, base), (str(path), own)]


def read_recipe(folder: Path, name: str | None, *, demo: bool) -> tuple[dict[str, str | list[str]], str]:
    """The values of one of a task's recipes, and the file's name.

    Args:
        folder: the task's.
        name: ``best``, ``source``...; ``none`` = no recipe; None = what there is without a name.
        demo: whether that is ``demo.yaml`` instead of ``source.yaml``.

    Raises:
        ValueError: there is no such recipe.
    """
    if name == "none":
        return {}, "defaults"
    path = folder / f"{name or ('demo' if demo else 'source')}.yaml"
    known = sorted(found.stem for found in folder.glob("*.yaml"))
    if path.stem not in known:
        raise ValueError(f"recipe {name}: {folder.name} has no such recipe, but {', '.join(known)}, and none")
    values = read_yaml(path)
    return {key: value for key, value in values.items() if key != "recipe"}, f"{folder.name}/{path.name}"
