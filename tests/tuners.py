"""Searches in separate processes that tests kill, and the invariants to check."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import optuna
import psutil
import pytest
from mlflow.entities import Run
from new_store import new_store
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from warm_process import WarmProcess

from shopee_mlflow.tracking.store import local_folder
from shopee_mlflow.tuning.queue import OWNER
from shopee_mlflow.tuning.storage import open_storage, study_file

ROOT = Path(__file__).parents[1]
STUDY = "search"
SPACE = """
model: cnn
image_size: 32
epochs: {epochs}
n_trials: {total}
study: {study}
pruner: median
pruner_settings: {{n_startup_trials: 2, n_warmup_steps: {warmup}}}
space:
  lr: {{low: 0.0001, high: 0.03, log: true}}
  batch_size: [8, 16]
"""
TOTAL = 6
# A trial lasts some seconds.
EPOCHS = 80


class Tuner:
    """A command in a process of its own; what it says is kept for messages of failed tests."""

    def __init__(self, command: list[str], env: dict[str, str], folder: Path) -> None:
        self._log = folder / f"tuner{len(list(folder.glob('tuner*.log')))}.log"
        self.process = WarmProcess(
            *command,
            env=env,
            cwd=folder,
            output=self._log,
            new_session=True,
            warm_children=any(word.startswith("--jobs") for word in command),
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        return f"\n--- {self._log.name}, exit code {self.process.poll()}:\n{self._log.read_text()}"

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 120) -> None:
        """Wait while the process works."""
        until = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"ended before: {what}{self.output()}"
            assert time.monotonic() < until, f"waited too long for: {what}{self.output()}"
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        assert self.process.poll() is None, f"has ended before {number.name}{self.output()}"
        self.process.send_signal(number)

    def end(self, seconds: float = 180) -> int:
        """Wait for the end; the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"does not end{self.output()}")

    def wait_at_work(self, searches: Searches) -> None:
        """Wait until it has just begun a trial."""
        self.wait_for(lambda: self.pid in searches.at_work(0.25), "a trial that has just begun")

    def killed(self) -> None:
        """End it by SIGKILL, at work."""
        self.signal(signal.SIGKILL)
        self.process.wait(30)

    def clear(self) -> None:
        """End the process and all that it has started, whatever has become of the test."""
        for process in in_session(self.pid):
            process.kill()
        self.process.wait(30)


def in_session(pid: int) -> list[psutil.Process]:
    """The processes of the session that a tuner has opened, orphans included."""
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and os.getsid(process.pid) == pid:
                found.append(process)
        except (psutil.Error, ProcessLookupError):
            continue
    return found


def process_of(run: Run) -> int:
    """The id of the process whose run this is."""
    return int(run.data.tags["process"].split(":")[-2])


