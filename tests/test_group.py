"""Several processes train one model: the history of one process, each photo counted once."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import torch.distributed.run
from conftest import MakeCatalog, draw_photo
from new_store import new_store
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from tuners import process_of
from warm_process import WarmProcess

from shopee_mlflow.config import TrainConfig, TuneConfig, resolve
from shopee_mlflow.data.batches import Batches, PixelSource
from shopee_mlflow.data.transforms import transform_named
from shopee_mlflow.errors import ConfigError, TrackingError, TrainingError
from shopee_mlflow.modeling.device import Machine
from shopee_mlflow.modeling.distributed import (
    ALONE,
    STORE_VARIABLE,
    TIMEOUT_VARIABLE,
    Group,
    joined_group,
)
from shopee_mlflow.training.checkpoints import checkpoints_of
from shopee_mlflow.training.job import (
    check_group,
    delete_checkpoints,
    remember_run,
    resumed_after_restart,
    training_job,
)
from shopee_mlflow.training.launch import start_group
from shopee_mlflow.verbs.train import TrainResult, train

ROOT = Path(__file__).parents[1]
OPTIONS = {"model": "cnn", "image_size": "32", "epochs": "3", "batch_size": "10", "lr": "0.02"}
NAMES = ["train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"]


def batches(photos: int, size: int, share: tuple[int, int], learn: bool = True) -> Batches:
    pixels = np.arange(photos, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones((4, 4, 3), np.uint8)
    return Batches(
        PixelSource(pixels),
        np.arange(photos),
        np.arange(photos),
        size,
        torch.device("cpu"),
        train=learn,
        transform=transform_named("original" if learn else "none"),
        share=share,
    )


@pytest.mark.parametrize("shares", [2, 3, 5])
@pytest.mark.parametrize("photos", [7, 12, 21])
def test_shares_of_a_batch_are_the_batch(photos: int, shares: int) -> None:
    whole = [b.labels.tolist() for b in batches(photos, 5, (0, 1)).epoch(3)]
    parts = [batches(photos, 5, (rank, shares)) for rank in range(shares)]
    for rank, part in enumerate(parts):
        for batch, all_labels in zip(part.epoch(3), whole, strict=True):
            assert batch.all_labels.tolist() == all_labels
            assert batch.own == len(all_labels[rank::shares])
            # An empty share has one photo that does not count, so that nobody waits.
            assert batch.labels.tolist() == (all_labels[rank::shares] or all_labels[:1])
    answered = [batches(photos, 5, (rank, shares), learn=False) for rank in range(shares)]
    places = np.concatenate([part.positions() for part in answered])
    assert sorted(places) == list(range(photos))
    for part in answered:
        labels = [label for batch in part.epoch() for label in batch.labels.tolist()]
        assert labels == part.positions().tolist()


def test_a_process_alone_is_a_group_that_costs_nothing() -> None:
    module, values = torch.nn.Linear(2, 2), torch.ones(3)
    assert ALONE.leads
    assert ALONE.wrap(module, torch.device("cpu")) is module
    assert ALONE.sum(values) is values
    assert ALONE.broadcast("x") == "x"
    ALONE.check_equal({"data": 1})
    assert not ALONE.any(False)


def test_options_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="nproc=9: must be at most batch_size=8"):
        resolve(TrainConfig, {"nproc": "9", "batch_size": "8"})
    with pytest.raises(ConfigError, match="nproc=2: a search runs trials in parallel with jobs"):
        resolve(TuneConfig, {"nproc": "2"})
    with pytest.raises(ConfigError, match="sync_batchnorm=true: needs GPUs"):
        Group(0, 2).wrap(torch.nn.Linear(2, 2), torch.device("cpu"), sync_batchnorm=True)


class Place:
    """A store of its own, and commands that use it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.uri = new_store(folder / "mlflow.db")
        self.env = {**os.environ, "MLFLOW_TRACKING_URI": self.uri, "OMP_NUM_THREADS": "1"}
        self.env["PYTHONUNBUFFERED"] = "1"

    def start(self, *command: str, **env: str) -> WarmProcess:
        return WarmProcess(*command, env={**self.env, **env}, new_session=True, warm_children=True)

    def run(self) -> Any:
        client = mlflow.MlflowClient(self.uri)
        found = client.get_experiment_by_name("shopee")
        assert found is not None
        (run,) = client.search_runs([found.experiment_id])
        return run

    def history(self) -> dict[str, list[float]]:
        run, client = self.run(), mlflow.MlflowClient(self.uri)
        points = {name: client.get_metric_history(run.info.run_id, name) for name in NAMES}
        for name, column in points.items():
            assert [p.step for p in column] == list(range(1, len(column) + 1)), name
        return {name: [p.value for p in column] for name, column in points.items()}


