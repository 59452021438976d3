"""The registered model served on loopback: requests from Python, curl and the example."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest
from small_run import SIZE, SmallRun, as_base64, odd_photos, small_run

from shopee_mlflow.data.images import read_pixels
from shopee_mlflow.modeling.inference import Predictor
from shopee_mlflow.modeling.metrics import softmax
from shopee_mlflow.tracking.registry import register_model

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[1] / "examples" / "three_ways.py"
SECONDS_TO_START = 120


@pytest.fixture(scope="module", params=["pickle", "pt2"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.getbasetemp(), request.param)


@pytest.fixture(scope="module")
def champion(run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        base = tmp_path_factory.getbasetemp()
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{base}/mlflow.db")
        return register_model(run.result.run_id, promote=True).uri


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """As in an active virtual environment, elsewhere: this package cannot be imported there."""
    base = tmp_path_factory.getbasetemp()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**env, "PATH": path, "MLFLOW_TRACKING_URI": f"sqlite:///{base}/mlflow.db"}


@pytest.fixture(scope="module")
def url(
    champion: str, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a served champion. After the tests it is stopped, and must be gone."""
    folder = tmp_path_factory.mktemp("serving")
    port = free_port()
    command = f"mlflow models serve -m {champion} --env-manager local -h 127.0.0.1 -p {port} -w 1"
    with (folder / "log.txt").open("wb") as log:
        server = subprocess.Popen(
            command.split(),
            cwd=folder,
            env=environment,
            start_new_session=True,
            stdout=log,
            stderr=log,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, server, folder / "log.txt")
        yield address
    finally:
        stop(server)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{address}/ping", timeout=5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while True:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/ping", timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            time.sleep(0.3)


def stop(server: subprocess.Popen[bytes]) -> None:
    """The server and the processes it has started: a group of their own."""
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    os.killpg(server.pid, signal.SIGTERM)
    server.wait(30)
    _, alive = psutil.wait_procs(family, 30)
    assert alive == []


def ask(url: str, content: Any) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        f"{url}/invocations",
        data=json.dumps(content).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answers: list[dict[str, Any]] = json.load(response)["predictions"]
    return answers


def offline(uri: str, photos: list[Path], **params: Any) -> list[dict[str, Any]]:
    frame = pd.DataFrame({"image": [str(photo) for photo in photos]})
    answers = mlflow.pyfunc.load_model(uri).predict(frame, params=params or None)
    return [{str(k): v for k, v in row.items()} for row in answers.to_dict("records")]


def test_the_served_model_answers_as_offline(
    url: str, champion: str, run: SmallRun, tmp_path: Path
) -> None:
    """Odd photos too: the last station of the one image path."""
    photos = [*odd_photos(tmp_path / "odd"), *run.photos[::7]]
    records = [{"image": as_base64(photo)} for photo in photos]
    served = ask(url, {"dataframe_records": records})
    here = offline(champion, photos)
    assert [row["label_group"] for row in served] == [row["label_group"] for row in here]
    for one, other in zip(served, here, strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)
        assert one["error"] is None

    module = mlflow.pytorch.load_model(champion)
    pixels = [read_pixels(photo, SIZE) for photo in photos]
    logits = Predictor(module, run.result.dataset.classes).logits(pixels, np.asarray)
    expected = softmax(logits.numpy()).max(axis=1)
    assert [row["probability"] for row in served] == pytest.approx(expected, abs=1e-6)


def test_the_best_k_and_a_bad_photo(url: str, champion: str, run: SmallRun) -> None:
    records = [{"image": "no photo"}, {"image": as_base64(run.photos[0])}]
    bad, good = ask(url, {"dataframe_records": records, "params": {"top_k": 2}})
    (here,) = offline(champion, run.photos[:1], top_k=2)
    assert bad["label_group"] is None
    assert bad["probability"] is None
    assert "no base64 text" in bad["error"]
    assert good["label_groups"] == list(here["label_groups"])
    assert good["probabilities"] == pytest.approx(list(here["probabilities"]), abs=1e-6)


def test_paths_are_not_read(url: str, run: SmallRun, tmp_path: Path) -> None:
    there, gone = str(run.photos[0]), str(tmp_path / "gone.png")
    answers = ask(url, {"dataframe_records": [{"image": there}, {"image": gone}]})
    assert [row["label_group"] for row in answers] == [None, None]
    reasons = {row["error"].split(":")[0] for row in answers}
    assert reasons == {"no base64 text or data"}


def test_a_csv_of_two_photos_gives_two_rows(url: str, champion: str, run: SmallRun) -> None:
    photos = [run.photos[0], run.photos[20]]
    request = urllib.request.Request(
        f"{url}/invocations",
        data="\n".join(["image", *map(as_base64, photos)]).encode(),
        headers={"Content-Type": "text/csv"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        rows = json.load(response)["predictions"]
    assert [row["label_group"] for row in rows] == [
        row["label_group"] for row in offline(champion, photos)
    ]


def test_a_wrong_column_is_refused_and_named(url: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(url, {"dataframe_records": [{"photo": "x"}]})
    assert caught.value.code == 400
    assert "image" in caught.value.read().decode()
    caught.value.close()


def test_curl_as_the_readme_shows_it(url: str, champion: str, run: SmallRun) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    photo = run.photos[5]
    command = (
        f'echo "{{\\"dataframe_records\\": [{{\\"image\\": \\"$(base64 -w0 {photo})\\"}}]}}" | '
        f"curl -s {url}/invocations -H 'Content-Type: application/json' --data-binary @-"
    )
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True
    )
    (answer,) = json.loads(done.stdout)["predictions"]
    (here,) = offline(champion, [photo])
    assert answer["label_group"] == here["label_group"]
    assert answer["probability"] == pytest.approx(here["probability"], abs=1e-6)


# The example reads classes and image_size from the module, which a pt2 program has not.
@pytest.mark.parametrize("run", ["pickle"], indirect=True)
def test_the_example_gives_one_answer_in_three_ways(
    url: str, run: SmallRun, environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(run.photos[5]), "--url", url],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.rsplit(maxsplit=2) for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["mlflow.pytorch", "mlflow.pyfunc", "mlflow models serve"]
    assert len({tuple(line[1:]) for line in lines}) == 1
