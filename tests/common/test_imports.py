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
FILES = sorted(path for package in ("common", *TASKS) for path in (ROOT / package).rglob("*.py"))


def imported(source, package=()):
    """The modules that a file imports, wherever in it, as (line, dotted name)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            yield node.lineno, ".".join(part for part in (base, node.module) if part)
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
