"""Repeated calls of a search: resumed, out of time, or refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import yaml
from conftest import MakeCatalog
from small_search import (
    CLIENT,
    SPACE,
    Call,
    quick_search,
    runs,
    states,
    text,
)

from shopee_mlflow.errors import ConfigError, ModelError, StudyError, TrackingError, TrainingError
from shopee_mlflow.tuning import queue as queue_module
from shopee_mlflow.tuning import study as study_module
from shopee_mlflow.tuning.trials import run_trial


@pytest.fixture
def call(make_catalog: MakeCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    return quick_search(make_catalog(), tmp_path, monkeypatch)


# --- gone on with ---


@pytest.mark.slow
def test_a_second_call_does_nothing_twice(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = call()
    assert first is not None
    before = runs(tmp_path)
    capsys.readouterr()
    assert call() is None
    parent, nested = runs(tmp_path)
    assert [r.info.run_id for r in nested] == [r.info.run_id for r in before[1]]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == before[0].data.metrics
    out = capsys.readouterr().out
    assert "3 of 3 trials have already ended" in out
    assert "**Best: trial " in out
    assert "nothing left to do; increase n_trials to continue" in out


@pytest.mark.slow
@pytest.mark.parametrize("n_trials", ["3", "4"])
def test_a_study_whose_run_was_deleted_continues_in_a_new_one(
    n_trials: str, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    first = call()
    assert first is not None
    CLIENT().delete_run(first.run_id)
    second = call({"n_trials": n_trials})
    assert second is not None
    assert second.run_id != first.run_id
    assert second.trials.iloc[:3].equals(first.trials)
    assert len(second.trials) == int(n_trials)
    run = CLIENT().get_run(second.run_id)
    assert run.info.status == "FINISHED"
    assert "data_digest" in run.data.tags
    assert run.data.metrics["test_accuracy"] == second.scores["test_accuracy"]
    assert f"run {first.run_id} of study" in capsys.readouterr().out


@pytest.mark.slow
def test_a_greater_total_goes_on_in_the_same_run(call: Call, tmp_path: Path) -> None:
    first, second = call(n_trials=2), call({"n_trials": "4"})
    assert first is not None
    assert second is not None
    assert (second.run_id, second.study) == (first.run_id, first.study)
    parent, nested = runs(tmp_path)
    assert states(nested) == [("FINISHED", "complete")] * 4
    assert second.trials["lr"].nunique() == 4
    assert second.trials.iloc[:2].equals(first.trials)
    assert parent.data.tags["trials_complete"] == "4"
    assert (parent.data.params["n_trials"], parent.data.tags["n_trials"]) == ("2", "4")
    looks = "once" if first.best == second.best else "2 times, for 2 best trials"
    assert f"was used {looks}, after" in text(parent, "tune/summary.md")


@pytest.mark.slow
def test_the_run_that_mlflow_has_made_is_the_parent_or_points_to_it(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    experiment = CLIENT().create_experiment(f"made-for-{tmp_path.name}")
    mlflow.set_experiment(experiment_id=experiment)
    for _ in range(2):
        run = CLIENT().create_run(experiment)
        made.append(run.info.run_id)
        monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
        call(experiment=f"made-for-{tmp_path.name}")
    assert len(CLIENT().search_runs([experiment])) == 3 + 2
    parent, aside = (CLIENT().get_run(run_id) for run_id in made)
    assert parent.data.tags["study"].startswith("cnn-")
    assert aside.data.tags["continues"] == parent.info.run_id
    assert "study" not in aside.data.tags


# --- time ---


@pytest.mark.slow
def test_time_that_is_up_ends_the_search_well(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour passes with the first trial."""
    clock = SimpleNamespace(time=queue_module.time.time, sleep=queue_module.time.sleep)
    now = clock.time

    def slow(*given: Any) -> None:
        run_trial(*given)
        clock.time = lambda: now() + 3600

    with monkeypatch.context() as patch:
        patch.setattr(queue_module, "time", clock)
        patch.setattr("shopee_mlflow.tuning.workers.run_trial", slow)
        first = call(timeout=1800)
    assert first is not None
    parent, nested = runs(tmp_path)
    assert parent.info.status == "FINISHED"
    assert states(nested) == [("FINISHED", "complete")]
    summary, best = (text(parent, f"tune/{name}") for name in ("summary.md", "best.yaml"))
    assert "Original's settings: they are the best trial; the search found nothing" in summary
    assert "Default settings: no trial with them has completed, so there is no" in summary
    # Searched options are told even where they are the defaults of train.
    assert yaml.safe_load(best).items() >= {"lr": 0.001, "batch_size": 75}.items()
    second = call()
    assert second is not None
    assert second.run_id == first.run_id
    assert list(second.trials["state"]) == ["complete"] * 3


