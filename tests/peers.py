"""Other libraries that results are compared with (requirements-dev.txt), imported by the test that needs one.

Without it that test is skipped, by the library's name; with the environment variable CI set it fails.
"""

import os
import warnings
from importlib import import_module

import pytest


class Peer:
    """A module, or with ``module:name`` something in it, that is imported at the first use."""

    def __init__(self, path):
        self._module, _, self._name = path.partition(":")

    def _load(self):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a peer thinks of its own dependencies fails no test
                module = import_module(self._module)
        except ImportError:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"needs {self._module.partition('.')[0]} of requirements-dev.txt", allow_module_level=True)
        return getattr(module, self._name) if self._name else module

    def __getattr__(self, name):
        if name.startswith("_"):  # pytest asks every object of a test file whether it is a fixture
            raise AttributeError(name)
        return getattr(self._load(), name)

    def __call__(self, *args, **options):
        return self._load()(*args, **options)
