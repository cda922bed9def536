import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from common.command import seg
from common.command.cli import VERSION, exit_code

ROOT = Path(__file__).resolve().parents[3]
TASKS = ["footprints", "hela_nuclei", "permeability", "potsdam_points", "rooftops"]


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["seg", *words])
        code = exit_code(seg.dispatch)
        return code, *capsys.readouterr()

    return run


def test_every_task_has_its_three_commands(call):
    found = seg.commands()
    assert list(found) == TASKS
    assert all({"train", "evaluate", "infer"} <= set(names) for names in found.values())
    assert "make_video" in found["hela_nuclei"] and "model" not in found["hela_nuclei"]
    code, out, _ = call()
    assert code == 0 and all(task in out for task in TASKS)
    assert "make_video" in call("hela-nuclei")[1]


def test_the_words_that_follow_are_the_commands_own(call, monkeypatch):
    seen = []
    monkeypatch.setattr(runpy, "run_module", lambda name, **options: seen.append((name, list(sys.argv), options)))
    assert call("hela-nuclei", "make-video", "--fps", "3")[0] == 0
    name, argv, options = seen[0]
    assert (name, argv[1:], options["run_name"]) == ("hela_nuclei.make_video", ["--fps", "3"], "__main__")


@pytest.mark.parametrize(("words", "text"), [(["rooftop", "train"], "'rooftops'"), (["rooftops", "trian"], "'train'")])
def test_a_misspelt_name_is_exit_2_and_names_the_nearest(call, words, text):
    code, _, err = call(*words)
    assert code == 2 and text in err and len(err.splitlines()) == 1


def test_the_wheel_brings_the_command_and_all_that_it_reads(tmp_path):
    tree, wheels = tmp_path / "tree", tmp_path / "wheels"
    for name in ("common", "weights", *TASKS):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, tree)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(wheels)], cwd=tree, capture_output=True, check=True)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        found = set(wheel.namelist())
        points = next(name for name in found if name.endswith("entry_points.txt"))
        assert "seg = common.command.seg:main" in wheel.read(points).decode()
    assert f"plain_segmentation-{VERSION}.dist-info/METADATA" in found
    read = {".py", ".yaml", ".j2", ".html", ".js", ".css", ".pt"}
    needed = {
        path.relative_to(tree).as_posix()
        for path in tree.rglob("*")
        if path.suffix in read and "build" not in path.parts
    }
    assert needed <= found, needed - found
    assert {"weights/aerial.pt", "weights/nuclei.pt", "potsdam_points/labeling/page/index.html"} <= needed


def test_version(call):
    assert call("--version") == (0, f"plain-segmentation {VERSION}\n", "")


def test_a_command_reads_its_own_flags_under_this_name(tmp_path):
    line = "import sys; sys.path.insert(0, sys.argv.pop(1)); from common.command.seg import main; main()"
    words = [sys.executable, "-c", line, str(ROOT), "rooftops", "export", "--checkpoint", "no.pt", "--out", "a.png"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: --out a.png must end in .onnx\n")
