"""The tracking store: its errors, its request limits and its folder."""

from __future__ import annotations

import getpass
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib import import_module
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from ..errors import ReadOnlyStoreError, TrackingError, disk_full
from ..masking import mask_passwords
from ..options import expand_path
from .signals import defer_stop

_log = logging.getLogger(__name__)

STATE_VARIABLE = "SHOPEE_MLFLOW_STATE"
# Errors of a store that is not available; a store on a disk also raises OSError.
REQUEST_ERRORS = (MlflowException, SQLAlchemyError)
STORE_ERRORS = (*REQUEST_ERRORS, OSError)
# Defaults for requests to a server. With MLflow's own defaults, a request fails after four minutes
# if no server listens, and after fifteen if it does not respond. The leading zero distinguishes
# this timeout from one that the user has set.
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_BOUNDS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", _TIMEOUT: "020"}
# Scheme of an artifact store -> the module that MLflow imports to write to it, and the packages to
# install.
_PACKAGES = {
    "s3": ("boto3", "boto3"),
    "gs": ("google.cloud.storage", "google-cloud-storage"),
    "wasbs": ("azure.storage.blob", "azure-storage-blob azure-identity"),
    "abfss": ("azure.storage.filedatalake", "azure-storage-file-datalake azure-identity"),
}
_IN_MEMORY = ("sqlite://", "sqlite:///", "sqlite:///:memory:")
# Packages whose errors are bugs, not failures of a store.
_OWN = {"builtins", "torch", __package__.partition(".")[0]}


class NoModelFolderError(TrackingError):
    """A path on this machine is not the folder of a logged model."""


class ArtifactStoreError(MlflowException):
    """An artifact store other than the tracking store has failed."""


def store_error(error: BaseException) -> TrackingError:
    """The error to show to the user when a store has failed, in one sentence."""
    if full := disk_full(error):
        return TrackingError(full)
    kind = TrackingError
    message = str(getattr(error, "message", None) or error).strip() or type(error).__name__
    if "readonly database" in message or "read-only" in message.lower():
        message = f"{getpass.getuser()} can read it, but not write to it"
        kind = ReadOnlyStoreError
    elif getattr(error, "error_code", "") == "PERMISSION_DENIED":
        kind = ReadOnlyStoreError
    lines = [line for line in message.splitlines() if line and not line.startswith("[SQL")]
    if isinstance(error, ArtifactStoreError):
        return TrackingError(f"The artifact store failed: {lines[0]}")
    return kind(f"The tracking store {mlflow.get_tracking_uri()} failed: {lines[0]}")


@contextmanager
def artifact_errors(where: str) -> Iterator[None]:
    """Raise any error of an artifact store as ArtifactStoreError, and use MLflow's own timeout.

    Each kind of store raises errors of its own package, such as for an expired token. Transfers
    take longer than other requests, so the timeout of :func:`quieten` does not apply to them.

    :param where: start of the error message.
    :raises ArtifactStoreError: for any error of the store.
    """
    bound = os.environ.get(_TIMEOUT)
    if bound == _BOUNDS[_TIMEOUT]:
        del os.environ[_TIMEOUT]
    try:
        yield
    except Exception as error:
        root = type(error).__module__.partition(".")[0]
        if isinstance(error, STORE_ERRORS) or (root in _OWN and not isinstance(error, ImportError)):
            raise
        first = (str(error).strip() or "no reason given").splitlines()[0]
        reason = f"{type(error).__name__}: {first}"
        raise ArtifactStoreError(f"{where}: {reason}") from error
    finally:
        if bound is not None:
            os.environ[_TIMEOUT] = bound


@contextmanager
def downloaded(uri: str) -> Iterator[Path]:
    """Download artifacts to a temporary folder, which is deleted at the end of the block.

    Local artifacts are copied as well, since MLflow would otherwise write to the store's folder.

    :param uri: a URI of artifacts, or the folder of a logged model.
    :raises NoModelFolderError: when it is another folder or file, which is not copied.
    """
    if is_local_uri(uri, is_tracking_or_registry_uri=False):
        _check_model_folder(uri)
    with tempfile.TemporaryDirectory() as folder:
        with artifact_errors(f"{uri} could not be read"):
            path = mlflow.artifacts.download_artifacts(uri, dst_path=folder)
        yield Path(path)


def _check_model_folder(uri: str) -> None:
    """Check a path on this machine before it is copied: it may be a whole disk, or a device."""
    path = Path(local_file_uri_to_path(uri))
    if (path / "MLmodel").is_file():
        return
    if not path.exists():
        problem = f"there is no such folder, relative to {Path.cwd()}"
    elif path.is_dir():
        problem = "the folder has no file MLmodel"
    else:
        problem = "it is no folder of a logged model"
    raise NoModelFolderError(problem)


