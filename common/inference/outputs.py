"""What every inference does around its results: provenance, and a look at the disk before it starts."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from common.command.cli import VERSION
from common.files import file_hash


def provenance(checkpoints: Sequence[Path], threshold: float | None) -> dict[str, str]:
    """Tags that say how a result came about: checkpoint hashes, threshold, version, date."""
    tags = {
        "checkpoint_sha256": ",".join(file_hash(path) for path in checkpoints),
        "version": VERSION,
        "date": time.strftime("%Y-%m-%d"),
    }
    return tags if threshold is None else {**tags, "threshold": f"{threshold:.6g}"}


def check_disk(folder: Path, needed: int) -> None:
    """Compare ``needed`` bytes with the free space where ``folder`` is (to be), and see that one may write there.

    Raises:
        ValueError: too little is free, naming both figures; or nothing can be written there.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise ValueError(f"--output-dir {folder}: {existing} is a file, not a folder; choose another")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"--output-dir {folder}: {existing} may not be written to; choose another folder")
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ValueError(
            f"--output-dir {folder}: about {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free; "
            "free some space or choose another disk"
        )
