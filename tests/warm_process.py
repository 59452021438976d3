"""The package's commands in processes that start in a moment.

Importing torch and MLflow takes four seconds of a core. One process for each worker of pytest
imports the package once and forks for each command: a process of its own as ``python -m`` would
start it, with its own environment, folder, signals and exit code, but without the imports. Its
figures are saved blank, as those of most tests are.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

import warm_parent

ROOT = Path(__file__).parents[1]


class WarmProcess:
    """``python -m MODULE WORDS``, with those methods of ``subprocess.Popen`` that tests use.

    :param module: ``-c`` for ``python -c WORDS``.
    :param output: a file for stdout and stderr; by default both can be read from ``stdout``.
    :param warm_children: the Python processes that it starts need no imports either. They are its
        children as any others, except that ``/proc`` shows neither their command nor their
        environment.
    """

    def __init__(
        self,
        module: str,
        *words: str,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        output: Path | None = None,
        new_session: bool = False,
        warm_children: bool = False,
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
        request = warm_parent.Request(
            args=["-c", *words] if module == "-c" else ["-m", *self.args],
            env=dict(os.environ if env is None else env),
            cwd=str(cwd),
            new_session=new_session,
            warm_children=warm_children,
            files=[1, 2],
        )
        with theirs:
            warm_parent.send(_parent(), request, theirs.fileno(), [target, target])
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
            with suppress(ProcessLookupError):  # it has just ended
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


@cache
def _parent() -> socket.socket:
    """The connection to the process that forks; it ends when the connection is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Its settings of threads are those of all its children: they are read when torch is imported.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, warm_parent.__file__, str(theirs.fileno())]
    with theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env, cwd=ROOT)
    atexit.register(_end, ours, process)
    return ours


def _end(connection: socket.socket, parent: subprocess.Popen[bytes]) -> None:
    connection.close()
    parent.wait()
