"""The device and the precision of a training."""

from __future__ import annotations

import ctypes
import logging
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import psutil
import torch

from ..data_config import AUTO
from ..errors import ConfigError

_log = logging.getLogger(__name__)

# Parameters of glibc's mallopt, and values of M_MMAP_THRESHOLD; older versions accept the second.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLDS = (2**31 - 1, 2**25)
# Freed memory is released after an epoch if the process holds a larger share of all memory.
_RELEASE_ABOVE = 0.4


@dataclass(frozen=True)
class Machine:
    """A device and a precision: fp32, bf16 or fp16."""

    device: torch.device
    precision: str

    def autocast(self) -> AbstractContextManager[object]:
        """Autocast to the precision; does nothing for fp32."""
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        where = f"{self.device} ({name})" if name else str(self.device)
        return f"{where}, {self.precision}"


def choose_machine(device: str = AUTO, precision: str = AUTO, local_rank: int = 0) -> Machine:
    """Choose a device and a precision.

    By default: CUDA, else Apple's MPS, else the CPU; bf16 on GPUs that support it, else fp32.

    :param local_rank: index of the GPU to use if ``device`` names none.
    :raises ConfigError: when the machine does not have the device.
    """
    try:
        chosen = torch.device(_best_device() if device == AUTO else device)
    except RuntimeError:
        raise ConfigError([f"device={device}: must be auto, cpu, cuda, cuda:N or mps"]) from None
    if chosen.type == "cuda" and chosen.index is None and local_rank:
        chosen = torch.device("cuda", local_rank)
    usable = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(_has_mps())}
    if chosen.type not in usable:
        raise ConfigError([f"device={device}: must be auto, cpu, cuda, cuda:N or mps"])
    if chosen.type == "cuda" and local_rank and local_rank >= usable["cuda"]:
        raise ConfigError(
            [
                f"device={device}: this machine has {usable['cuda']} GPUs, and process "
                f"{local_rank + 1} on it needs one; start as many as there are"
            ]
        )
    if (chosen.index or 0) >= usable[chosen.type]:
        available = [name for name, count in usable.items() if count]
        raise ConfigError([f"device={device}: this machine has {', '.join(available)} only"])
    if precision == AUTO:
        bf16 = chosen.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if bf16 else "fp32"
    if precision == "bf16" and chosen.type == "cpu" and not computes_bf16():
        _log.warning("precision=bf16: this CPU has no instructions for it; fp32 would be faster")
    if precision == "fp16" and chosen.type == "cpu":
        raise ConfigError(["precision=fp16: the CPU trains in fp32 or bf16"])
    return Machine(chosen, precision)


def computes_bf16() -> bool:
    """Whether the CPU has instructions for bf16."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def keep_freed_memory() -> None:
    """Let malloc keep freed memory for the next training step.

    By default glibc returns large blocks to the system and requests them again, page by page, in
    each step. On a CPU this took up to half of the time. Other C libraries are left alone.
    """
    libc = _glibc()
    # Setting the trim threshold alone would fix the mmap threshold at its low default.
    if libc and any(libc.mallopt(_M_MMAP_THRESHOLD, size) for size in _MMAP_THRESHOLDS):
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def release_memory(machine: Machine) -> None:
    """Return freed memory to the system when this process holds much of the machine's memory.

    Freed blocks lie between used ones, so the process would grow from epoch to epoch.
    """
    if machine.device.type != "cpu":
        return
    held = psutil.Process().memory_info().rss
    libc = _glibc()
    if libc and held > _RELEASE_ABOVE * psutil.virtual_memory().total:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if _has_mps() else "cpu"


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
