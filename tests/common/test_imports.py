"""Tasks import common, never each other; common imports no task; nothing shipped imports the peers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.peers import Peer

ROOT = Path(__file__).parents[2]
TASKS = ("permeability", "rooftops", "footprints", "potsdam_points", "hela_nuclei")
PEERS = {
    "segmentation_models_pytorch",
    "timm",
    "torchgeo",
    "monai",
    "albumentations",
    "transformers",
    "building_footprint_segmentation",
}
GROUND = {"labels", "files", "outputs", "processes", "samples"}
FIRST = GROUND | {"losses", "images", "metrics", "command", "scenes"}
SECOND = FIRST | {"vectors", "report", "networks", "data"}
ARROWS = {
    "labels": set(),
    "files": set(),
    "outputs": {"files"},
    "processes": set(),
    "samples": set(),
    "losses": GROUND,
    "images": GROUND,
    "metrics": GROUND,
    "command": GROUND,
    "scenes": GROUND,
    "vectors": FIRST,
    "report": FIRST,
    "networks": FIRST,
    "data": FIRST,
    "inference": SECOND,
    "training": SECOND,
    "checkpoint": {"command", "networks"},
}
"""Which rooms of common/ a room may import: those on the floors below it."""
POSIX = {"resource", "fcntl", "pwd", "grp", "termios", "pty"}
"""Modules that Windows lacks: imported where they are used, with an answer to their absence, or not at all."""
POSIX_NAMES = {
    "os": ("fork", "getuid", "geteuid", "uname", "getloadavg", "killpg", "setsid", "sched_getaffinity", "statvfs",
           "mkfifo", "posix_fadvise", "pread", "pwrite", "sendfile", "O_NOFOLLOW", "O_DIRECTORY", "O_CLOEXEC",
           "O_NONBLOCK", "O_SYNC", "O_TMPFILE"),
    "signal": ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPIPE", "SIGCHLD", "alarm", "setitimer"),
}  # fmt: skip
FILES = sorted(path for package in ("common", *TASKS) for path in (ROOT / package).rglob("*.py"))


def imported(source, package=()):
    """The modules that a file imports, wherever in it, as (line, dotted name)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "common" else [module]
            yield from ((node.lineno, name) for name in names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def offences(source, package):
    """Imports that the package of a file may not make."""
    own = package[0]
    forbidden = PEERS | (set(TASKS) - {own})
    return [(line, name) for line, name in imported(source, package) if name.split(".")[0] in forbidden]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_it_may(path):
    package = path.relative_to(ROOT).parts[:-1]
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}" for line, name in offences(path.read_text("utf-8"), package)
    ]
    assert not found


