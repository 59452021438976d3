"""A process that has imported the package, and forks for each command that it is asked for.

``warm_process.py`` starts it and describes what its children are.
"""

from __future__ import annotations

import _posixsubprocess
import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import os
import pkgutil
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from blank_figures import save_blank
from matplotlib.figure import Figure

_LONGEST_REQUEST = 1 << 20
_MOST_FILES = 64
_SET_CHILD_SUBREAPER = 36
# Imported by functions of the package and of MLflow when they need them.
_IMPORTED_LATER = (
    *("IPython", "git", "matplotlib.backends.backend_agg", "scipy.optimize", "scipy.stats"),
    *("sklearn.feature_extraction.text", "sklearn.linear_model", "sklearn.metrics"),
    *("mlflow.cli", "mlflow.store.model_registry.sqlalchemy_store", "sqlalchemy.dialects.sqlite"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.pytorch", "torch.distributed.run"),
)


@dataclass(frozen=True)
class Request:
    """A command to be run.

    :ivar args: those of ``python``, beginning with ``-m`` or ``-c``.
    :ivar files: the numbers that the files sent with the request have in the new process.
    :ivar group: the process group that it enters, as for ``setpgid``; -1 for its parent's.
    """

    args: list[str]
    env: dict[str, str]
    cwd: str
    files: list[int]
    new_session: bool = False
    warm_children: bool = False
    group: int = -1


def send(parent: socket.socket, request: Request, status: int, files: Sequence[int]) -> None:
    """Ask a parent for a process; it answers with the process id at the other end of ``status``."""
    parent.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST_REQUEST)
    socket.send_fds(parent, [json.dumps(asdict(request)).encode()], [status, *files])


def _import_all() -> dict[str, str]:
    """Import every module of the package; returns what that set in the environment."""
    before = dict(os.environ)
    gc.disable()
    package = importlib.import_module("shopee_mlflow")
    for module in pkgutil.walk_packages(package.__path__, "shopee_mlflow."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in _IMPORTED_LATER:
        importlib.import_module(name)
    # A second of reading what is installed, which MLflow remembers.
    importlib.import_module("mlflow.utils.requirements_utils")._init_packages_to_modules_map()
    # The children share these objects, as long as they do not search them for garbage.
    gc.freeze()
    gc.enable()
    return {name: value for name, value in os.environ.items() if before.get(name) != value}


def _next_command(connection: socket.socket, adopted: bool = False) -> tuple[Request, list[int]]:
    """Fork for each request until the connection ends; returns in each child.

    :param adopted: the children are those of the process that has forked this one.
    """
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([connection, ended], [], [])
        if ended in ready:
            os.read(ended, 1000)
            for pid in list(status):
                gone, how = os.waitpid(pid, os.WNOHANG)
                if gone:
                    # A test that has failed does not wait for the exit code.
                    with status.pop(pid) as reply, suppress(BrokenPipeError):
                        reply.send(str(os.waitstatus_to_exitcode(how)).encode())
        if connection not in ready:
            continue
        data, fds, _, _ = socket.recv_fds(connection, _LONGEST_REQUEST, _MOST_FILES)
        if not data:
            os._exit(0)
        reply, files = socket.socket(fileno=fds[0]), fds[1:]
        pid = _fork_for_another() if adopted else os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for other in (connection, reply, *status.values()):
                other.close()
            os.close(ended)
            os.close(wake)
            return Request(**json.loads(data)), files
        for file in files:
            os.close(file)
        reply.send(str(pid).encode())
        if adopted:
            reply.close()
        else:
            status[pid] = reply


def _fork_for_another() -> int:
    """Fork by way of a process that ends at once, so that the child goes to the subreaper.

    :returns: the id of the child; 0 in it.
    """
    read, write = os.pipe()
    if between := os.fork():
        os.close(write)
        pid = int(os.read(read, 20))
        os.close(read)
        os.waitpid(between, 0)
        return pid
    between = os.getpid()
    if pid := os.fork():
        os.write(write, str(pid).encode())
        os._exit(0)
    os.close(read)
    os.close(write)
    while os.getppid() == between:
        time.sleep(0.001)
    return 0


def _warm_children() -> None:
    """Start a process that forks for this one whenever it starts Python.

    It is forked before the command runs, so that its children know nothing of this process, as if
    they had been started by ``exec``.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        _become(*_next_command(theirs, adopted=True))
    theirs.close()
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    fork_exec = _posixsubprocess.fork_exec

    def start(args: Sequence[Any], *given: Any) -> int:
        """Both subprocess and multiprocessing start all processes by this function."""
        executable, *words = map(os.fsdecode, args)
        words = words[words[:1] == ["-u"] :]
        plain = given[16:21] == (None, None, None, -1, None)  # no other user, nothing to run before
        if executable != sys.executable or words[0] not in ("-m", "-c") or not plain:
            return int(fork_exec(args, *given))
        files = {number: given[pipe] for number, pipe in enumerate((5, 8, 10))}
        files = {number: number if pipe == -1 else pipe for number, pipe in files.items()}
        files |= {file: file for file in given[2] if file != given[12]}
        request = Request(
            args=words,
            env=_environment(given[4]),
            cwd=os.fsdecode(given[3] or Path.cwd()),
            files=list(files),
            new_session=given[14],
            group=given[15],
        )
        status, answer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with status:
            with answer:
                send(ours, request, answer.fileno(), list(files.values()))
            return int(status.recv(20))

    _posixsubprocess.fork_exec = subprocess._fork_exec = start


def _environment(variables: Sequence[bytes] | None) -> dict[str, str]:
    if variables is None:
        return dict(os.environ)
    pairs = (os.fsdecode(variable).partition("=") for variable in variables)
    return {name: value for name, _, value in pairs}


def _become(request: Request, files: list[int]) -> None:
    """Run the command as ``python`` would, and exit."""
    # Out of the way of the numbers that they get.
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD, max(request.files) + 1) for file in files]
    for file, number in zip(moved, request.files, strict=True):
        os.dup2(file, number)
    for file in {*files, *moved} - {*request.files}:
        os.close(file)
    unbuffered = "PYTHONUNBUFFERED" in request.env
    for name, stream in (("stdout", 1), ("stderr", 2)):
        file = os.fdopen(stream, "w", encoding="utf-8", closefd=False)
        file.reconfigure(line_buffering=stream == 2, write_through=unbuffered)
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)
    if request.new_session:
        os.setsid()
    if request.group != -1:
        os.setpgid(0, request.group)
    # Drawing is half of a small training. Tests marked ``drawn`` start no such process.
    Figure.savefig = save_blank
    if request.warm_children:
        _warm_children()
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update({**_set_by_imports, **request.env})
    kind, what, *words = request.args
    sys.path[0] = request.cwd
    sys.argv[:] = [kind, *words]
    # Not the numbers and the temporary folder of the parent.
    random.seed()
    tempfile.tempdir = None
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), vars(sys.modules["__main__"]))
    except SystemExit as leaving:
        _leave(leaving.code)
    _leave(0)


def _leave(code: object) -> NoReturn:
    """End as Python does, but without deleting all objects, which takes seconds."""
    if not isinstance(code, int):
        if code is not None:
            print(code, file=sys.stderr)
        code = int(code is not None)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)


# What importing the package has set in the environment.
_set_by_imports: dict[str, str] = {}

if __name__ == "__main__":
    _set_by_imports.update(_import_all())
    _become(*_next_command(socket.socket(fileno=int(sys.argv[1]))))
