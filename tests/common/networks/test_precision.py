"""Device, precision and disk, as far as they can be told apart on a CPU."""

import os
from pathlib import Path

import pytest
import torch

from common.command.cli import VERSION
from common.inference.products import check_disk, provenance
from common.networks.precision import choose_precision, peak_memory_mb


def test_precision_on_the_cpu():
    assert choose_precision("cpu", "off").amp_dtype is None
    bf16 = choose_precision("cpu", "bf16")
    assert (str(bf16), bf16.needs_scaler) == ("cpu, bf16", False)
    with bf16.autocast():
        assert torch.nn.functional.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype == torch.bfloat16
    with choose_precision("cpu", "off").autocast():
        assert torch.nn.functional.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype == torch.float32
    with pytest.raises(ValueError, match="--amp fp16 needs a GPU"):
        choose_precision("cpu", "fp16")


@pytest.mark.parametrize("native", [True, False])
def test_auto_takes_bf16_where_the_cpu_computes_in_it(monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose_precision("cpu", "auto").amp_dtype == (torch.bfloat16 if native else None)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_auto_on_cuda_depends_on_its_generation(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    precision = choose_precision("auto", "auto")
    assert (precision.device.type, precision.amp_dtype) == ("cuda", dtype)
    assert precision.needs_scaler == (dtype == torch.float16)


def test_a_missing_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_precision("auto", "off").device.type == "cpu"
    for name in ("cuda", "mps"):
        with pytest.raises(ValueError, match=f"--device {name} is not available here"):
            choose_precision(name, "off")


def test_peak_memory_is_in_mib():
    assert 20 < peak_memory_mb(torch.device("cpu")) < 1 << 20


def test_provenance(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    tags = provenance([tmp_path / "a", tmp_path / "b"], 0.45)
    assert tags["threshold"] == "0.45" and tags["version"] == VERSION and len(tags["checkpoint_sha256"].split(",")) == 2
    assert "threshold" not in provenance([], None)


def test_too_little_disk_is_refused_before_the_start(tmp_path):
    check_disk(tmp_path / "not" / "yet" / "there", 1000)
    check_disk(Path(os.path.relpath(tmp_path)) / "x", 1000)
    with pytest.raises(ValueError, match=r"--output-dir .*x: about 1e\+06 GB needed, .* GB free"):
        check_disk(tmp_path / "x", 10**15)


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_precision("cuda", "off").device == torch.device("cuda") and not chosen
    for name, value in {"LOCAL_RANK": "1", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert choose_precision("auto", "off").device == torch.device("cuda", 1) == chosen[0]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"this machine has 2 GPU\(s\): start with --nproc-per-node=2"):
        choose_precision("cuda", "off")
    assert choose_precision("cpu", "off").device == torch.device("cpu")
