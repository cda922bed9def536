from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.inputs import find_images, images_in, output_stems


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_a_folder_is_listed_naturally_without_hidden_files_outputs_and_subfolders(tmp_path):
    folder = touch(tmp_path / "in", "t10.png", "t2.PNG", "t1.tif", "notes.txt", ".t0.png", "t1_mask.png", "t1_prob.tif")
    touch(folder, "t1_overlay.png", "masked.jpg")
    touch(folder / "deeper.tif", "x.png")
    assert [path.name for path in find_images([folder])] == ["masked.jpg", "t1.tif", "t2.PNG", "t10.png"]


def test_files_are_taken_as_named_and_each_once(tmp_path):
    folder = touch(tmp_path / "in", "b.png", "a.png", "b_mask.png")
    found = find_images([folder / "b.png", folder, folder / "b_mask.png", folder / ".." / "in" / "a.png"])
    assert [path.name for path in found] == ["b.png", "a.png", "b_mask.png"]


def test_missing_and_empty_inputs_name_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        find_images([tmp_path / "nowhere"])
    empty = touch(tmp_path / "empty", "notes.txt")
    with pytest.raises(ValueError, match=r"empty: no images found; name files.*png") as caught:
        find_images([empty])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no INPUT given"):
        find_images([])


def test_stems_keep_the_extension_only_where_inputs_share_a_stem(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "a.tif", "b.png", "B.jpg", "c.tif")]
    assert list(output_stems(paths).values()) == ["a.png", "a.tif", "b.png", "B.jpg", "c"]


def test_stems_of_files_in_several_folders_name_the_folder(tmp_path):
    paths = [tmp_path / "01" / "t000.tif", tmp_path / "02" / "t000.tif", tmp_path / "02" / "t001.tif"]
    assert list(output_stems(paths).values()) == ["01_t000", "02_t000", "t001"]


names = st.sampled_from(["a", "b", "a.png", "x_a", "01", "A"])


@settings(deadline=None, max_examples=100)
@given(st.sets(st.tuples(names, names, st.sampled_from([".png", ".tif"])), max_size=8))
def test_stems_never_collide(tmp_path_factory, parts):
    root = tmp_path_factory.getbasetemp()
    paths = [root / folder / (stem + extension) for folder, stem, extension in parts]
    stems = output_stems(paths)
    assert set(stems) == set(paths)
    assert len({stem.casefold() for stem in stems.values()}) == len(paths)
    assert not any("/" in stem for stem in stems.values())


def test_what_is_left_out_of_a_folder_is_said(tmp_path, capsys):
    for name in ("a.tif", "a_figure.png", "a_mask.tif", "b_prob.tif", "c_overlay.png", ".d.tif", "e.txt"):
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.tif")
    assert [path.name for path in find_images([tmp_path])] == ["a.tif"]
    results, strange = capsys.readouterr().err.splitlines()
    assert "4 left out of" in results and results.endswith("a_figure.png, a_mask.tif, b_prob.tif, c_overlay.png")
    assert "1 left out of" in strange and strange.endswith("no regular files: pipe.tif")
    assert len(images_in(tmp_path)) == 5 and len(images_in(tmp_path, ("_prob",))) == 4
    assert find_images([tmp_path / "a_mask.tif"]) == [tmp_path / "a_mask.tif"]


def test_no_more_than_some_names_are_said(tmp_path, capsys):
    for number in range(12):
        (tmp_path / f"{number}_mask.png").write_bytes(b"")
    (tmp_path / "a.png").write_bytes(b"")
    find_images([tmp_path])
    (line,) = capsys.readouterr().err.splitlines()
    assert "12 left out" in line and line.endswith("0_mask.png, 1_mask.png, 2_mask.png, 3_mask.png, 4_mask.png ...")
