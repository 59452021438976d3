"""Handle stop signals, so that a stopped run ends with a status and a reason."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

import psutil

_POLL_SECONDS = 1.0
_SEND_AGAIN_SECONDS = 0.05
# SIGHUP is sent when the terminal is closed. Not all systems have it.
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]

_ALWAYS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The run was asked to stop; the message has the reason."""


@dataclass
class _StopState:
    """State of the signal handler of this process.

    :ivar graceful: whether the first stop waits for ``check_stop``; it is stored in ``pending``.
    :ivar pending_signal: number of the signal of the pending stop.
    :ivar deferrals: depth of :func:`defer_stop` blocks. A stop within one waits in ``deferred``.
    :ivar received: number of the last signal that was not ignored.
    :ivar stopping: whether a stop was raised. Later signals are then ignored, so that the run can
        be ended.
    """

    graceful: bool = False
    pending: Stopped | None = None
    pending_signal: int = 0
    deferrals: int = 0
    deferred: Stopped | None = None
    received: int = 0
    stopping: bool = False


_state = _StopState()


@contextmanager
def graceful_stop(
    agree: Callable[[bool], bool] | None = None,
) -> Iterator[Callable[[], None]]:
    """Defer the first stop signal until ``check_stop`` is called.

    A second signal of the same kind stops immediately. Signals of another kind are ignored, since
    ``mlflow run`` sends a SIGTERM after each Ctrl-C.

    :param agree: takes whether this process was asked to stop; returns whether any process of the
        group was. All processes must stop after the same batch, since they wait for each other.
    :returns: ``check_stop``, to be called where the work can be interrupted. It raises the pending
        :class:`Stopped`, which is otherwise raised at the end of the block.
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
            # When a process of a group is lost, torchrun stops the others. Report the error, not
            # the signal, which may still arrive.
            _state.stopping = True
            raise
        if _state.pending is None:
            raise
        # The user has asked for the stop. Report that, not the later error.
        _state.stopping = True
        raise _state.pending from error
    finally:
        _state.graceful, _state.pending = False, None


@contextmanager
def defer_stop() -> Iterator[None]:
    """Defer a stop until the end of the block, also if the block raises an error.

    Use it for short steps that must not be left half done. An interrupted write to a local database
    would leave it locked, and the run could not be ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.deferrals += 1
    try:
        yield
    finally:
        _state.deferrals -= 1
        if _state.deferred is not None and not _state.deferrals:
            stopped, _state.deferred = _state.deferred, None
            raise stopped


def stop_behind(error: BaseException | None) -> Stopped | None:
    """The stop in whose course an error was raised, for example by a file that was being closed."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__context__
    return error


@contextmanager
def stop_on_signals(parent: psutil.Process | None = None) -> Iterator[None]:
    """Raise :class:`Stopped` once on Ctrl-C, SIGTERM or SIGHUP, and when the parent is gone.

    ``mlflow run`` does not forward SIGTERM, so the process stops when ``mlflow run`` is gone. On
    Ctrl-C it sends a SIGTERM after the terminal's SIGINT, so signals may come in pairs; later ones
    are ignored until the run has ended. The block has no effect within another such block, and
    outside the main thread, where Python allows no signal handlers. Under nohup, SIGHUP stays
    ignored.

    :param parent: the process to watch; by default ``mlflow run``, if it started this one.
    """
    installed = getattr(signal.getsignal(signal.SIGTERM), "__module__", None) == __name__
    if installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    orphaned = threading.Event()
    _state.stopping, _state.deferred = False, None

    def reason(number: int) -> str:
        if orphaned.is_set():
            return f"{'the parent process' if parent else 'mlflow run'} is gone"
        return f"{signal.Signals(number).name} received"

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's form
        if _state.stopping or (_state.pending is not None and number != _state.pending_signal):
            return
        _state.received = number
        stopped = Stopped(reason(number))
        if _state.graceful and _state.pending is None:
            _state.pending, _state.pending_signal = stopped, number
            # print may itself be interrupted within a line. The terminal may be gone.
            with suppress(OSError):
                os.write(2, b"\nstopping after this batch; once more to stop now\n")
            return
        _state.stopping = True
        if _state.deferrals:
            _state.deferred = stopped
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
        with _dropped_stops_sent_again():
            yield
    finally:
        finished.set()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _dropped_stops_sent_again() -> Iterator[None]:
    """Python drops an exception that is raised in a destructor or a weakref's callback."""
    before = sys.unraisablehook

    def send_again(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, Stopped):
            before(unraisable)
            return
        _state.stopping = False
        again = threading.Timer(_SEND_AGAIN_SECONDS, os.kill, (os.getpid(), _state.received))
        again.daemon = True
        again.start()

    sys.unraisablehook = send_again
    try:
        yield
    finally:
        sys.unraisablehook = before


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
