from __future__ import annotations

import os

import pytest

from common.inference.products import check_disk


def test_results_need_a_folder_with_space_that_may_be_written_to(tmp_path, monkeypatch):
    check_disk(tmp_path / "new" / "folder", 10)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"--output-dir .*new: about 1e\+09 GB needed, [\d.e+]+ GB free"):
        check_disk(tmp_path / "new", 10**18)
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="file is a file, not a folder"):
            check_disk(folder, 10)
    monkeypatch.setattr(os, "access", lambda path, mode: mode & os.W_OK == 0)
    with pytest.raises(ValueError, match="may not be written to"):
        check_disk(tmp_path / "new", 10)
