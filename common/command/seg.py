"""All commands under one name: ``seg hela_nuclei train --epochs 3`` is ``python hela_nuclei/train.py --epochs 3``.

``seg`` lists the tasks, ``seg <task>`` its commands. Hyphens may stand for underscores.
"""

from __future__ import annotations

import difflib
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from common.command.cli import VERSION, run_command
from common.command.help import help_first

ROOT = Path(__file__).resolve().parents[2]


def commands() -> dict[str, list[str]]:
    """The commands of each task, from its folder's files: those that end in ``run_command(main...``."""
    found = {}
    for folder in sorted(path.parent for path in ROOT.glob("*/train.py")):
        files = sorted(folder.glob("*.py"))
        found[folder.name] = [file.stem for file in files if "run_command(main" in file.read_text("utf-8")]
    return found


def choose(kind: str, word: str, known: Mapping[str, object]) -> str:
    """A name that the user typed.

    Raises:
        ValueError: there is none of that name; names the nearest.
    """
    name = word.replace("-", "_")
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown {kind} '{word}'; the nearest is '{nearest}' of {', '.join(known)}")
    return name


def dispatch() -> int:
    """Run the command that the first two words name, with the words that follow."""
    found, words = commands(), sys.argv[1:]
    if words[:1] == ["--version"]:
        print(f"plain-segmentation {VERSION}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        print("seg TASK COMMAND [flags]; seg TASK COMMAND --help explains the flags\n")
        print("\n".join(f"  {task:16}{', '.join(names)}" for task, names in found.items()))
        return 0
    task = choose("task", words[0], found)
    if len(words) == 1 or words[1] in ("-h", "--help"):
        print(f"seg {task} " + "\n    ".join(["COMMAND [flags]", *found[task]]))
        return 0
    command = choose("command", words[1], dict.fromkeys(found[task]))
    sys.argv = [f"seg {task} {command}", *words[2:]]
    help_first(str(ROOT / task / f"{command}.py"))
    runpy.run_module(f"{task}.{command}", run_name="__main__", alter_sys=True)  # ends the process
    return 0


def main() -> NoReturn:
    """The entry point ``seg``."""
    run_command(dispatch, several=True)


if __name__ == "__main__":
    main()
