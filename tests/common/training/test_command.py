"""What a training refuses before it begins."""

import pytest

from common.command.config import parse_flags
from common.training.command import check_memory
from footprints.train import Config as Footprints
from rooftops.train import Config as Rooftops


def test_batches_that_no_memory_holds_are_refused_by_their_flags():
    many = parse_flags(Footprints, ["--batch-size", "4000000", "--crop-size", "8192"])
    with pytest.raises(ValueError, match=r"of 1000000 samples of 8192 x 8192 .* lower --batch-size .*--crop-size"):
        check_memory(many, 1_000_000)
    check_memory(many, 1)  # a batch is never larger than the training set
    with pytest.raises(ValueError, match="--crop-size"):
        check_memory(parse_flags(Rooftops, ["--batch-size", "4000000", "--crop-size", "4096"]), 1_000_000)


@pytest.mark.parametrize("words", [["--crop-size", "8193"], ["--widths", "8", "9000"], ["--workers", "2000"]])
def test_sizes_that_only_run_out_of_memory_do_not_parse(words):
    with pytest.raises(ValueError, match=f"{words[0]} {words[-1]} must not be larger than"):
        parse_flags(Footprints, words)