@pytest.fixture
def stopped() -> Iterator[list[WarmProcess]]:
    """Processes that are gone after the test, with all that they have started."""
    started: list[WarmProcess] = []
    yield started
    for process in started:
        if process.poll() is None:
            # Each trainer has a session of its own.
            for trainer in psutil.Process(process.pid).children(recursive=True):
                trainer.kill()
            process.kill()
            process.close()


def words(folder: Path, **options: str) -> list[str]:
    chosen = {**OPTIONS, "data": str(folder), **options}
    return [word for name, value in chosen.items() for word in (f"--{name}", value)]


def torchrun(count: int, *more: str) -> list[str]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *more]
    return [*launcher, "-m", "shopee_mlflow", "train"]


def trained_alone(folder: Path, **options: str) -> TrainResult:
    return train(resolve(TrainConfig, {**OPTIONS, "data": str(folder), **options}))


def check_alike(
    history: dict[str, list[float]], expected: pd.DataFrame, rtol: float = 1e-4
) -> None:
    for name in NAMES:
        np.testing.assert_allclose(history[name], expected[name], rtol=rtol, err_msg=name)


STEPS = {"batch_size": "4", "accumulate": "2", "ema": "0.5", "nesterov": "true"}
PHOTOS = {"mix": "cutmix", "sampling": "balanced", "augment": "light", "class_weights": "balanced"}


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {**STEPS, **PHOTOS}], ids=["plain", "recipe"])
def test_two_processes_give_the_history_of_one(
    make_catalog: MakeCatalog, tmp_path: Path, more: dict[str, str]
) -> None:
    # 10 of each batch and a last one of 7: shares of unequal size. One test photo: one has none.
    folder, both = make_catalog(groups=3, each=7), Place(tmp_path / "both")
    # The project's own way to start several.
    two = both.start("shopee_mlflow", "train", *words(folder, **more, nproc="2"))
    alone = trained_alone(folder, **more)
    said, _ = two.communicate()
    assert two.returncode == 0, said
    assert said.count("epoch 3/3") == 1
    check_alike(both.history(), alone.history)
    for name in ("test_accuracy", "test_loss", "best_epoch"):
        assert both.run().data.metrics[name] == pytest.approx(alone.scores[name], rel=1e-4), name
    assert both.run().info.status == "FINISHED"
    assert both.run().data.tags["processes"] == "2"


