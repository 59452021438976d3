"""The package's commands in processes that start in a moment.

Importing torch and MLflow takes four seconds of a core. One process for each worker of pytest
imports the package once and forks for each command: a process of its own as ``python -m`` would
start it, with its own environment, folder, signals and exit code, but without the imports.
"""

from __future__ import annotations

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
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
_LONGEST_REQUEST = 1 << 20


class WarmProcess:
    """``python -m MODULE WORDS``, with those methods of ``subprocess.Popen`` that tests use.

    :param output: a file for stdout and stderr; by default both can be read from ``stdout``.
    """

    def __init__(
        self,
        module: str,
        *words: str,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        output: Path | None = None,
        new_session: bool = False,
    ) -> None:
        self.args = [module, *words]
        self.returncode: int | None = None
        self.stdout: IO[str] | None = None
        if output is None:
            read, target = os.pipe()
            self.stdout = os.fdopen(read, encoding="utf-8")
        else:
            target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        # Each message is received as it was sent: the process id, later the exit code.
        self._status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {
            "args": self.args,
            "env": dict(os.environ if env is None else env),
            "cwd": str(cwd),
            "new_session": new_session,
        }
        with theirs:
            data = json.dumps(request).encode()
            socket.send_fds(_parent(), [data], [theirs.fileno(), target])
        os.close(target)
        self.pid = int(self._status.recv(20))

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = int(self._status.recv(20))
            self._status.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait for the end; returns what it wrote."""
        assert self.stdout is not None
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.append(self.stdout.read()), daemon=True)
        reader.start()
        reader.join(timeout)
        if reader.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.stdout.close()
        self.wait(10)
        return said[0], None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Wait for the end without reading what it wrote."""
        if self.stdout is not None:
            self.stdout.close()
        self.wait()

    def __enter__(self) -> WarmProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# Held: an object that is deleted warns that its process is alive.
_started: list[subprocess.Popen[bytes]] = []


@cache
def _parent() -> socket.socket:
    """The connection to the process that forks; it ends when this process ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST_REQUEST)
    # Its settings of threads are those of all its children: they are read when torch is imported.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(theirs.fileno())]
    with theirs:
        _started.append(subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env, cwd=ROOT))
    return ours


def _import_all() -> dict[str, str]:
    """Import every module of the package; returns what that set in the environment."""
    before = dict(os.environ)
    package = importlib.import_module("shopee_mlflow")
    for module in pkgutil.walk_packages(package.__path__, "shopee_mlflow."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("mlflow.cli")
    return {name: value for name, value in os.environ.items() if before.get(name) != value}


def _next_command(connection: socket.socket) -> tuple[dict[str, Any], int]:
    """Fork for each request until the connection ends; returns in each child."""
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
        data, fds, _, _ = socket.recv_fds(connection, _LONGEST_REQUEST, 2)
        if not data:
            sys.exit()
        reply, output = socket.socket(fileno=fds[0]), fds[1]
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for other in (connection, reply, *status.values()):
                other.close()
            os.close(ended)
            os.close(wake)
            return json.loads(data), output
        os.close(output)
        reply.send(str(pid).encode())
        status[pid] = reply


def _main() -> None:
    added = _import_all()
    request, output = _next_command(socket.socket(fileno=int(sys.argv[1])))
    unbuffered = "PYTHONUNBUFFERED" in request["env"]
    for name, stream in (("stdout", 1), ("stderr", 2)):
        os.dup2(output, stream)
        file = os.fdopen(stream, "w", encoding="utf-8", closefd=False)
        file.reconfigure(line_buffering=stream == 2, write_through=unbuffered)
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)
    os.close(output)
    if request["new_session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update({**added, **request["env"]})
    sys.path[0] = request["cwd"]
    sys.argv[1:] = request["args"][1:]
    # Not the numbers and the temporary folder of the parent.
    random.seed()
    tempfile.tempdir = None
    runpy.run_module(request["args"][0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
