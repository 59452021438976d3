"""File locks that the system releases when their process dies."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

_log = logging.getLogger(__name__)


@contextmanager
def locked(file: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock that is released when this process dies; yields False without lock support.

    :raises Timeout: when another process holds the lock and ``wait`` is False.
    """
    # No soft lock: its file would outlive a killed process.
    lock = FileLock(file, fallback_to_soft=False)
    exclusive = True
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        exclusive = False
        _warn_no_locks(file.parent, type(error).__name__)
    try:
        yield exclusive
    finally:
        with suppress(OSError):
            lock.release()


@cache
def _warn_no_locks(folder: Path, reason: str) -> None:
    _log.warning(
        "%s: files cannot be locked in this folder (%s), so work may be done twice", folder, reason
    )