@pytest.mark.fault
@pytest.mark.slow
def test_what_two_were_stopped_in_one_goes_on_with(
    make_catalog: MakeCatalog,
    tmp_path: Path,
    stopped: list[WarmProcess],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, place = make_catalog(groups=3, each=20), Place(tmp_path / "place")
    options = {"freeze": "features.1", "epochs": "80"}
    process = place.start("shopee_mlflow", "train", *words(folder, **options, nproc="2"))
    stopped.append(process)
    wait_for_checkpoint(place, process)
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    run = place.run()
    assert (run.info.status, run.data.tags["failure"]) == ("KILLED", "SIGTERM received"), said
    assert 0 < len(place.history()["val_loss"]) < 80
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    train(resolve(TrainConfig, {"resume": run.info.run_id}))
    assert place.run().info.status == "FINISHED"
    history = place.history()
    check_alike(history, trained_alone(folder, **options).history)


def wait_for_checkpoint(place: Place, process: WarmProcess) -> None:
    deadline = time.monotonic() + 120
    while not list(place.folder.glob("checkpoints/*/last.pt")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint after two minutes"
        time.sleep(0.05)


def trainers(process: WarmProcess) -> list[psutil.Process]:
    """What torchrun has started: processes with a session of their own."""
    found = []
    for one in psutil.Process(process.pid).children(recursive=True):
        with suppress(ProcessLookupError):  # it has just ended
            if os.getsid(one.pid) == one.pid:
                found.append(one)
    return found


def kill_rank(process: WarmProcess, rank: int, run: Any) -> None:
    """Kill a trainer; the run is that of the first."""
    both = {one.pid: one for one in trainers(process)}
    assert len(both) == 2
    first = both.pop(process_of(run))
    [second] = both.values()
    (first, second)[rank].kill()


def read_until(process: WarmProcess, words: str) -> None:
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        if words in line:
            return
    pytest.fail(f"{words} was never said:\n{''.join(lines)}")


def check_failed(run: Any) -> None:
    assert run.info.status == "FAILED"
    assert "Another process of the group is gone" in run.data.tags["failure"]


@pytest.mark.fault
@pytest.mark.slow
def test_processes_that_die_fail_the_run_and_torchrun_starts_them_again(
    make_catalog: MakeCatalog,
    tmp_path: Path,
    stopped: list[WarmProcess],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, folder = Place(tmp_path / "place"), make_catalog(groups=3, each=40)
    # Many epochs, in small steps: rounding grows less.
    options = {"epochs": "60", "lr": "0.001"}
    process = place.start(*torchrun(2, "--max-restarts", "1"), *words(folder, **options))
    stopped.append(process)
    wait_for_checkpoint(place, process)
    kill_rank(process, 1, place.run())
    read_until(process, "Error: Another process of the group is gone")
    # Those that torchrun starts again are seconds away.
    check_failed(place.run())
    read_until(process, "resuming run")
    read_until(process, "/60 ")

    # Once more, which is once too often for torchrun; now the first of them.
    kill_rank(process, 0, place.run())
    process.communicate(timeout=60)
    assert process.returncode != 0
    run = place.run()
    check_failed(run)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    train(resolve(TrainConfig, {"resume": run.info.run_id}))
    assert place.run().info.status == "FINISHED"
    history = place.history()
    check_alike(history, trained_alone(folder, **options).history, rtol=5e-3)


@pytest.mark.fault
@pytest.mark.slow
def test_processes_of_one_machine_listen_on_loopback_only(
    make_catalog: MakeCatalog, tmp_path: Path, stopped: list[WarmProcess]
) -> None:
    place, temporary = Place(tmp_path / "place"), tmp_path / "temporary"
    temporary.mkdir()
    command = ["shopee_mlflow", "train", *words(make_catalog(), epochs="5000", nproc="2")]
    process = place.start(*command, TMPDIR=str(temporary))
    stopped.append(process)
    wait_for_checkpoint(place, process)
    launcher = psutil.Process(process.pid)
    group = [launcher, *launcher.children(recursive=True)]
    assert len(trainers(process)) == 2
    listening = [
        (connection.laddr.ip, one.pid)
        for one in group
        for connection in one.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 2
    assert {ip for ip, _ in listening} <= {"127.0.0.1", "::1"}
    # Where they meet is closed to other users, and gone with them.
    (met,) = temporary.glob("shopee_mlflow-*")
    assert met.stat().st_mode & 0o077 == 0
    process.terminate()
    process.communicate(timeout=60)
    assert not list(temporary.glob("shopee_mlflow-*"))


@pytest.mark.parametrize(
    ("ended", "code"), [(2, 2), (-signal.SIGKILL, 1), (signal.SIGTERM, 130), (0, 0)]
)
def test_nproc_ends_as_its_processes_do(
    ended: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(options: argparse.Namespace) -> None:
        assert (options.nproc_per_node, options.module) == ("2", True)
        assert (options.rdzv_conf, options.local_addr) == ("store_type=file", "127.0.0.1")
        assert options.training_script == "shopee_mlflow"
        assert options.training_script_args == ["train", "--data=a b", "--nproc=2"]
        if isinstance(ended, signal.Signals) and ended > 0:
            raise SignalException("told to stop", ended)
        if ended:
            failure = ProcessFailure(0, 1, ended, "")
            raise ChildFailedError("shopee_mlflow", {0: failure})

    monkeypatch.setattr(torch.distributed.run, "run", run)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with mock.patch.dict(os.environ), pytest.raises(SystemExit) as caught:
        start_group(2, ["train", "--data=a b", "--nproc=2"])
    assert caught.value.code == code
    assert ("killed by SIGKILL" in capsys.readouterr().err) == (ended == -signal.SIGKILL)


APART = """
import json, os, sys
from shopee_mlflow.cli import main
main(json.loads(sys.argv[1])[int(os.environ["RANK"])])
"""


def start_apart(place: Place, first: list[str], second: list[str]) -> WarmProcess:
    """torchrun with two processes whose commands differ."""
    commands = json.dumps([["train", *first], ["train", *second]])
    launcher = ["--standalone", "--nproc-per-node=2", "--no-python"]
    command = [*launcher, sys.executable, "-c", APART, commands]
    return place.start("torch.distributed.run", *command)


@pytest.mark.fault
@pytest.mark.slow
def test_other_data_of_one_process_stop_all(
    make_catalog: MakeCatalog, tmp_path: Path, stopped: list[WarmProcess]
) -> None:
    place = Place(tmp_path / "place")
    first, second = make_catalog(name="first"), make_catalog(name="second")
    draw_photo(1, 99).save(second / "train_images" / "more.png")
    with (second / "train.csv").open("a") as file:
        file.write("p,more.png,title,group1\n")
    process = start_apart(place, words(first), words(second))
    stopped.append(process)
    said, _ = process.communicate(timeout=90)
    assert process.returncode != 0
    assert "data: process 0 has " in said
    assert "Traceback" not in said.split("torch/distributed/elastic")[0]
    assert place.run().info.status == "FAILED"
    assert "data: process 0 has " in place.run().data.tags["failure"]


@pytest.mark.fault
@pytest.mark.slow
def test_a_process_without_the_weights_file_ends_all(
    make_catalog: MakeCatalog, tmp_path: Path, stopped: list[WarmProcess]
) -> None:
    place, folder = Place(tmp_path / "place"), make_catalog()
    process = start_apart(place, words(folder), words(folder, weights="/not/there.pt"))
    stopped.append(process)
    said, _ = process.communicate(timeout=90)
    assert process.returncode != 0
    assert "weights=/not/there.pt" in said
    assert "Traceback" not in said.split("torch/distributed/elastic")[0]


def started_as(monkeypatch: pytest.MonkeyPatch, rank: int, size: int, port: int) -> None:
    """Tell this process what torchrun would; a patience of about a second."""
    facts = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    for name, value in {**facts, "MASTER_ADDR": "127.0.0.1", TIMEOUT_VARIABLE: 0.02}.items():
        monkeypatch.setenv(name, str(value))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.fault
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.slow
def test_others_that_never_come_are_given_up(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    started_as(monkeypatch, rank, 2, port := free_port())
    with (
        pytest.raises(TrainingError, match=rf"Process {rank} did not connect .* 127.0.0.1:{port}"),
        joined_group("gloo"),
    ):
        pass


@pytest.mark.fault
def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        started_as(monkeypatch, 0, 2, port)
        with (
            pytest.raises(TrainingError, match=rf"127.0.0.1:{port} .*that its port is free"),
            joined_group("gloo"),
        ):
            pass


def test_processes_meet_by_a_file_and_open_no_port(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started_as(monkeypatch, 0, 1, port := free_port())
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "met"))
    with joined_group("gloo") as group, socket.socket() as probe:
        assert group.size == 1
        assert (tmp_path / "met").is_file()
        probe.bind(("127.0.0.1", port))


def test_half_a_group_in_the_environment_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="LOCAL_RANK.* is not set"), joined_group("gloo"):
        pass
    started_as(monkeypatch, 0, 2, 1)
    monkeypatch.setenv(TIMEOUT_VARIABLE, "soon")
    with pytest.raises(ConfigError, match=f"{TIMEOUT_VARIABLE}=soon: must be"):
        joined_group("gloo").__enter__()


@pytest.mark.slow
def test_a_group_registers_its_model_before_it_deletes_its_checkpoints(
    make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart after a registration that failed repeats the registration alone."""
    steps: list[str] = []

    @contextmanager
    def job_of_two(*given: Any) -> Iterator[Any]:
        with training_job(*given) as job:
            yield job
        object.__setattr__(job, "group", Group(0, 2))

    def register(*_: object, **__: object) -> None:
        steps.append("register")
        if len(steps) == 1:
            raise TrackingError("the registry does not answer")

    monkeypatch.setattr("shopee_mlflow.verbs.train.training_job", job_of_two)
    monkeypatch.setattr("shopee_mlflow.verbs.train.register", register)
    monkeypatch.setattr(
        "shopee_mlflow.verbs.train.delete_checkpoints", lambda run_id: steps.append("delete")
    )
    folder = make_catalog()
    with pytest.raises(TrackingError, match="the registry does not answer"):
        trained_alone(folder, register="true")
    assert steps == ["register"]
    trained_alone(folder, register="true")
    assert steps == ["register", "register", "delete"]


def test_what_a_group_leaves_for_a_restart_can_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder without the checkpoints of other tests.
    monkeypatch.setattr("shopee_mlflow.training.checkpoints.local_folder", lambda: tmp_path)
    group, run_id = Group(0, 2), "0" * 32
    config, checkpoints = resolve(TrainConfig, {}), checkpoints_of(run_id)
    remember_run(run_id, group)
    (checkpoints.folder / "last.pt").write_bytes(b"")
    assert resumed_after_restart(config, group).resume == run_id
    delete_checkpoints(run_id)
    assert resumed_after_restart(config, group) == config
    assert not checkpoints.folder.parent.exists()
    # A process alone has nobody who would start it again.
    remember_run(run_id, ALONE)
    assert not checkpoints.folder.exists()


class Others(Group):
    """A group whose other processes have another option."""

    def check_equal(self, facts: Mapping[str, object]) -> None:
        self.facts.append(dict(facts))

    facts: ClassVar[list[dict[str, object]]] = []


CPU = Machine(torch.device("cpu"), "fp32")


@pytest.mark.fault
@pytest.mark.parametrize(
    ("options", "size", "words"),
    [
        ({"batch_size": "3"}, 4, "batch_size=3: must be at least .* processes, 4"),
        ({"nproc": "2"}, 1, "nproc=2: this training has 1 process"),
        ({"compile": "true"}, 2, "compile=true: is not supported with several processes"),
        ({"device": "cuda:0"}, 2, "device=cuda:0: 2 processes need the CPU, or one GPU each"),
    ],
)
def test_options_and_processes_must_go_together(
    options: dict[str, str], size: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_group(resolve(TrainConfig, options), Group(0, size), CPU)


def test_what_shapes_the_training_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_group(resolve(TrainConfig, {"nproc": "2", "lr": "0.3"}), Others(0, 4), CPU)
    [facts] = Others.facts
    assert (facts["lr"], facts["device"], facts["precision"]) == ("0.3", "cpu", "fp32")
    assert not {"nproc", "data", "weights"} & facts.keys()