class Searches:
    """Starts one search as often as asked, with one store, and looks at what comes of it."""

    def __init__(self, folder: Path, data: Path, storage: str, epochs: int) -> None:
        self.folder, self.storage, self.epochs = folder, storage, epochs
        self._opened: BaseStorage | None = None
        self._space = folder / "space.yaml"
        text = SPACE.format(epochs=epochs, total=TOTAL, study=STUDY, warmup=epochs // 2)
        self._space.write_text(text)
        self._options = {"config": str(self._space), "data": str(data), "storage": storage}
        self.tuners: list[Tuner] = []

    def tune(self, **options: str) -> Tuner:
        """``python -m shopee_mlflow tune``"""
        given = {**self._options, **options}
        words = [f"--{name}={value}" for name, value in given.items()]
        return self._start(["shopee_mlflow", "tune", *words])

    def project(self) -> Tuner:
        """``mlflow run . -e tune``"""
        words = [w for name, value in self._options.items() for w in ("-P", f"{name}={value}")]
        command = ["mlflow", "run", str(ROOT), "-e", "tune", *words]
        return self._start([*command, "--env-manager", "local", "--experiment-name", "shopee"])

    def _start(self, command: list[str]) -> Tuner:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.tuners.append(Tuner(command, env, self.folder))
        return self.tuners[-1]

    def output(self) -> str:
        return "".join(tuner.output() for tuner in self.tuners)

    # --- what is there ---

    def runs(self) -> list[Run]:
        found = mlflow.MlflowClient().get_experiment_by_name("shopee")
        return mlflow.MlflowClient().search_runs([found.experiment_id]) if found else []

    def trial_runs(self, status: str | None = None) -> list[Run]:
        runs = [r for r in self.runs() if "mlflow.parentRunId" in r.data.tags]
        return [r for r in runs if status is None or r.info.status == status]

    def parent(self) -> Run:
        """The one run of the study; those that only point to it aside."""
        tops = [r for r in self.runs() if "mlflow.parentRunId" not in r.data.tags]
        mine = [r for r in tops if "continues" not in r.data.tags]
        assert len(mine) == 1, f"{[(r.info.run_name, r.info.status) for r in mine]}{self.output()}"
        return mine[0]

    def at_work(self, share: float = 1.0) -> set[int]:
        """Processes in the epochs of a trial, which has at most this share of them behind it.

        The study tells: it has every epoch at once, while metrics are sent once a second.
        """
        try:
            trials = self.trials()
        except KeyError:  # there is no study yet
            return set()
        return {
            int(trial.user_attrs[OWNER].split(":")[-2])
            for trial in trials
            if trial.state == TrialState.RUNNING
            and 0 < len(trial.intermediate_values) <= share * self.epochs
        }

    def study_file(self) -> Path:
        return study_file(self.storage, STUDY, local_folder())

    def trials(self) -> list[FrozenTrial]:
        if self._opened is None:
            self._opened = open_storage(self.storage, self.study_file())
        return optuna.load_study(study_name=STUDY, storage=self._opened).get_trials()

    # --- what must hold at the end ---

    def check_finished(self) -> None:
        """The total is there once, nothing is open, and nothing that was begun is lost."""
        trials = self.trials()
        final = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        told = f"{[(t.number, t.state.name, t.user_attrs) for t in trials]}{self.output()}"
        assert len(final) == TOTAL, told
        # Two processes may repeat one trial; the second repeat is not needed and may wait for ever.
        repeats = [t.user_attrs.get("repeats") for t in trials]
        doubles = [t for t in trials if t.user_attrs.get("repeats", -1) in repeats[: t.number]]
        left = [t for t in trials if t not in [*final, *doubles]]
        assert {t.state for t in left} <= {TrialState.FAIL}, told
        assert not any("failure" in t.user_attrs for t in trials), told
        assert [t.params | t.user_attrs["fixed"] for t in final if "baseline" in t.user_attrs] == [
            {"lr": 0.001, "batch_size": 75}
        ], told
        for trial in trials:
            if trial.state == TrialState.FAIL and trial.params:
                last = self._repeat_of(trial, trials)
                assert last in final, f"trial {trial.number} is lost: {told}"
                assert last.params | trial.params == last.params, told
        self._check_runs(final)

    def _repeat_of(self, trial: FrozenTrial, trials: list[FrozenTrial]) -> FrozenTrial | None:
        """The last of those that repeat each other; of two that repeat one, the earlier counts."""
        following = [t for t in trials if t.user_attrs.get("repeats") == trial.number]
        if not following:
            return trial if trial.state != TrialState.FAIL else None
        return self._repeat_of(following[0], trials)

    def _check_runs(self, final: list[FrozenTrial]) -> None:
        parent, nested = self.parent(), self.trial_runs()
        assert parent.info.status == "FINISHED", self.output()
        assert "failure" not in parent.data.tags, self.output()
        states = Counter((r.info.status, r.data.tags.get("state")) for r in nested)
        ended = {("FINISHED", "complete"), ("FINISHED", "pruned")}
        cut_short = {("KILLED", "interrupted"), ("FAILED", "interrupted")}
        assert set(states) <= ended | cut_short, f"{states}{self.output()}"
        numbers = sorted(int(r.data.tags["trial"]) for r in nested if r.info.status == "FINISHED")
        assert numbers == sorted(t.number for t in final), f"{states}{self.output()}"
        assert {r.data.tags["mlflow.parentRunId"] for r in nested} == {parent.info.run_id}
        assert int(parent.data.tags["trials_complete"]) == sum(
            t.state == TrialState.COMPLETE for t in final
        )
        models = mlflow.search_logged_models(
            experiment_ids=[parent.info.experiment_id], output_format="list"
        )
        assert [m.source_run_id for m in models] == [parent.info.run_id], self.output()
        versions = mlflow.MlflowClient().search_model_versions("name = 'shopee-classifier'")
        assert [v.run_id for v in versions] == [parent.info.run_id], self.output()


@contextmanager
def searching(
    folder: Path, data: Path, storage: str = "auto", epochs: int = EPOCHS
) -> Iterator[Searches]:
    """A search with a tracking store of its own; all its processes are ended with the test.

    :param epochs: of a trial; longer ones wait for processes that start late.
    """
    store = new_store(folder / "runs.db")
    searches = Searches(folder, data, storage, epochs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store)
        try:
            yield searches
        finally:
            for tuner in searches.tuners:
                tuner.clear()
