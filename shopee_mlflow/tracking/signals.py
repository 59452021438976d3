"""Signals, and the parent that starts us: a run that is stopped from outside ends, and says so."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

_POLL_SECONDS = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Writing:
    """Whether a write to a local store is under way, and the stop that waits for its end."""

    depth = 0
    waiting: Stopped | None = None


class Stopped(KeyboardInterrupt):
    """The run was asked to stop; the message says by whom."""


class _Patience:
    """Whether the first stop may wait until it is asked for, and which one waits."""

    granted = False
    waiting: Stopped | None = None
    signal = 0
    # The stop has come: like one that came at once, it is the last.
    spent = False


@contextmanager
def graceful_stop(agree: Callable[[bool], bool] | None = None) -> Iterator[Callable[[], None]]:
    """Let the first stop wait until the work has come to a good place; the second comes at once.

    ``mlflow run`` sends a SIGTERM after each Ctrl-C, so only a second signal of the same kind
    counts as a second one.

    :param agree: whether this process was asked to stop -> whether any of a group was: they stop at
        the same place, or one would wait for the others.
    :returns: to be called at each good place: raises the :class:`Stopped` that waits there; one
        that still waits at the end of the block is raised then.
    """

    def check_stop() -> None:
        asked = _Patience.waiting is not None
        if agree(asked) if agree else asked:
            _Patience.spent = True
            raise _Patience.waiting or Stopped("another process of the group was asked to stop")

    _Patience.granted, _Patience.waiting = True, None
    try:
        yield check_stop
        check_stop()
    except Exception as error:
        if agree:
            # Those that are left of a group are asked to stop because one is gone, which is what
            # they have to tell; the signal may come at any moment from now on.
            _Patience.spent = True
            raise
        # Whatever else went wrong meanwhile, a person has asked for the end of it all.
        if _Patience.waiting is None:
            raise
        _Patience.spent = True
        raise _Patience.waiting from error
    finally:
        _Patience.granted, _Patience.waiting = False, None


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a stop wait until the block is left: a database stopped in the middle of a write may keep
    its lock, and then the run's end cannot be written either. For writes that are short."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Writing.depth += 1
    try:
        yield
    finally:
        _Writing.depth -= 1
    if _Writing.waiting is not None and not _Writing.depth:
        stopped, _Writing.waiting = _Writing.waiting, None
        raise stopped


@contextmanager
def stop_on_signals(boss: psutil.Process | None = None) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into :class:`Stopped`, once; later ones wait until the run is closed.

    ``mlflow run`` answers Ctrl-C by a SIGTERM of its own right after the terminal's SIGINT, so
    the two come in pairs. Also stops when ``mlflow run`` itself is gone: it forwards no SIGTERM;
    or, where it is named, when the process is gone that this one works for.
    Within another such block that one goes on watching, so that a second Ctrl-C waits until all
    is closed. Outside the main thread, where Python allows no handlers, nothing is changed.
    """
    watched_already = getattr(signal.getsignal(signal.SIGTERM), "__module__", None) == __name__
    if watched_already or threading.current_thread() is not threading.main_thread():
        yield
        return
    orphaned = threading.Event()
    stopping = _Patience.spent = False

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the handler's form
        nonlocal stopping
        if stopping or _Patience.spent:
            return
        if _Patience.waiting is not None and number != _Patience.signal:
            return
        gone = orphaned.is_set()
        name = "the process that started this one" if boss else "mlflow run"
        stopped = Stopped(f"{name} is gone" if gone else f"{signal.Signals(number).name} received")
        if _Patience.granted and _Patience.waiting is None:
            _Patience.waiting, _Patience.signal = stopped, number
            # Not by print, which may be in the middle of another line.
            os.write(2, b"\nstopping after this batch; once more to stop now\n")
            return
        stopping = True
        if _Writing.depth:
            _Writing.waiting = stopped
            return
        raise stopped

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    finished = threading.Event()
    watched = boss or (_find_launcher() if "MLFLOW_RUN_ID" in os.environ else None)
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
    """Send ourselves SIGTERM when the process that started us is no more."""
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
