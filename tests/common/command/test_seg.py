import runpy
import subprocess
import sys
import tomllib
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


def test_the_installed_command_is_this_one_and_brings_what_it_reads():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["scripts"]["seg"] == "common.command.seg:main"
    assert project["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "common.command.cli.VERSION"
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.rstrip("*") for name in packages} == {"common", *TASKS}
    assert {"*.yaml", "*.j2"} <= set(project["tool"]["setuptools"]["package-data"]["*"])


def test_version(call):
    assert call("--version") == (0, f"plain-segmentation {VERSION}\n", "")


def test_a_command_reads_its_own_flags_under_this_name(tmp_path):
    line = "import sys; sys.path.insert(0, sys.argv.pop(1)); from common.command.seg import main; main()"
    words = [sys.executable, "-c", line, str(ROOT), "rooftops", "export", "--checkpoint", "no.pt", "--out", "a.png"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: --out a.png must end in .onnx\n")
