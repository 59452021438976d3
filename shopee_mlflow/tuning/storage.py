"""Where a study is kept: a file for one machine, a database for many."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from ..config import AUTO
from ..errors import ConfigError, StudyError

_FOLDER = "studies"
# Of a process on another machine nothing is known but its heartbeat.
_HEARTBEAT_SECONDS = 15
_DEAD_SECONDS = 60
_CONNECT_SECONDS = 20
# How a storage says that it cannot be reached, or written.
FAULTS = (optuna.exceptions.StorageInternalError, SQLAlchemyError, OSError)

Stale = Callable[[optuna.Study, Any], None]


def is_database(storage: str) -> bool:
    """Whether the option names a database rather than a file."""
    return "://" in storage


def without_password(storage: str) -> str:
    """The option's value as it may be shown and logged."""
    return make_url(storage).render_as_string(hide_password=True) if "@" in storage else storage


def study_file(storage: str, name: str, folder: Path) -> Path:
    """The file of a study, where it is kept in a file.

    :param folder: of the tracking store, where ``auto`` puts it.
    """
    return folder / _FOLDER / f"{name}.journal" if storage == AUTO else Path(storage).expanduser()


def open_storage(storage: str, file: Path, on_stale: Stale) -> BaseStorage:
    """The storage that the option names: a database, or a journal in ``file``.

    :param on_stale: called for a trial whose worker, on whatever machine, gives no heartbeat.
    :raises ConfigError: when it is of a kind that cannot serve.
    :raises StudyError: when it cannot be reached.
    """
    try:
        return _database(storage, on_stale) if is_database(storage) else _journal(file)
    except ImportError as error:
        raise ConfigError(
            [f"storage={without_password(storage)}: needs a package: {error}"]
        ) from error
    except FAULTS as error:
        where = without_password(storage) if is_database(storage) else str(file)
        raise StudyError(f"storage={where}: cannot be reached: {_first_line(error)}") from error


@contextmanager
def reachable(study: optuna.Study) -> Iterator[None]:
    """Turn a storage that fails into an error for people; what it holds is not lost."""
    try:
        yield
    except FAULTS as error:
        raise StudyError(
            f"The storage of study {study.study_name} does not answer: {_first_line(error)}. Its "
            "trials so far are safe there; the same command goes on with it."
        ) from error


def _database(storage: str, on_stale: Stale) -> RDBStorage:
    try:
        url = make_url(storage)
    except ArgumentError:
        raise ConfigError(
            [f"storage={storage}: is no database address such as postgresql://user@host/name"]
        ) from None
    if url.get_backend_name() == "sqlite":
        raise ConfigError(
            [
                f"storage={storage}: SQLite serves one process only; name a file, without "
                "sqlite://, or a database such as postgresql://user@host/name"
            ]
        )
    timeout = {"connect_timeout": _CONNECT_SECONDS}
    postgres = url.get_backend_name() == "postgresql"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return RDBStorage(
            storage,
            engine_kwargs={"pool_pre_ping": True, "connect_args": timeout if postgres else {}},
            heartbeat_interval=_HEARTBEAT_SECONDS,
            grace_period=_DEAD_SECONDS,
            heartbeat_stale_trial_callback=on_stale,
        )


def _journal(file: Path) -> JournalStorage:
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = _Lock(file)
    _drop_half_a_line(file, lock)
    # Each report of an epoch is a line; Optuna says so at every call that takes long.
    logging.getLogger("optuna.storages.journal").setLevel(logging.ERROR)
    return JournalStorage(JournalFileBackend(str(file), lock_obj=lock))


class _Lock(JournalFileOpenLock):
    """A lock that the system takes from a process that dies; Optuna's own would stay behind."""

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._lock = FileLock(f"{file}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def _drop_half_a_line(file: Path, lock: _Lock) -> None:
    """A power cut may leave half a line at the end, behind which nothing could be read any more."""
    if not file.is_file():
        return
    lock.acquire()
    try:
        with file.open("r+b") as journal:
            content = journal.read()
            if content and not content.endswith(b"\n"):
                journal.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _first_line(error: Exception) -> str:
    return (str(getattr(error, "orig", None) or error).strip() or repr(error)).splitlines()[0]