def check_artifacts(uri: str) -> None:
    """Check before a training that artifacts can be stored.

    :param uri: the artifact folder of a run.
    :raises TrackingError: when a local folder cannot be written, or a package is missing.
    """
    scheme = uri.partition(":")[0]
    if scheme in _PACKAGES:
        module, packages = _PACKAGES[scheme]
        try:
            import_module(module)
        except ImportError:
            raise TrackingError(
                f"The artifacts of this experiment are stored in {uri}, which needs a package; "
                f"install it with: pip install {packages}"
            ) from None
    elif is_local_uri(uri):
        folder = Path(local_file_uri_to_path(uri))
        _warn_if_moved(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(f"not writable by {getpass.getuser()}")
        except OSError as error:
            raise TrackingError(
                f"The artifacts of this experiment are stored in {folder}, which cannot be written "
                f"({error.strerror or error}). Make it writable, or choose another experiment."
            ) from None


@cache
def _warn_if_moved(folder: Path) -> None:
    """Warn when a local database has been moved or copied away from its artifacts.

    MLflow stores the absolute folder of each experiment's artifacts.
    """
    store = local_folder().resolve()
    root = next((p for p in folder.parents if p.name == "mlruns"), None)
    if root and not root.exists() and (store / "mlruns").exists():
        _log.warning(
            "The artifacts of this experiment are stored in %s, where the tracking store was "
            "when the experiment was created. Move the store back, or choose another experiment.",
            root,
        )


def quieten() -> None:
    """Silence MLflow's progress messages, and let requests to a server fail sooner.

    MLflow logs each step of a database migration and each retried request.

    :raises TrackingError: when the tracking store is a database whose Python package is missing.
    """
    for name, value in _BOUNDS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = mlflow.get_tracking_uri()
    if mask_passwords(uri) != uri:
        # MLflow prints the address of each run, password included.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    for noisy in ("mlflow.system_metrics", "urllib3.connectionpool"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # This module logs the traceback of each error that it raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    for handler in logging.getLogger("mlflow").handlers:
        handler.addFilter(_mask_record)
    _check_database_package(uri)


def _check_database_package(uri: str) -> None:
    if uri.partition(":")[0].partition("+")[0] not in DATABASE_ENGINES:
        return
    try:
        make_url(uri).get_dialect().import_dbapi()
    except ImportError as error:
        raise TrackingError(
            f"The tracking store {uri} needs the Python package {error.name or error}, which is "
            "not installed. Install it, or name another package that is installed, as in "
            "postgresql+psycopg2://..."
        ) from error
    except SQLAlchemyError as error:
        raise TrackingError(f"The tracking store {uri} is no valid address: {error}") from error


def _mask_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = mask_passwords(record.getMessage()), None
    return True


def connect() -> None:
    """Prepare the tracking store for use: :func:`quieten`, and create a local database.

    A lock lets one process at a time create the tables of a SQLite file. Without it, all but one
    would fail.

    :raises: one of ``STORE_ERRORS``.
    """
    quieten()
    uri = mlflow.get_tracking_uri()
    if not uri.startswith("sqlite://") or uri in _connected:
        return
    file = Path(uri.removeprefix("sqlite:///"))
    if uri in _IN_MEMORY:
        _log.warning("The tracking store %s is in memory: runs are lost with this process.", uri)
        _connected.add(uri)
        return
    lock = Path(f"{file}.lock")
    # MLflow would try for minutes, without a word.
    if file.exists() and not (file.is_file() and os.access(file, os.R_OK)):
        raise PermissionError(f"{file} is not a readable file")
    held: AbstractContextManager[object] = nullcontext()
    try:
        # FileLock would wait for ever for a file that cannot be created.
        lock.touch()
        held = FileLock(lock)
    except OSError:
        # Without permission to write there is no lock. MLflow creates a missing folder.
        if not file.exists() and file.parent.exists():
            raise
    with held:
        MlflowClient().search_experiments(max_results=1)
    _connected.add(uri)


def defer_stop_if_local() -> AbstractContextManager[None]:
    """Defer a stop until the end of the block, unless the store is a server.

    A server tolerates a client that disconnects, and may take minutes to respond.
    """
    return defer_stop() if mlflow.get_tracking_uri().startswith("sqlite:") else nullcontext()


# Databases whose tables are known to exist.
_connected: set[str] = set()


def local_folder() -> Path:
    """The folder that holds checkpoints and studies.

    If the tracking store is a local database, it is the folder of that database. For any other
    store it is ``$SHOPEE_MLFLOW_STATE``, or the current folder if that is not set. ``mlflow run``
    of a git address works in a temporary clone; the user's state folder is used instead of that,
    ``$XDG_STATE_HOME/shopee_mlflow`` or ``~/.local/state/shopee_mlflow``.
    """
    uri = mlflow.get_tracking_uri()
    if uri.startswith("sqlite:///"):
        return Path(uri.removeprefix("sqlite:///")).parent
    chosen = os.environ.get(STATE_VARIABLE)
    if chosen:
        return expand_path(chosen)
    temporary = Path(tempfile.gettempdir()).resolve()
    if not Path.cwd().resolve().is_relative_to(temporary):
        return Path()
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return expand_path(state) / "shopee_mlflow"
