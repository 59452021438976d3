"""A PostgreSQL server for one test, from the system's packages."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest

_PACKAGES = Path("/usr/lib/postgresql")
_SECONDS = 30


class PostgresServer:
    """A server on loopback that can be stopped and started again; its data outlive that."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def make(self) -> None:
        """Make the folder of its data."""
        command = [self._programs / "initdb", "-D", self._folder / "data", "-U", "tester"]
        options = ["-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(
            [*command, *options], cwd=self._folder, capture_output=True, text=True, **_as_other()
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = ["-D", self._folder / "data", "-k", self._folder, "-p", str(self.port)]
        options += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", *options],
                cwd=self._folder,
                stdout=log,
                stderr=log,
                **_as_other(),
            )
        until = time.monotonic() + _SECONDS
        while True:
            try:
                psycopg2.connect(self.address("postgres")).close()
                return
            except psycopg2.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > until:
                    pytest.fail(f"{error}\n{self.log()}")
                time.sleep(0.1)

    def stop(self) -> None:
        """Stop it, whoever is connected."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
        try:
            self._process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def new_database(self) -> str:
        """The address of a new, empty database."""
        self._databases += 1
        name = f"studies{self._databases}"
        connection = psycopg2.connect(self.address("postgres"))
        try:
            connection.autocommit = True
            connection.cursor().execute(f"CREATE DATABASE {name}")
        finally:
            connection.close()
        return self.address(name)

    def address(self, name: str) -> str:
        return f"postgresql://tester@127.0.0.1:{self.port}/{name}"

    def log(self) -> str:
        return (self._folder / "server.log").read_text(errors="replace")


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server that runs; stopped and deleted at the end, however that comes."""
    found = sorted(_PACKAGES.glob("*/bin/postgres"))
    if not found:
        pytest.skip(f"no PostgreSQL server is installed in {_PACKAGES}")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if os.geteuid() == 0:
        os.chown(folder, _other().pw_uid, _other().pw_gid)
    server = PostgresServer(found[-1].parent, folder)
    try:
        server.make()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def _as_other() -> dict[str, Any]:
    """PostgreSQL refuses to be run by root."""
    if os.geteuid() != 0:
        return {}
    return {"user": _other().pw_uid, "group": _other().pw_gid, "extra_groups": []}


def _other() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")
