"""A real tracking server on loopback, which can be stopped and started again."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from new_store import new_store
from warm_process import WarmProcess

_PATIENCE_SECONDS = 90


class MlflowServer:
    """``mlflow server`` with its database and artifacts in a folder, on a port of its own."""

    def __init__(self, folder: Path, database: str | None = None) -> None:
        """
        :param database: where runs are kept; by default a file in the folder.
        """
        self.folder = folder
        self._database = database or new_store(folder / "server.db")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: WarmProcess | None = None
        self._accounts: dict[str, str] = {}

    def switch_accounts_on(self, admin_password: str) -> None:
        """From its next start it answers to those with a password only."""
        settings = {
            "default_permission": "EDIT",
            "database_uri": self._database,
            "admin_username": "admin",
            "admin_password": admin_password,
            "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        }
        file = self.folder / "basic_auth.ini"
        lines = [f"{name} = {value}" for name, value in settings.items()]
        file.write_text("\n".join(["[mlflow]", *lines, ""]))
        self._accounts = {
            "MLFLOW_AUTH_CONFIG_PATH": str(file),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "for tests",
        }

    def start(self) -> None:
        """Start it, and wait until it answers."""
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        words += ["--backend-store-uri", self._database]
        words += ["--artifacts-destination", str(self.folder / "files")]
        if self._accounts:
            words += ["--app-name", "basic-auth"]
        # It must not take itself for a client of another store, or wait for jobs.
        env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        env |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **self._accounts}
        log = self.folder / f"server{len(list(self.folder.glob('server*.log')))}.log"
        self._process = WarmProcess(
            *("mlflow", "server", *words),
            env=env,
            cwd=self.folder,
            output=log,
            new_session=True,
            warm_children=True,
        )
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self._answers():
            said = log.read_text()
            assert self._process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.1)

    def stop(self) -> None:
        """Take it away at once, its workers included, as a power cut would."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has not even begun, and has no group
                self._process.kill()
            self._process.wait(_PATIENCE_SECONDS)
            self._process = None

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False
