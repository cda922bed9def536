"""Which device computes, and in which precision."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass

import torch

from common import processes


@dataclass(frozen=True)
class Precision:
    """Device and mixed-precision type; ``amp_dtype`` None = full fp32."""

    device: torch.device
    amp_dtype: torch.dtype | None

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Context in which the network's forward pass runs."""
        if self.amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.amp_dtype)

    @property
    def needs_scaler(self) -> bool:
        """The narrow exponent of fp16 needs scaled gradients, bf16's does not."""
        return self.amp_dtype == torch.float16

    def __str__(self) -> str:
        """Such as ``cpu, bf16``."""
        names = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        return f"{self.device}, {names[self.amp_dtype]}"


def choose_precision(device: str = "auto", amp: str = "auto") -> Precision:
    """Resolve ``--device`` and ``--amp``.

    ``--amp auto`` takes bf16 where the hardware computes in it, fp16 on older CUDA devices, else fp32.

    Raises:
        ValueError: the device is not there, or cannot compute in the type asked for.
    """
    chosen = _device(device)
    if amp == "auto":
        return Precision(chosen, _fast_type(chosen))
    if amp == "fp16" and chosen.type == "cpu":
        raise ValueError("--amp fp16 needs a GPU; on the CPU use --amp bf16 or off")
    return Precision(chosen, {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp])


def _device(name: str) -> torch.device:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    elif not available[name]:
        raise ValueError(f"--device {name} is not available here; use --device cpu or auto")
    return _own_gpu() if name == "cuda" else torch.device(name)


def _own_gpu() -> torch.device:
    """The GPU of this process, the only one that it uses; a single process uses the current one."""
    if not processes.launched():
        return torch.device("cuda")
    number, gpus = processes.local_rank(), torch.cuda.device_count()
    if number >= gpus:
        raise ValueError(f"this machine has {gpus} GPU(s): start with --nproc-per-node={gpus}, or use --device cpu")
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def _fast_type(device: torch.device) -> torch.dtype | None:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return None


def peak_memory_mb(device: torch.device) -> float | None:
    """Peak memory in MiB: allocated on a CUDA device, else resident in the process; None where nobody counts it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
