"""Result tables of benchmarks: CSV and Markdown beside the script."""

from __future__ import annotations

import csv
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch


def processor() -> str:
    """The CPU's name and how many threads torch uses."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def write_table(script: Path, rows: Sequence[Mapping[str, object]], note: str) -> None:
    """Write ``<script>.csv`` and ``.md`` and print the latter."""
    with script.with_suffix(".csv").open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    lines: list[list[object]] = [list(rows[0]), ["---"] * len(rows[0]), *[list(row.values()) for row in rows]]
    text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + f"\n\n{note}\n"
    script.with_suffix(".md").write_text(text)
    print(text)
