"""Studies: creating, joining and resuming one, and refusing a different one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import Trial, TrialState
from small_search import plan_of

from shopee_mlflow.errors import ConfigError, StudyError
from shopee_mlflow.tuning import study as study_module
from shopee_mlflow.tuning.queue import FAILURE, TrialQueue
from shopee_mlflow.tuning.sampling import make_pruner, suggest
from shopee_mlflow.tuning.space import SearchPlan
from shopee_mlflow.tuning.storage import open_storage
from shopee_mlflow.tuning.study import Search
from shopee_mlflow.tuning.trial_results import BASELINE, FIXED, VAL_LOSS

LR = {"low": 0.01, "high": 0.1, "log": True}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a study's creator, who is this process."""
    monkeypatch.setattr(study_module, "CREATOR_SECONDS", 0.0)


def plan(tmp_path: Path, content: dict[str, Any] | None = None, **cli_options: Any) -> SearchPlan:
    given = {"model": "cnn", "space": {"lr": LR, "momentum": [0.5, 0.9]}, **(content or {})}
    return plan_of(tmp_path, given, **{"n_trials": 4, **cli_options})


def search(tmp_path: Path, content: dict[str, Any] | None = None, **cli_options: Any) -> Search:
    return Search(plan(tmp_path, content, **cli_options), tmp_path)


def journals(tmp_path: Path) -> list[str]:
    return [file.name for file in (tmp_path / "studies").glob("*.journal")]


def run(found: Search, *results: tuple[float, float]) -> list[dict[str, Any]]:
    """Let the next trials have these accuracies and losses; returns what they tried."""
    tried = []
    trials = found.trials()
    for accuracy, loss in results:
        trial, values = next(trials)
        tried.append(values)
        found.queue.end(trial, accuracy, {VAL_LOSS: loss})
    return tried


# --- the beginning ---


def test_the_first_trial_has_the_originals_settings(tmp_path: Path) -> None:
    first, second, third = run(search(tmp_path), (0.5, 1.0), (0.6, 1.0), (0.7, 1.0))
    assert first == {"lr": 0.001, "momentum": 0.9}  # its lr lies outside of the space
    assert second == {"lr": 0.02, "momentum": 0.9}, "the package's defaults"
    assert 0.01 < third["lr"] <= 0.1
    found = search(tmp_path)
    assert [t.baseline for t in found.results()] == [True, False, False]
    assert [t.default for t in found.results()] == [False, True, False]
    assert found.results()[0].values == first


def test_settings_that_are_the_originals_and_the_defaults_are_one_trial(tmp_path: Path) -> None:
    found = search(tmp_path, {"space": {"momentum": [0.5, 0.9], "label_smoothing": [0.0, 0.1]}})
    (waiting,) = found.results()
    assert waiting.values == {"momentum": 0.9, "label_smoothing": 0.0}
    assert (waiting.baseline, waiting.default) == (True, True)


def test_a_single_trial_has_the_originals_settings(tmp_path: Path) -> None:
    (waiting,) = search(tmp_path, n_trials=1).results()
    assert (waiting.baseline, waiting.default) == (True, False)


def test_each_architecture_begins_with_the_originals_settings(tmp_path: Path) -> None:
    found = search(tmp_path, {"model": "effnet"}, models="cnn,resnet18")
    assert [t.values["model"] for t in found.results()] == ["cnn", "resnet18", "cnn"]
    assert [t.default for t in found.results()] == [False, False, True]
    assert [t.state for t in found.results()] == ["waiting"] * 3
    tried = run(found, (0.5, 1.0), (0.6, 1.0), (0.7, 1.0), (0.8, 1.0))
    assert [v["model"] for v in tried[:2]] == ["cnn", "resnet18"]
    assert tried[3]["model"] in ("cnn", "resnet18")


def test_the_same_call_goes_on(tmp_path: Path) -> None:
    first = search(tmp_path)
    assert first.created
    run(first, (0.5, 1.0))
    again = search(tmp_path, n_trials=9)
    assert not again.created
    assert again.name == first.name
    assert (len(again.results()), again.finished()) == (2, 1)


