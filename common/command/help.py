"""``--help``: the flags of a command in groups, with the defaults that one gets, and examples.

The page is made from the source of the command's ``class Config`` and its bases, without importing them: networks and
rasters take seconds. A comment line of its own among the fields, such as ``# Data``, begins a group; what follows
``Examples:`` in the class's docstring comes last.
"""

from __future__ import annotations

import ast
import gc
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from common.command.cli import run_command

ROOT = Path(__file__).resolve().parents[2]
WORDS = {"int": "INT", "float": "FLOAT", "str": "TEXT", "Path": "PATH", "bool": ""}
HELP = frozenset({"-h", "--help"})
INDENT, WIDEST = 28, 110
Layers = Sequence[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Flag:
    """A field of a configuration, as it is shown."""

    name: str
    value: str
    """What it takes, such as INT or {a,b}; empty = a switch."""
    text: str
    default: object
    """``...`` = it must be given."""
    positional: bool


@dataclass
class Page:
    """What a command says of itself."""

    text: str
    groups: dict[str, list[Flag]] = field(default_factory=dict)

    def put(self, group: str, flag: Flag) -> None:
        """Add a flag to a group; one of a base class is replaced where it stands."""
        for flags in self.groups.values():
            for index, one in enumerate(flags):
                if one.name == flag.name:
                    flags[index] = flag
                    return
        self.groups.setdefault(group, []).append(flag)


class Source:
    """A Python file that is read, not run."""

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        self.lines, self.tree = text.splitlines(), ast.parse(text)
        self.imported = {
            name.asname or name.name: (node.module, name.name)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for name in node.names
        }
        self.assigned = {
            target.id: node.value
            for node in self.tree.body
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }

    def find_class(self, name: str) -> tuple[Source, ast.ClassDef] | None:
        """A class of this file, or of one of ours that it is imported from."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef) and node.name == name:
                return self, node
        found = self._origin(name)
        return found[0].find_class(found[1]) if found else None

    def _origin(self, name: str) -> tuple[Source, str] | None:
        module, original = self.imported.get(name, ("", name))
        path = ROOT / f"{module.replace('.', '/')}.py"
        return (read(path), original) if module and path.is_file() else None

    def value(self, node: ast.expr) -> Any:  # noqa: ANN401 - whatever it says
        """What an expression of constants, tuples, paths (their last part) and names of such is.

        Raises:
            ValueError: it is something else.
        """
        match node:
            case ast.Name(id=name) if name in self.assigned:
                return self.value(self.assigned[name])
            case ast.Name(id=name) if found := self._origin(name):
                return found[0].value(ast.Name(found[1]))
            case ast.Call(func=ast.Name(id="tuple" | "Path"), args=[inner]):
                return self.value(inner)
            case ast.Call(func=ast.Attribute(attr="with_name"), args=[inner]):
                return self.value(inner)
            case ast.Subscript(value=inner, slice=ast.Constant(value=key)):
                return self.value(inner)[key]
            case _:
                return ast.literal_eval(node)

    def takes(self, node: ast.expr) -> str:
        """What a flag of this annotation takes."""
        match node:
            case ast.Name(id=name):
                if name in WORDS:
                    return WORDS[name]
                if name in self.assigned:
                    return self.takes(self.assigned[name])
                found = self._origin(name)
                return found[0].takes(ast.Name(found[1])) if found else name.upper()
            case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
                parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
                names = [str(p.value) if isinstance(p, ast.Constant) else self.takes(p).strip("{}") for p in parts]
                return "{" + ",".join(names) + "}"
            case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[first, ast.Constant()])):
                return f"{self.takes(first)} ..."
            case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=parts)):
                return " ".join(map(self.takes, parts))
            case ast.Subscript(value=ast.Attribute(attr="UseAppendAction" | "Positional"), slice=inner):
                return self.takes(inner).removesuffix(" ...")
            case ast.BinOp(left=inner):  # ... | None
                return self.takes(inner)
            case _:
                return ast.unparse(node)

    def page(self, node: ast.ClassDef) -> Page:
        """The flags of a class and its bases."""
        page = Page("")
        for base in node.bases:
            if isinstance(base, ast.Name) and (found := self.find_class(base.id)):
                page = found[0].page(found[1])
        page.text = ast.get_docstring(node) or page.text
        group, line = "Flags", node.lineno
        for statement, follower in zip(node.body, [*node.body[1:], None], strict=True):
            comments = [text.strip() for text in self.lines[line : statement.lineno - 1]]
            group = next((text[2:] for text in reversed(comments) if text.startswith("# ")), group)
            line = statement.end_lineno or line
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                page.put(group, self._flag(statement.target.id, statement, follower))
        return page

    def _flag(self, name: str, statement: ast.AnnAssign, follower: ast.stmt | None) -> Flag:
        text = ""
        if isinstance(follower, ast.Expr) and isinstance(follower.value, ast.Constant):
            text = " ".join(str(follower.value.value).split())
        default = ... if statement.value is None else self.value(statement.value)
        positional = "Positional" in ast.unparse(statement.annotation)
        return Flag(name, self.takes(statement.annotation), text, default, positional)


read = cache(Source)


def help_first(file: str) -> None:
    """Answer ``--help`` of a command, if it is asked for, before anything heavy is imported; the process ends then.

    Otherwise the collector of unused objects rests until `run_command`: looking again and again through all that is
    imported takes a sixth of the time of ``import torch``.

    Args:
        file: the file that holds the command's ``class Config``.
    """
    if HELP & set(sys.argv[1:]) and read(ROOT / file).find_class("Config"):
        run_command(lambda: answer(ROOT / file), several=True)
    if "multiprocessing.spawn" not in sys.modules:  # a data worker imports this file too, and then calls no command
        gc.disable()


def answer(file: Path) -> int:
    """Print the page of a command with the defaults of its recipe."""
    from common.command.recipes import layers_of

    page = page_of(file, "Config")
    trains = any(flag.name == "recipe" for flags in page.groups.values() for flag in flags)
    show(page, layers_of(file.parent, sys.argv[1:]) if trains else [])
    return 0


def answer_from(config_type: type, layers: Layers = ()) -> NoReturn:
    """Print the page of a class of flags whose module is imported, and end.

    Args:
        config_type: the class.
        layers: see `show`.
    """
    show(page_of(Path(str(sys.modules[config_type.__module__].__file__)), config_type.__name__), layers)
    raise SystemExit(0)


def page_of(file: Path, name: str) -> Page:
    """The page of a class of flags.

    Args:
        file: the Python file that has the class, or imports it.
        name: its name.
    """
    found = read(file).find_class(name)
    assert found is not None
    return found[0].page(found[1])


def show(page: Page, layers: Layers) -> None:
    """Print a page.

    Args:
        page: the page.
        layers: files that set defaults, each with its values; later ones rank above earlier ones.
    """
    width = max(60, min(WIDEST, shutil.get_terminal_size().columns))
    text, _, examples = page.text.partition("Examples:")
    own = [flag for flags in page.groups.values() for flag in flags if flag.positional]
    words = [flag.name.upper() if flag.default is ... else f"[{flag.name.upper()} ...]" for flag in own]
    script = Path(sys.argv[0]).absolute()
    name = f"python {script.relative_to(ROOT)}" if script.is_file() and script.is_relative_to(ROOT) else sys.argv[0]
    print(" ".join(["usage:", name, *words, "[flags]"]), end="\n\n")
    print("\n".join(textwrap.wrap(" ".join(text.split()), width)), end="\n\n")
    if sources := [source for source, values in layers if values]:
        print(f"Defaults shown are those of {' and '.join(reversed(sources))}.\n")
    given = {key.replace("-", "_"): value for _, values in layers for key, value in values.items()}
    for group, flags in page.groups.items():
        print(f"{group}:")
        for flag in flags:
            print(entry(replace(flag, default=given.get(flag.name, flag.default)), width))
        print()
    if examples:
        print("Examples:", textwrap.indent(textwrap.dedent(examples.strip("\n")), "  "), sep="\n")


def entry(flag: Flag, width: int) -> str:
    """A flag with what it takes, what it does and its default."""
    name = flag.name.replace("_", "-")
    if flag.positional:
        head = f"  {flag.name.upper()}"
    elif flag.value:
        head = f"  --{name} {flag.value}"
    else:
        head = f"  --{name}, --no-{name}"
    text = flag.text
    if flag.default is ... and not flag.positional:
        text += " (required)"
    elif flag.default not in (None, (), ..., "") and "default" not in text:
        text += f" (default: {plain(flag.default)})"
    lines = textwrap.wrap(text, width - INDENT) or [""]
    first = f"{head:{INDENT}}{lines.pop(0)}" if len(head) < INDENT - 1 else head
    return "\n".join([first, *(" " * INDENT + line for line in lines)])


def plain(value: object) -> str:
    """A default as it is typed."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return {"True": "on", "False": "off", "true": "on", "false": "off"}.get(str(value), str(value))
