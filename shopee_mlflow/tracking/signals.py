"""Stop signals: a run that is stopped from outside ends with a status and a reason."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

import psutil

_POLL_SECONDS = 1.0
# SIGHUP, where there is one: the terminal was closed.
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]

_ALWAYS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The run was asked to stop; the message says by whom."""


@dataclass
class _StopState:
    """What the signal handler of this process knows.

    :ivar graceful: the first stop waits for ``check_stop``; it is then ``pending``.
    :ivar writes: depth of :func:`defer_stop` blocks; a stop within waits in ``after_write``.
    :ivar stopping: a stop was raised; later signals are ignored, so that the run can be ended.
    """

    graceful: bool = False
    pending: Stopped | None = None
    pending_signal: int = 0
    writes: int = 0
    after_write: Stopped | None = None
    stopping: bool = False


_state = _StopState()


@contextmanager
def graceful_stop(
    agree: Callable[[bool], bool] | None = None,
) -> Iterator[Callable[[], None]]:
    """Let the first stop signal wait for ``check_stop``; a second one of its kind stops at once.

    ``mlflow run`` sends a SIGTERM after each Ctrl-C, so only a second signal of the same kind
    counts.

    :param agree: whether this process was asked to stop -> whether any process of the group was;
        all of them stop after the same batch, or one would wait for the others.
    :returns: ``check_stop``, to be called where the work can be interrupted. It raises the pending
        :class:`Stopped`; one that is still pending at the end of the block is raised there.
    """

    def check_stop() -> None:
        asked = _state.pending is not None
        if agree(asked) if agree else asked:
            _state.stopping = True
            raise _state.pending or Stopped("another process of the group was asked to stop")

    _state.graceful, _state.pending = True, None
    try:
        yield check_stop
        check_stop()
    except Exception as error:
        if agree:
            # When a process of a group is lost, torchrun stops the others. The error is the reason
            # to report, not the signal, which may still come.
            _state.stopping = True
            raise
        if _state.pending is None:
            raise
        # A person has asked for the stop, whatever else has failed meanwhile.
        _state.stopping = True
        raise _state.pending from error
    finally:
        _state.graceful, _state.pending = False, None


@contextmanager
def defer_stop() -> Iterator[None]:
    """Let a stop wait until the block is left. For short writes to a local database, which would
    otherwise stay locked, so that the run could not be ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.writes += 1
    try:
        yield
    finally:
        _state.writes -= 1
    if _state.after_write is not None and not _state.writes:
        stopped, _state.after_write = _state.after_write, None
        raise stopped


@contextmanager
def stop_on_signals(parent: psutil.Process | None = None) -> Iterator[None]:
    """Raise :class:`Stopped` once on Ctrl-C, SIGTERM or SIGHUP, and when the parent is gone.

    ``mlflow run`` does not forward SIGTERM, so the process stops when ``mlflow run`` is gone. It
    answers Ctrl-C by a SIGTERM after the terminal's SIGINT, so signals may come in pairs; later
    ones are ignored until the run has ended. Within another such block, and outside the main
    thread, where Python allows no handlers, nothing is changed. SIGHUP stays ignored under nohup.

    :param parent: the process to watch; by default ``mlflow run``, if it started this one.
    """
    installed = getattr(signal.getsignal(signal.SIGTERM), "__module__", None) == __name__
    if installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    orphaned = threading.Event()
    _state.stopping = False

    def reason(number: int) -> str:
        if orphaned.is_set():
            return f"{'the parent process' if parent else 'mlflow run'} is gone"
        return f"{signal.Signals(number).name} received"

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's form
        if _state.stopping or (_state.pending is not None and number != _state.pending_signal):
            return
        stopped = Stopped(reason(number))
        if _state.graceful and _state.pending is None:
            _state.pending, _state.pending_signal = stopped, number
            # Not print, which may be interrupted within a line. The terminal may be gone.
            with suppress(OSError):
                os.write(2, b"\nstopping after this batch; once more to stop now\n")
            return
        _state.stopping = True
        if _state.writes:
            _state.after_write = stopped
            return
        raise stopped

    # nohup ignores SIGHUP. Shells ignore SIGINT for background jobs, which must still be stoppable.
    handled = [
        number
        for number in _SIGNALS
        if number in _ALWAYS or signal.getsignal(number) is not signal.SIG_IGN
    ]
    before = {number: signal.signal(number, handle) for number in handled}
    finished = threading.Event()
    watched = parent or (_find_launcher() if "MLFLOW_RUN_ID" in os.environ else None)
    _watch(watched, finished, orphaned)
    try:
        yield
    finally:
        finished.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(
    process: psutil.Process | None, finished: threading.Event, orphaned: threading.Event
) -> None:
    """Send this process a SIGTERM when the watched process is gone."""
    if process is None:
        return

    def watch() -> None:
        while not finished.wait(_POLL_SECONDS):
            if _is_gone(process):
                orphaned.set()
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _find_launcher() -> psutil.Process | None:
    try:
        for process in psutil.Process().parents():
            if any(part.rsplit("/", 1)[-1] == "mlflow" for part in process.cmdline()):
                return process
    except psutil.Error:
        return None
    return None