def test_a_study_that_goes_on_does_not_try_the_same_again(tmp_path: Path) -> None:
    tried = run(search(tmp_path), (0.5, 1.0), (0.6, 1.0), (0.4, 1.0))
    tried += run(search(tmp_path, n_trials=6), (0.5, 1.0), (0.6, 1.0), (0.4, 1.0))
    assert len({values["lr"] for values in tried}) == 6


def test_the_same_seed_tries_the_same_and_another_another(tmp_path: Path) -> None:
    tried = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        place = tmp_path / name
        place.mkdir()
        tried.append(run(search(place, seed=seed), (0.5, 1.0), (0.6, 1.0), (0.4, 1.0)))
    assert tried[0] == tried[1]
    assert tried[0][:2] == tried[2][:2]
    assert tried[0][2] != tried[2][2]


@pytest.mark.parametrize("queued", [0, 1, 2, 3])
def test_a_study_whose_creator_died_at_its_beginning_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queued: int
) -> None:
    """A power cut after the study was made, and before all that it begins with was in it."""
    wanted = {"models": "cnn,resnet18"}
    enqueue = TrialQueue.enqueue
    done: list[int] = []

    def cut(self: TrialQueue, values: dict[str, Any], **about: Any) -> None:
        if len(done) == queued:
            raise KeyboardInterrupt
        done.append(1)
        enqueue(self, values, **about)
        if len(done) == queued == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrialQueue, "enqueue", cut)
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path, {"model": "effnet"}, **wanted)
    found = search(tmp_path, {"model": "effnet"}, **wanted)
    assert found.created
    assert [t.values["model"] for t in found.results()] == ["cnn", "resnet18", "cnn"]
    assert not search(tmp_path, {"model": "effnet"}, **wanted).created


def test_who_comes_second_waits_until_the_first_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = plan(tmp_path)
    begin = Search._begin
    late: list[Search] = []
    monkeypatch.setattr(Search, "_begin", lambda self: late.append(self))
    Search(content, tmp_path)
    monkeypatch.setattr(Search, "_begin", begin)
    monkeypatch.setattr(study_module, "CREATOR_SECONDS", 20.0)
    monkeypatch.setattr(study_module.time, "sleep", lambda _: begin(late[0]))
    second = Search(content, tmp_path)
    assert not second.created
    assert len(second.results()) == 2


# --- what is another study ---


def test_another_space_under_the_same_name_is_refused(tmp_path: Path) -> None:
    run(search(tmp_path, study="mine"), (0.5, 1.0))
    with pytest.raises(StudyError) as raised:
        search(tmp_path, {"space": {"lr": {"low": 0.02, "high": 0.1}}, "epochs": 3}, study="mine")
    assert str(raised.value).splitlines() == [
        "study=mine: is another search. Start another study with study=NAME, or repeat the "
        "original command:",
        "  baseline.momentum: was 0.9, is not set",
        "  epochs: was 20, is 3",
        "  momentum: was not set, is 0.9",
        "  space.lr: was 0.01 to 0.1, log, is 0.02 to 0.1",
        "  space.momentum: was one of 0.5, 0.9, is not set",
    ]
    assert search(tmp_path, study="mine").finished() == 1


def test_other_data_are_refused(tmp_path: Path) -> None:
    found = search(tmp_path, study="mine")
    assert not found.has_data
    found.check_data("1111")
    found.keep_data("1111")
    again = search(tmp_path, study="mine")
    assert again.has_data
    again.check_data("1111")
    with pytest.raises(StudyError) as raised:
        again.check_data("2222")
    assert str(raised.value) == (
        "study=mine: uses other data (data_digest 1111, now 2222); its trials cannot be compared "
        "with new ones. Start another study with study=NAME."
    )


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_study_of_something_else_is_left_alone(tmp_path: Path, direction: str) -> None:
    file = tmp_path / "file.journal"
    theirs = optuna.create_study(
        storage=open_storage(str(file), file), study_name="mine", direction=direction
    )
    if direction == "maximize":
        theirs.tell(theirs.ask(), 1.0)
    with pytest.raises(StudyError, match="study=mine: exists and does not belong to this project"):
        search(tmp_path, study="mine", storage=str(file))
    assert theirs.user_attrs == {}


