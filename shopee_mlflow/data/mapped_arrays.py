"""Arrays of mapped files as tensors, and a limit on the memory that reading them holds."""

from __future__ import annotations

import mmap
import warnings

import numpy as np
import torch
from torch import Tensor

# Most bytes of a mapped file that a process holds in memory.
_WINDOW = 2**30


def as_tensor(values: np.ndarray) -> Tensor:
    """A tensor that shares the array's memory, for reading; a mapped array may be read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


class Window:
    """Limits how much of a mapped file this process holds in memory.

    The system keeps released pages while memory is free, so reading them again is fast.
    """

    def __init__(self, values: np.ndarray) -> None:
        """
        :param values: an array; one that is not mapped is left alone.
        """
        base: object = values
        while isinstance(base, np.ndarray):
            base = base.base
        can_release = isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED")
        self._file = base if can_release else None
        self._held = 0

    def passed(self, nbytes: int) -> None:
        """Count bytes as read or written; release all when they exceed the window."""
        self._held += nbytes
        if isinstance(self._file, mmap.mmap) and self._held > _WINDOW:
            self._file.madvise(mmap.MADV_DONTNEED)
            self._held = 0
