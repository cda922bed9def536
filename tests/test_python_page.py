"""The examples of the Python page run as they stand, one after another."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), flags=re.S | re.M)
    assert len(blocks) >= 6
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number + 1}", "exec"), names)
    said = capsys.readouterr().out
    for line in (
        r"scene_000\.tif \(128, 128\) \d+\.\d% roof",
        r"[1-9]\d* nuclei; SEG 0\.[5-9]\d+ DET 0\.[5-9]",
        r"\d+ areas, \d+ written",
        r"200 points, loss \d",
        r"mIoU 0\.\d+, threshold",
    ):
        assert re.search(line, said), (line, said)
    assert Path("roofs.gpkg").is_file() and Path("runs/squares/best_iou.pt").is_file()