def test_several_studies_share_a_file(tmp_path: Path) -> None:
    file = str(tmp_path / "all.journal")
    one, two = search(tmp_path, storage=file), search(tmp_path, storage=file, epochs=3)
    run(one, (0.5, 1.0))
    assert one.name != two.name
    assert (one.finished(), two.finished()) == (1, 0)
    assert not journals(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            {"sampler_settings": {"startup": 3}},
            r"sampler_settings: Optuna's TPESampler does not accept {'startup': 3}: .*startup",
        ),
        (
            {"sampler": "random", "sampler_settings": {"multivariate": True}},
            r"sampler_settings: Optuna's RandomSampler does not accept {'multivariate': True}",
        ),
        (
            {"pruner_settings": {"n_startup_trials": -1}},
            r"pruner_settings: Optuna's MedianPruner does not accept {'n_startup_trials': -1}: ",
        ),
        (
            {"pruner": "hyperband", "pruner_settings": {"n_warmup_steps": 1}},
            r"pruner_settings: Optuna's HyperbandPruner does not accept {'max_resource': 20, ",
        ),
        ({"sampler_settings": {"seed": 3}}, "sampler_settings: seed: use the option seed"),
    ],
)
def test_settings_that_optuna_does_not_take_leave_no_study_behind(
    tmp_path: Path, content: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        search(tmp_path, content, study="mine")
    assert search(tmp_path, study="mine").created


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("pruner", ["median", "hyperband", "none"])
def test_each_sampler_and_pruner_works(tmp_path: Path, sampler: str, pruner: str) -> None:
    content = {"space": {"lr": LR, "batch_size": {"low": 4, "high": 64, "log": True}}, "epochs": 9}
    found = search(tmp_path, {**content, "sampler": sampler, "pruner": pruner}, n_trials=12)
    pruned = 0
    for trial, values in found.trials():
        assert isinstance(values["batch_size"], int)
        stopped = any(found.should_stop(trial, e, 1 / (trial.number + 2)) for e in range(1, 10))
        pruned += stopped
        assert not (stopped and trial.number < 2)
        found.queue.end(trial, 0.5, {VAL_LOSS: 1.0})
    assert found.finished() == 12
    assert bool(pruned) == (pruner != "none")


def test_hyperband_knows_the_longest_training(tmp_path: Path) -> None:
    content = {"pruner": "hyperband", "epochs": 9}
    assert make_pruner(plan(tmp_path, content))._max_resource == 9
    space = {"epochs": {"low": 3, "high": 27}, "lr": LR}
    assert make_pruner(plan(tmp_path, {"pruner": "hyperband", "space": space}))._max_resource == 27


def test_the_originals_and_default_settings_are_never_pruned(tmp_path: Path) -> None:
    found = search(tmp_path, {"pruner_settings": {"n_startup_trials": 0}}, n_trials=9)
    good = optuna.trial.create_trial(
        value=1.0, intermediate_values={1: 1.0}, user_attrs={"planned": {}}
    )
    found.study.add_trials([good] * 4)
    trials = found.trials()
    for expected in (False, False, True):
        trial, _ = next(trials)
        assert found.should_stop(trial, 1, 0.0) is expected
        found.queue.end(trial, 0.0, {VAL_LOSS: 9.0})


# --- results ---


def test_the_best_has_the_highest_accuracy_then_the_lowest_loss_then_came_first(
    tmp_path: Path,
) -> None:
    found = search(tmp_path, n_trials=9)
    assert found.best() is None
    run(found, (0.5, 1.0), (0.9, 3.0), (0.9, 2.0), (0.9, 2.0), (0.8, 0.1))
    chosen = [found.best(), found.best(baseline=True), found.best(default=True)]
    assert [trial and trial.number for trial in chosen] == [2, 0, 1]


@pytest.mark.parametrize(
    ("accuracy", "loss", "expected"),
    [(0.91, 9.0, True), (0.9, 1.9, True), (0.9, 2.0, True), (0.9, 2.1, False), (0.8, 0.1, False)],
)
def test_weights_are_kept_of_all_that_may_be_the_best(
    tmp_path: Path, accuracy: float, loss: float, expected: bool
) -> None:
    """Of equal ones the lower number is the best, and may have been the last to end."""
    found = search(tmp_path)
    assert found.is_best(0.0, 99.0)
    run(found, (0.9, 2.0))
    assert found.is_best(accuracy, loss) is expected


def test_neither_pruned_nor_failed_trials_are_the_best(tmp_path: Path) -> None:
    found = search(tmp_path)
    trials = found.trials()
    pruned, _ = next(trials)
    found.should_stop(pruned, 1, 0.9)
    found.queue.end(pruned, None, {VAL_LOSS: 0.1}, TrialState.PRUNED)
    failed, _ = next(trials)
    found.queue.end(failed, None, {FAILURE: "out of memory"}, TrialState.FAIL)
    assert found.best() is None
    table = found.table().set_index("trial")
    assert list(table["state"]) == ["pruned", "failed"]
    assert table.loc[0, "score"] == 0.9
    assert table.loc[1, "failure"] == "out of memory"
    assert found.state_of(0) == ("pruned", "")
    assert found.state_of(1) == ("failed", "out of memory")
    assert found.state_of(7)[0] == "interrupted"


def test_cut_short_trials_are_in_no_table(tmp_path: Path) -> None:
    found = search(tmp_path)
    trials = found.trials()
    first, values = next(trials)
    found.queue.interrupt(first)
    assert found.state_of(0) == ("interrupted", "its process was ended; the trial is repeated")
    default, row = found.table().to_dict("records")
    assert (default["trial"], default["state"], default["default"]) == (1, "waiting", True)
    assert (row["trial"], row["state"], row["baseline"]) == (2, "waiting", True)
    # What waits to be repeated has its values already.
    assert {name: row[name] for name in values} == values


def test_a_trial_given_to_another_before_its_values_were_chosen_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = search(tmp_path)
    seen: list[int] = []

    def late(trial: Trial, *given: Any) -> Any:
        seen.append(trial.number)
        if trial.number == 0:
            trial.study.tell(trial, state=TrialState.FAIL)  # another process presumes us dead
        return suggest(trial, *given)

    monkeypatch.setattr(study_module, "suggest", late)
    trial, values = next(found.trials())
    assert (trial.number, values["lr"]) == (1, 0.02)
    again, values = next(found.trials())
    assert values["lr"] == 0.001
    assert again.user_attrs[BASELINE] is True
    assert again.user_attrs[FIXED] == {"lr": 0.001}


# --- the end of a study ---


def test_the_end_is_done_once_for_as_many_trials(tmp_path: Path) -> None:
    found = search(tmp_path)
    run(found, (0.5, 1.0))
    ticket = next(found.finishing("run").trials())
    found.finishing("run").end(ticket, 0.5)
    assert list(found.finishing("run").trials()) == []
    run(found, (0.6, 1.0))
    assert len([found.finishing("run").end(t, 0.5) for t in found.finishing("run").trials()]) == 1


def test_an_end_that_failed_is_done_again(tmp_path: Path) -> None:
    ending = search(tmp_path).finishing("run")
    ending.interrupt(next(ending.trials()))
    ticket = next(ending.trials())
    assert ending.end(ticket, 0.5)


def test_uses_of_the_test_split_are_counted(tmp_path: Path) -> None:
    found = search(tmp_path)
    assert [found.count_tested(n) for n in (3, 3, 5)] == [1, 1, 2]
    assert search(tmp_path).count_tested(8) == 3
