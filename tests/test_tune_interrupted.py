"""A search that is stopped, or whose trials are: the runs and the study agree."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import MakeCatalog
from mlflow.exceptions import MlflowException
from optuna.trial import Trial, TrialState
from small_search import CLIENT, Call, quick_search, runs, states, wrap_fit

from shopee_mlflow.errors import TrackingError
from shopee_mlflow.tracking.mlflow_run_log import MlflowRunLog
from shopee_mlflow.tracking.signals import Stopped
from shopee_mlflow.tuning.queue import TrialQueue
from shopee_mlflow.tuning.study import Search


@pytest.fixture
def call(make_catalog: MakeCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    return quick_search(make_catalog(), tmp_path, monkeypatch)


@pytest.mark.slow
def test_an_interrupted_search_repeats_the_trial_and_goes_on(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(training: int, epoch: int) -> None:
        if (training, epoch) == (1, 2):
            raise KeyboardInterrupt("Ctrl-C")

    with monkeypatch.context() as patch:
        wrap_fit(patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            call()
    parent, nested = runs(tmp_path)
    assert (parent.info.status, parent.data.tags["failure"]) == ("KILLED", "Ctrl-C")
    assert states(nested) == [("FINISHED", "complete"), ("KILLED", "interrupted")]

    result = call()
    assert result is not None
    assert result.run_id == parent.info.run_id
    parent, nested = runs(tmp_path)
    assert parent.info.status == "FINISHED"
    assert "failure" not in parent.data.tags
    complete = ("FINISHED", "complete")
    assert states(nested) == [complete, ("KILLED", "interrupted"), complete, complete]
    cut, again = nested[1], nested[2]
    assert again.data.tags["repeats"] == "1"
    assert again.data.params == cut.data.params
    assert list(result.trials["trial"]) == [0, 2, 3]
    assert parent.data.tags["trials_complete"] == "3"


@pytest.mark.slow
def test_the_originals_and_default_settings_are_repeated_as_such(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(training: int, epoch: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        wrap_fit(patch, interrupt)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                call(n_trials=2)
    result = call(n_trials=2)
    assert result is not None
    assert list(result.trials["baseline"]) == [True, False]
    assert list(result.trials["default"]) == [False, True]
    assert list(result.trials["lr"]) == [0.001, 0.02]
    names = [r.info.run_name for r in runs(tmp_path)[1]]
    kinds = ("original", "defaults", "original", "defaults")
    assert names == [f"trial {number} ({kind})" for number, kind in enumerate(kinds)]


@pytest.mark.slow
def test_a_store_that_does_not_answer_ends_the_search_not_the_trial(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MlflowRunLog.log_metrics
    calls: list[int] = []

    def log_metrics(self: MlflowRunLog, *given: Any, **named: Any) -> None:
        calls.append(1)
        if "step" in named and len(calls) > 3:
            raise MlflowException("gone away")
        log(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowRunLog, "log_metrics", log_metrics)
        with pytest.raises(TrackingError, match="failed: gone away"):
            call()
    parent, nested = runs(tmp_path)
    assert parent.info.status == "FAILED"
    assert states(nested)[-1] == ("FAILED", "interrupted")
    result = call()
    assert result is not None
    assert list(result.trials["state"]) == ["complete"] * 3


@pytest.mark.slow
def test_a_trial_that_was_given_to_another_is_not_told_twice(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As to a machine that was asleep, whose heart had stopped for the others."""
    searches: list[Search] = []
    trials = Search.trials

    def noted(self: Search, deadline: float | None = None) -> Any:
        searches.append(self)
        return trials(self, deadline)

    def take_away(training: int, epoch: int) -> None:
        if (training, epoch) == (1, 2):
            searches[0].study.tell(1, state=TrialState.FAIL)

    monkeypatch.setattr(Search, "trials", noted)
    wrap_fit(monkeypatch, take_away)
    result = call()
    assert result is not None
    _, nested = runs(tmp_path)
    assert states(nested)[1] == ("KILLED", "interrupted")
    assert nested[1].data.tags["failure"] == "presumed dead and repeated by another process"
    assert nested[2].data.tags["repeats"] == "1"
    assert list(result.trials["trial"]) == [0, 2, 3]


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize(
    ("state", "status", "failure"),
    [
        ("complete", "FINISHED", None),
        ("pruned", "FINISHED", None),
        ("failed", "FAILED", "RuntimeError: out of memory"),
    ],
)
def test_a_stop_after_the_result_of_a_trial_does_not_change_it(
    state: str,
    status: str,
    failure: str | None,
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The study has the result; the run has neither its state nor its end."""
    end = TrialQueue.end

    def end_and_stop(self: TrialQueue, trial: Trial, *given: Any) -> bool:
        ended = end(self, trial, *given)
        if trial.number == 1:
            signal.raise_signal(signal.SIGTERM)
        return ended

    def should_stop(self: Search, trial: Trial, epoch: int, score: float) -> bool:
        trial.report(score, epoch)
        return state == "pruned" and trial.number == 1

    def fail(training: int, epoch: int) -> None:
        if state == "failed" and training == 1:
            raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(TrialQueue, "end", end_and_stop)
        patch.setattr(Search, "should_stop", should_stop)
        wrap_fit(patch, fail)
        with pytest.raises(Stopped, match="SIGTERM received"):
            call()
    parent, nested = runs(tmp_path)
    assert (parent.info.status, parent.data.tags["failure"]) == ("KILLED", "SIGTERM received")
    assert states(nested) == [("FINISHED", "complete"), (status, state)]
    assert nested[1].data.tags.get("failure") == failure

    result = call()
    assert result is not None
    assert list(result.trials["state"]) == ["complete", state, "complete"]
    _, nested = runs(tmp_path)
    assert states(nested) == [
        (s, w)
        for w, s in zip(
            ["complete", state, "complete"], ["FINISHED", status, "FINISHED"], strict=True
        )
    ]


@pytest.mark.slow
@pytest.mark.fault
def test_an_error_in_the_course_of_a_stop_does_not_fail_the_trial(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a file that is closed twice, since the stop came while it was being opened."""

    def fail(training: int, epoch: int) -> None:
        if training == 1:
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                raise OSError("Bad file descriptor")

    wrap_fit(monkeypatch, fail)
    with pytest.raises(Stopped, match="SIGTERM received"):
        call()
    _, nested = runs(tmp_path)
    assert states(nested) == [("FINISHED", "complete"), ("KILLED", "interrupted")]


@pytest.mark.slow
@pytest.mark.fault
def test_a_run_that_was_ended_unlike_its_trial_is_corrected(call: Call, tmp_path: Path) -> None:
    """As after a stop while the study's storage could not be reached."""
    call(n_trials=2)
    parent, nested = runs(tmp_path)
    run_id = nested[1].info.run_id
    for name, value in {"state": "interrupted", "failure": "SIGTERM received"}.items():
        CLIENT().set_tag(run_id, name, value)
    CLIENT().set_terminated(run_id, "KILLED", 1_700_000_000_000)
    with mlflow.start_run(
        experiment_id=parent.info.experiment_id, parent_run_id=parent.info.run_id
    ) as other:
        pass  # a run that somebody has put beside the trials
    CLIENT().set_terminated(other.info.run_id, "FAILED")

    call(n_trials=3)
    corrected = CLIENT().get_run(run_id)
    assert states([corrected]) == [("FINISHED", "complete")]
    assert "failure" not in corrected.data.tags
    assert corrected.info.end_time == 1_700_000_000_000
    untouched = CLIENT().get_run(other.info.run_id)
    assert (untouched.info.status, untouched.data.tags.get("state")) == ("FAILED", None)
