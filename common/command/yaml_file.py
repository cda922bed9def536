"""YAML files as plain text, lists and mappings: bounded in size and depth, without aliases and tags.

PyYAML alone expands aliases without end (sixteen short lines can mean gigabytes), recurses to any depth and takes tags,
none of which a file of settings needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 200_000
MOST_LEVELS = 8
LOADER: type[Any] = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def load_yaml(flag: str, path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """What a YAML file holds, every scalar as text; None if it is empty.

    Args:
        flag: with which the file was given, for messages.
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, too large or deep, gives a key twice, or uses aliases or tags.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{flag} {path} does not exist")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{flag} {path} is larger than {MOST_BYTES // 1000} kB; that is no file of settings")
    try:
        text = content.decode("utf-8-sig")
        if problem := _problem(text):
            raise ValueError(f"{flag} {path}, {problem}")
        return _plain(yaml.compose(text, LOADER), f"{flag} {path}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{flag} {path} is not valid YAML: {' '.join(str(error).split())}") from error


def _problem(text: str) -> str | None:
    """What YAML allows and a file of settings must not hold, with its line."""
    depth = 0
    for event in yaml.parse(text, LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        line = f"line {event.start_mark.line + 1 if event.start_mark else '?'}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            return f"{line}: anchors and aliases (&, *) are not understood; write the value out, or quote the text"
        if tag := getattr(event, "tag", None):
            return f"{line}: tags such as {tag} are not understood; write plain values"
        if depth > MOST_LEVELS:
            return f"{line}: more than {MOST_LEVELS} levels within each other"
    return None


def _plain(node: yaml.Node | None, source: str) -> Any:  # noqa: ANN401 - whatever the file holds
    """A node as text, list or mapping."""
    match node:
        case yaml.SequenceNode():
            return [_plain(item, source) for item in node.value]
        case yaml.MappingNode():
            found: dict[str, Any] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise ValueError(f"{source}, line {line}: a list or mapping is no key")
                if key.value in found:
                    raise ValueError(f"{source}, line {line}: the key '{key.value}' is given twice")
                found[key.value] = _plain(value, source)
            return found
        case yaml.ScalarNode():
            return node.value
        case _:
            return None
