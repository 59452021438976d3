"""Where a study is kept: a file for one machine, a database for many."""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, ProgrammingError, SQLAlchemyError

from ..config import AUTO
from ..errors import ConfigError, StudyError

_FOLDER = "studies"
# With this each journal of Optuna begins.
_FIRST_BYTES = b'{"op_code":'
# Of a process on another machine nothing is known but its heartbeat.
_HEARTBEAT_SECONDS = 15
_DEAD_SECONDS = 60
_CONNECT_SECONDS = 20
_TABLES_PAUSES = (0.5, 1.0)
# How a storage says that it cannot be reached, or written.
FAULTS = (StorageInternalError, SQLAlchemyError, OSError)


def is_database(storage: str) -> bool:
    """Whether the option names a database rather than a file."""
    return "://" in storage


def without_password(storage: str) -> str:
    """The option's value as it may be shown and logged."""
    return re.sub(r"(://[^:@/]*):.*@", r"\1:***@", storage)


def study_file(storage: str, name: str, folder: Path) -> Path:
    """The file of a study, where it is kept in a file.

    :param folder: of the tracking store, where ``auto`` puts it.
    """
    return folder / _FOLDER / f"{name}.journal" if storage == AUTO else Path(storage).expanduser()


def open_storage(storage: str, file: Path) -> BaseStorage:
    """The storage that the option names: a database, or a journal in ``file``.

    :raises ConfigError: when it is of a kind that cannot serve.
    :raises StudyError: when it cannot be reached.
    """
    try:
        return _database(storage) if is_database(storage) else _journal(file)
    except ImportError as error:
        raise ConfigError(
            [f"storage={without_password(storage)}: needs a package: {error.__cause__ or error}"]
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


def _database(storage: str) -> RDBStorage:
    try:
        url = make_url(storage)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise ConfigError(
            [
                f"storage={without_password(storage)}: is no database address such as "
                "postgresql://user@host/name"
            ]
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
    if url.drivername == "postgresql":
        # The driver that we install; SQLAlchemy's own choice depends on its version.
        url = url.set(drivername="postgresql+psycopg2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _with_tables(
            url.render_as_string(hide_password=False),
            engine_kwargs={"pool_pre_ping": True, "connect_args": timeout if postgres else {}},
            heartbeat_interval=_HEARTBEAT_SECONDS,
            grace_period=_DEAD_SECONDS,
        )


def _with_tables(address: str, **settings: Any) -> RDBStorage:
    """Open a database; of several processes that make its tables at once, all but one fail."""
    for pause in _TABLES_PAUSES:
        try:
            return RDBStorage(address, **settings)
        except (IntegrityError, ProgrammingError, StorageInternalError):
            time.sleep(pause)
    return RDBStorage(address, **settings)


def _journal(file: Path) -> JournalStorage:
    file.parent.mkdir(parents=True, exist_ok=True)
    _check_journal(file)
    # Each report of an epoch is a line; Optuna says so at every call that takes long.
    logging.getLogger("optuna.storages.journal").setLevel(logging.ERROR)
    return JournalStorage(JournalFileBackend(str(file), lock_obj=_Lock(file)))


class _Lock(JournalFileOpenLock):
    """A lock that the system takes from a process that dies; Optuna's own would stay behind.

    Whoever gets it drops what such a process has left half written.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._file = file
        self._lock = FileLock(f"{file}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        try:
            _drop_half_a_line(self._file)
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        self._lock.release()


def _check_journal(file: Path) -> None:
    """:raises ConfigError: for a file of another kind, which must not be written into."""
    if not file.exists():
        return
    with file.open("rb") as journal:
        start = journal.read(len(_FIRST_BYTES))
    if not _FIRST_BYTES.startswith(start):
        raise ConfigError([f"storage={file}: is a file of another kind; name a new one"])


def _drop_half_a_line(file: Path) -> None:
    """A power cut may leave half a line at the end, behind which nothing could be read any more."""
    with file.open("r+b") as journal:
        if not journal.seek(0, os.SEEK_END):
            return
        journal.seek(-1, os.SEEK_END)
        if journal.read() != b"\n":
            journal.seek(0)
            journal.truncate(journal.read().rfind(b"\n") + 1)


def _first_line(error: BaseException) -> str:
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__  # which says more
    return (str(getattr(error, "orig", None) or error).strip() or repr(error)).splitlines()[0]
