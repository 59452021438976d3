"""Storage of a study: a file for one machine, a database for several."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, ProgrammingError, SQLAlchemyError

from ..data_config import AUTO
from ..errors import ConfigError, StudyError
from ..options import expand_path
from ..tracking.signals import defer_stop

_FOLDER = "studies"
_EXAMPLE = "postgresql://user@host/name"
# The beginning of every journal of Optuna.
_FIRST_BYTES = b'{"op_code":'
# A process on another machine can be checked only by its heartbeat.
HEARTBEAT_SECONDS = 15
DEAD_SECONDS = 60
_CONNECT_SECONDS = 20
_TABLES_PAUSES = (0.5, 1.0)
# Errors of a storage that cannot be reached or written.
FAULTS = (StorageInternalError, SQLAlchemyError, OSError)


def is_database(storage: str) -> bool:
    """Whether the option is the address of a database, not a file."""
    return "://" in storage


def study_file(storage: str, name: str, folder: Path) -> Path:
    """The file of a study.

    :param folder: of the tracking store, used by ``auto``.
    """
    return folder / _FOLDER / f"{name}.journal" if storage == AUTO else expand_path(storage)


def open_storage(storage: str, file: Path) -> BaseStorage:
    """Open the storage that the option names: a database, or a journal in ``file``.

    :raises ConfigError: if this kind of storage is not supported.
    :raises StudyError: if it cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # trials.py reports trials
    try:
        return _database(storage) if is_database(storage) else _journal(file)
    except ImportError as error:
        why = error.__cause__ or error
        raise ConfigError([f"storage={storage}: a package is missing: {why}"]) from error
    except FAULTS as error:
        where = storage if is_database(storage) else str(file)
        raise StudyError(f"storage={where}: cannot be reached: {_first_line(error)}") from error


@contextmanager
def reachable(study: optuna.Study) -> Iterator[None]:
    """Turn errors of the storage into a :class:`StudyError`."""
    try:
        yield
    except FAULTS as error:
        raise StudyError(
            f"The storage of study {study.study_name} does not respond: {_first_line(error)}. Its "
            "trials are safe; repeat the command to resume."
        ) from error


def _database(storage: str) -> RDBStorage:
    try:
        url = make_url(storage)
    except (ArgumentError, ValueError):  # ValueError: the port is not a number
        raise ConfigError(
            [f"storage={storage}: not a database address such as {_EXAMPLE}"]
        ) from None
    backend = url.get_backend_name()
    if backend == "sqlite":
        advice = f"give a file without sqlite://, or a database such as {_EXAMPLE}"
        raise ConfigError([f"storage={storage}: SQLite serves one process only; {advice}"])
    timeout = {"connect_timeout": _CONNECT_SECONDS} if backend == "postgresql" else {}
    if url.drivername == "postgresql":
        # The driver in the requirements; SQLAlchemy's default depends on its version.
        url = url.set(drivername="postgresql+psycopg2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _with_tables(
            url.render_as_string(hide_password=False),
            engine_kwargs={"pool_pre_ping": True, "connect_args": timeout},
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=DEAD_SECONDS,
        )


def _with_tables(address: str, **settings: Any) -> RDBStorage:
    """Open a database; if several processes create its tables at once, all but one fail."""
    for pause in _TABLES_PAUSES:
        try:
            return RDBStorage(address, **settings)
        except (IntegrityError, ProgrammingError, StorageInternalError):
            time.sleep(pause)
    return RDBStorage(address, **settings)


def _journal(file: Path) -> JournalStorage:
    file.parent.mkdir(parents=True, exist_ok=True)
    _check_journal(file)
    # Optuna warns of every slow write.
    logging.getLogger("optuna.storages.journal").setLevel(logging.ERROR)
    return JournalStorage(JournalFileBackend(str(file), lock_obj=_Lock(file)))


class _Lock(JournalFileOpenLock):
    """A lock that the system releases when its process dies; Optuna's lock file would remain.

    Acquiring it removes a half-written last line.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._file = file
        self._lock = FileLock(f"{file}.lock", fallback_to_soft=False)
        self._held = ExitStack()

    def acquire(self) -> bool:
        # A stop waits for the release: it could end a write in the middle, or the lock's own steps.
        self._held.enter_context(defer_stop())
        try:
            self._lock.acquire()
            _drop_partial_line(self._file)
        except NotImplementedError as error:
            self._held.close()
            raise OSError(f"files cannot be locked in {self._file.parent}") from error
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        try:
            self._lock.release()
        finally:
            self._held.close()


def _check_journal(file: Path) -> None:
    """:raises ConfigError: if the file is not a journal; it must not be written to."""
    if not file.exists():
        return
    with file.open("rb") as journal:
        start = journal.read(len(_FIRST_BYTES))
    if not _FIRST_BYTES.startswith(start):
        raise ConfigError([f"storage={file}: not a journal of Optuna; choose a new file"])


def _drop_partial_line(file: Path) -> None:
    """A power cut may leave a partial line, and nothing could be read after it."""
    with file.open("r+b") as journal:
        if not journal.seek(0, os.SEEK_END):
            return
        journal.seek(-1, os.SEEK_END)
        if journal.read() != b"\n":
            journal.seek(0)
            journal.truncate(journal.read().rfind(b"\n") + 1)


def _first_line(error: BaseException) -> str:
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return (str(getattr(error, "orig", None) or error).strip() or repr(error)).splitlines()[0]