@pytest.mark.fault
def test_an_apostrophe_in_a_study_name_ends_no_filter(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run of a study that was begun without one is looked for by the study's name."""

    def refuse(*_: object, **__: object) -> None:
        raise TrackingError("the experiment is deleted")

    monkeypatch.setattr(study_module, "CREATOR_SECONDS", 0.0)
    CLIENT().create_experiment(tmp_path.name)
    mine = {"study": f"Ann's {tmp_path.name}"}
    with monkeypatch.context() as patch:
        patch.setattr("shopee_mlflow.tuning.parent.open_run", refuse)
        with pytest.raises(TrackingError, match="is deleted"):
            call(mine, n_trials=1)
    assert call(mine, n_trials=1) is not None
    assert runs(tmp_path)[0].data.tags["study"] == mine["study"]


@pytest.mark.slow
def test_time_that_is_up_before_the_first_trial_is_told(call: Call, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as raised:
        call(timeout=1e-6)
    assert "none of its 0 trials completed before the timeout. The study is kept; repeat " in (
        str(raised.value)
    )
    assert runs(tmp_path)[1] == []
    assert call() is not None


# --- what is refused, and leaves what is there alone ---


def test_another_search_under_the_same_name_is_refused(call: Call, tmp_path: Path) -> None:
    mine = {"study": f"mine-{tmp_path.name}"}
    call(mine, n_trials=1)
    with pytest.raises(StudyError, match=r"space.lr: was 0.01 to 0.1, log, is 0.02 to 0.1, log"):
        call(mine, n_trials=1, space={**SPACE, "lr": {"low": 0.02, "high": 0.1, "log": True}})
    assert runs(tmp_path)[0].info.status == "FINISHED"


@pytest.mark.slow
def test_other_data_under_the_same_name_are_refused(
    call: Call, tmp_path: Path, make_catalog: MakeCatalog
) -> None:
    mine = {"study": f"mine-{tmp_path.name}"}
    call(mine, n_trials=1)
    before = runs(tmp_path)
    other = make_catalog(groups=4, name="other")
    with pytest.raises(StudyError, match="uses other data .data_digest"):
        call(mine, n_trials=2, data=str(other))
    parent, nested = runs(tmp_path)
    assert parent.info.status == "FINISHED"
    assert "failure" not in parent.data.tags
    assert len(nested) == len(before[1])
    assert call(mine, n_trials=2) is not None


def test_a_stage_that_is_none_opens_no_run(call: Call, tmp_path: Path) -> None:
    space = {"freeze": ["layers.8", "layers.99"], "lr": [0.01, 0.1]}
    with pytest.raises(ModelError, match=r"freeze=layers.99: mnasnet0_5 cannot be cut there"):
        call(model="mnasnet0_5", space=space)
    assert CLIENT().get_experiment_by_name(tmp_path.name) is None


def test_an_unknown_architecture_opens_no_run(call: Call, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Did you mean mnasnet0_5"):
        call(models="cnn,mnasnet05")
    assert CLIENT().get_experiment_by_name(tmp_path.name) is None


@pytest.mark.parametrize(
    ("storage", "error", "message"),
    [
        ("sqlite:///trials.db", ConfigError, "SQLite serves one process only"),
        (
            "postgresql://tuner:secret@127.0.0.1:1/optuna",
            StudyError,
            r"storage=postgresql://tuner:\*\*\*@127.0.0.1:1/optuna: cannot be reached: .*refused",
        ),
    ],
)
def test_a_storage_that_cannot_serve_opens_no_run(
    call: Call, tmp_path: Path, storage: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        call({"storage": storage})
    assert "secret" not in str(raised.value)
    assert CLIENT().get_experiment_by_name(tmp_path.name) is None


@pytest.mark.slow
def test_an_end_that_fails_is_done_again(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise TrackingError("the registry is away")

    with monkeypatch.context() as patch:
        patch.setattr("shopee_mlflow.verbs.tune.register", refuse)
        with pytest.raises(TrackingError, match="the registry is away"):
            call(n_trials=2, register=True)
    assert runs(tmp_path)[0].info.status == "FAILED"
    asked: list[tuple[str, bool]] = []

    def note(run_id: str, promote: bool) -> None:
        asked.append((run_id, promote))

    monkeypatch.setattr("shopee_mlflow.verbs.tune.register", note)
    result = call(n_trials=2, register=True, promote=True)
    assert result is not None
    assert asked == [(result.run_id, True)]
    assert runs(tmp_path)[0].info.status == "FINISHED"
