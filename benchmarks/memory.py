"""The peak of memory during one call, on a GPU or in the process."""

import ctypes
import platform
from collections.abc import Callable
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


def peak_memory(call: Callable[[], object], device: torch.device) -> float | None:
    """MiB that the call takes at its peak beyond what lies there before it.

    On a GPU what PyTorch allocates, else the resident memory of the process, whose peak only Linux
    lets one start anew: None elsewhere.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if platform.libc_ver()[0] != "glibc":
        return None
    ctypes.CDLL(None).malloc_trim(0)  # gives freed memory back, which would hide what is taken
    try:
        (_PROCESS / "clear_refs").write_text("5")  # VmHWM starts again from VmRSS
    except OSError:
        return None
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 2**10


def _status(name: str) -> int:
    """A size of the process in KiB."""
    lines = (_PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
