"""Tasks import common, never each other; common imports no task; nothing shipped imports the peers."""

import ast
from pathlib import Path

import pytest

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
GROUND = {"labels", "files"}
FIRST = GROUND | {"losses", "images", "metrics", "command", "scenes"}
SECOND = FIRST | {"vectors", "report", "networks", "data"}
ARROWS = {
    "labels": set(),
    "files": set(),
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