def posix_only(source):
    """Uses of what Windows lacks: modules imported outside a ``try``, and names of os and signal."""
    tree = ast.parse(source)
    tried = {id(child) for node in ast.walk(tree) if isinstance(node, ast.Try) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in tried:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (name for name in names if name in POSIX)
        elif isinstance(node, ast.Attribute) and node.attr in POSIX_NAMES.get(ast.unparse(node.value), ()):
            yield ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_shipped_needs_what_windows_lacks(path):
    assert not list(posix_only(path.read_text("utf-8")))


@pytest.mark.parametrize(
    "source", ["import resource", "def f():\n    from fcntl import flock", "signal.SIGHUP", "os.open(p, os.O_NOFOLLOW)"]
)
def test_what_windows_lacks_is_found(source):
    assert list(posix_only(source))


def test_every_module_loads_without_the_modules_that_windows_lacks():
    files = [path for path in FILES if path.stem != "__init__" and "cluster" not in path.parts]  # those need Dask
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    lines = [
        "import sys",
        *(f"sys.modules[{name!r}] = None" for name in ("resource", "fcntl")),
        *(f"import {name}" for name in modules),
        "from common.networks.precision import choose_precision, peak_memory_mb",
        "assert peak_memory_mb(choose_precision('cpu').device) is None",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_inference_starts_without_what_only_some_inputs_need():
    tasks = ", ".join(f"{task}.infer" for task in TASKS)
    heavy = (
        "torchvision",
        "pyogrio",
        "pandas",
        "matplotlib",
        "tensorboard",
        "jinja2",
        "hyperopt",
        "optuna",
        "distributed",
    )
    line = f"import sys, {tasks}; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == [], done.stderr


def test_a_picture_is_segmented_without_what_only_rasters_and_polygons_need(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "chip.png")
    heavy = ("torchvision", "scipy", "shapely", "pyproj", "pyogrio", "pandas", "matplotlib", "tensorboard", "skimage")
    lines = (
        "import sys, footprints.infer",
        f"sys.argv = ['infer.py', {str(tmp_path / 'chip.png')!r}, '--output-dir', {str(tmp_path / 'out')!r}]",
        "assert footprints.infer.main() == 0",
        f"print(*(name for name in {heavy} if name in sys.modules))",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == [], done.stderr + done.stdout
    assert (tmp_path / "out" / "chip_mask.png").is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_load_without_the_peers(path):
    """They reach them through tests/peers.py, which skips what needs a missing one."""
    peers = PEERS | {"sklearn", "torchmetrics", "ctc_metrics", "safetensors"}
    assert not [name for _, name in imported(path.read_text("utf-8")) if name.split(".")[0] in peers]


def used_at_collection(source):
    """Uses of a peer outside functions: they would skip the whole file where it is missing."""
    tree = ast.parse(source)
    made = (node for node in tree.body if isinstance(node, ast.Assign) and "Peer(" in ast.unparse(node.value))
    names = {target.id for node in made for target in node.targets if isinstance(target, ast.Name)}
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            todo += getattr(node, "decorator_list", [])
            continue
        used = node.value if isinstance(node, ast.Attribute) else node.func if isinstance(node, ast.Call) else None
        if isinstance(used, ast.Name) and used.id in names:
            yield used.id
        todo += ast.iter_child_nodes(node)


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_peer_is_used_while_tests_are_collected(path):
    assert not list(used_at_collection(path.read_text("utf-8")))


@pytest.mark.parametrize(
    ("source", "found"),
    [("class A:\n    x = smp.losses", 1), ("@mark(smp.Unet)\ndef f():\n    pass", 1), ("def f():\n    smp.Unet()", 0)],
)
def test_a_peer_used_while_collecting_is_found(source, found):
    assert len(list(used_at_collection(f"smp = Peer('m')\n{source}"))) == found


def test_a_missing_peer_skips_by_name_and_fails_in_the_ci(monkeypatch):
    missing = Peer("no_such_peer.inner:thing")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no_such_peer"):
        missing(1)
    assert not hasattr(missing, "__wrapped__"), "collecting a test file must not skip all of it"
    monkeypatch.setenv("CI", "true")
    with pytest.raises(ImportError, match="no_such_peer"):
        missing.attribute  # noqa: B018
    assert Peer("math:sqrt")(9) == 3 and Peer("math").pi > 3


def arrows(source, package):
    """Rooms of common/ that a file of it imports, besides its own."""
    names = [name.split(".") for _, name in imported(source, package)]
    return {name[1] for name in names if name[0] == "common" and len(name) > 1} - {package[1].removesuffix(".py")}


@pytest.mark.parametrize("path", [path for path in FILES if "common" in path.parts], ids=lambda path: str(path.name))
def test_imports_between_rooms_run_one_way(path):
    parts = path.relative_to(ROOT).parts
    room = parts[1].removesuffix(".py")
    if room != "__init__":
        wrong = arrows(path.read_text("utf-8"), parts) - ARROWS[room]
        assert not wrong, f"{'/'.join(parts)} may not import common/{', common/'.join(sorted(wrong))}"


def test_no_arrow_between_rooms_leads_back():
    for room, below in ARROWS.items():
        assert all(room not in ARROWS[other] for other in below)
    assert "training" not in ARROWS["inference"] and "inference" not in ARROWS["training"]


def test_an_added_arrow_is_found():
    assert arrows("from common.inference.tiling import Tta", ("common", "training", "loop.py")) == {"inference"}
    assert arrows("from common import losses", ("common", "images", "write.py")) == {"losses"}
    assert not arrows("import common.images.gdal\nfrom common.images import write", ("common", "images", "gdal.py"))


@pytest.mark.parametrize(
    ("package", "source", "found"),
    [
        (("common",), "import hela_nuclei.model", True),
        (("common", "scenes"), "def f():\n    from rooftops import data", True),
        (("rooftops",), "from footprints.model import RefineNet", True),
        (("rooftops",), "from ..footprints import model", True),
        (("rooftops",), "from rooftops.model import DeepLab\nfrom common import losses\nfrom . import data", False),
        (("rooftops",), "import importlib\nimportlib.import_module('timm.models')", True),
        (("common",), "import torch, timm", True),
        (("common",), "try:\n    import segmentation_models_pytorch as smp\nexcept ImportError:\n    pass", True),
        (("common",), "import timmy, torchgeography", False),
    ],
)
def test_the_check_itself(package, source, found):
    assert bool(offences(source, package)) == found


def test_there_is_something_to_check():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} >= {"common", "hela_nuclei"} and len(FILES) > 20
