"""Images of more than 8 bits: a training in their range is the training on 8 bits, and other ranges are spoken of."""

import json
import shutil

import numpy as np
import rasterio

from common.images.gdal import quiet
from common.networks.checkpoint import load_checkpoint

SHORT = ("--epochs", "1", "--samples-per-epoch", "8", "--device", "cpu", "--amp", "off")


def as_type(source, target, images, kind):
    """Copy a data folder; its images become TIFFs with the same numbers in another type."""
    shutil.copytree(source, target)
    for path in [path for path in target.glob(images) if path.is_file()]:
        with quiet(), rasterio.open(path) as file:
            data, place = file.read(), {"crs": file.crs, "transform": file.transform} if file.crs else {}
        path.unlink()
        profile = {"driver": "GTiff", "count": len(data), "height": data.shape[1], "width": data.shape[2]}
        with quiet(), rasterio.open(path.with_suffix(".tif"), "w", dtype=kind, **profile, **place) as file:
            file.write(data.astype(kind))
    return target


def range_test(data, images):
    """The test of a task: ``data`` is a fixture's name, ``images`` a pattern in that folder."""

    def test_values_have_the_range_that_is_given_and_stored(request, call, small, tmp_path, monkeypatch):
        def stop(*args, **options):
            raise KeyboardInterrupt

        bytes_ = request.getfixturevalue(data)
        deep = as_type(bytes_, tmp_path / "deep", images, "float32")
        with monkeypatch.context() as patch:
            patch.setattr("common.training.command.fit", stop)
            result = call("train", *small, *SHORT, "--data-root", deep, "--output-dir", tmp_path / "blank")
        (warning,) = [line for line in result.err.splitlines() if line.startswith("warning:")]
        assert "are read with the range 0 to 1" in warning and "--input-range" in warning

        place = ("--data-root", deep, "--output-dir", tmp_path / "run", "--input-range", "0", "255")
        result = call("train", *small, *SHORT, *place)
        assert result.code == 0 and "warning:" not in result.err, result.err
        assert "read with the range 0 to 255" in result.err
        card = load_checkpoint(tmp_path / "run" / "last.pt")[0]
        assert card.normalization["range"] == [0.0, 255.0] and card.normalization["range_types"] == ["float32"]

        score = ("evaluate", "--checkpoint", tmp_path / "run" / "last.pt", "--split", "all", "--device", "cpu")
        results = [call(*score, "--data-root", root) for root in (bytes_, deep)]
        assert [result.code for result in results] == [0, 0], results[1].err
        one, other = (np.array(json.loads(result.out.splitlines()[-1])["confusion_matrix"]) for result in results)
        assert np.abs(one - other).sum() <= one.sum() / 1000
        wrong = call(*score, "--data-root", deep, "--input-range", "0", "1000000")
        assert wrong.code == 0 and "warning:" in wrong.err and "read with the range 0 to 1e+06" in wrong.err
        call(*score, "--data-root", deep, "--input-range", "5", "5").mistake("--input-range")

    return test_values_have_the_range_that_is_given_and_stored
