"""What is said of files."""

from common.data.pairs import say_notes


def test_notes_of_one_kind_are_one_line_with_a_count(capsys):
    many = [f"mask_{i}.tif: no orthophoto shows its ground, left out" for i in range(40)]
    say_notes([*many, "a.tif: no label, left out", "b.tif: no label, left out", "nothing else"])
    assert capsys.readouterr().err.splitlines() == [
        "note: 40 files: no orthophoto shows its ground, left out; such as mask_0.tif, mask_1.tif, mask_2.tif",
        "note: a.tif: no label, left out",
        "note: b.tif: no label, left out",
        "note: nothing else",
    ]
