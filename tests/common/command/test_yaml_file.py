"""YAML files are bounded: no explosion, no recursion, no tags, one line of complaint."""

import pytest
import yaml

from common.command.yaml_file import load_yaml

EXPLOSION = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (EXPLOSION, ["line 1", "aliases"]),
        ("a: *nowhere", ["line 1", "aliases"]),
        ("[" * 1000, ["levels"]),
        ("".join(" " * i + "b:\n" for i in range(300)), ["levels"]),
        ("x: 1\na: !!python/object/apply:os.system [ls]", ["line 2", "tags"]),
        ("a: !!binary aGVsbG8=", ["tags"]),
        ("a: !own 3", ["tags", "!own"]),
        ("lr: 1\nlr: 2", ["line 2", "'lr' is given twice"]),
        ("? [a]\n: 3", ["no key"]),
        ("a: 1\n---\nb: 2", ["not valid YAML"]),
        ("a: \x00", ["not valid YAML"]),
        ("# " + "x" * 200_000, ["larger than 200 kB"]),
    ],
)
@pytest.mark.parametrize("loader", ["CBaseLoader", "BaseLoader"])
def test_what_is_no_file_of_settings_is_refused_in_a_line(tmp_path, monkeypatch, text, words, loader):
    monkeypatch.setattr("common.command.yaml_file.LOADER", getattr(yaml, loader))
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"^--config .*odd\.yaml") as info:
        load_yaml("--config", path)
    assert "\n" not in str(info.value) and all(word in str(info.value) for word in words)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_yaml("--map", tmp_path / "a.yaml")


def test_everything_is_read_as_text(tmp_path):
    (tmp_path / "a.yaml").write_text("\ufeffa: 1e-4\nb: off\nc:\nd: [1, [x]]\ne: {low: 0x10}\n", encoding="utf-8")
    expected = {"a": "1e-4", "b": "off", "c": "", "d": ["1", ["x"]], "e": {"low": "0x10"}}
    assert load_yaml("--config", tmp_path / "a.yaml") == expected
    (tmp_path / "a.yaml").write_text("")
    assert load_yaml("--config", tmp_path / "a.yaml") is None
