"""A run in MLflow: parameters, metrics, tags, tables, figures, weights, the model."""

from __future__ import annotations

import json
import pickle
import shlex
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from ..console import duration, say
from ..errors import TrackingError
from ..masking import mask_passwords
from .metric_queue import MetricQueue
from .names import MODEL_NAME
from .store import STORE_ERRORS, artifact_errors, defer_stop_if_local, downloaded

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from ..modeling.models import ProductClassifier

_PARAMS_PER_REQUEST = 100
# How long a training waits at its end for a store that is not available.
_WAIT_SECONDS = 300.0


class MlflowRunLog:
    """Logs to an MLflow run, opened by this process or another.

    Metrics of epochs are sent in the background, so that no epoch waits for the store. They are
    buffered while the store is not available. Call :meth:`flush` when the run ends.
    """

    def __init__(self, run_id: str, experiment_id: str) -> None:
        self.run_id = run_id
        self.experiment_id = experiment_id
        # The final status of the run and the reason for it, if they are known before the end.
        self.ending: tuple[str, str] | None = None
        self._client = MlflowClient()
        self._metric_queue = MetricQueue(self._send)
        # Name and step of metrics that are already in the store.
        self._logged: set[tuple[str, int]] = set()

    def log_params(self, params: Mapping[str, str]) -> None:
        """Log parameters, except those that ``mlflow run`` has already logged.

        MLflow does not allow a parameter to change. ``mlflow run`` logs values of ``-P`` with shell
        quotes. The same quotes are added here, so that equal values are equal in all runs.
        """
        there = self._client.get_run(self.run_id).data.params
        shown = {k: mask_passwords(v) for k, v in params.items() if k not in there}
        new = [Param(k, shlex.quote(v)) for k, v in shown.items()]
        for start in range(0, len(new), _PARAMS_PER_REQUEST):
            with defer_stop_if_local():
                self._client.log_batch(self.run_id, params=new[start : start + _PARAMS_PER_REQUEST])

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Log tags: facts about the run that are not options."""
        with defer_stop_if_local():
            self._client.log_batch(
                self.run_id, tags=[RunTag(k, mask_passwords(v)) for k, v in tags.items()]
            )

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics: immediately, or in the background if they have a ``step``."""
        now = int(time.time() * 1000)
        self._metric_queue.put(
            [
                Metric(name, float(value), now, step or 0)
                for name, value in metrics.items()
                if (name, step or 0) not in self._logged
            ]
        )
        if step is None:
            self.flush()

    def skip_logged_metrics(self, names: Iterable[str]) -> None:
        """Do not log these metrics again for steps that are already in the store."""
        for name in names:
            history = self._client.get_metric_history(self.run_id, name)
            self._logged |= {(name, metric.step) for metric in history}

    def flush(self) -> None:
        """Send buffered metrics.

        :raises: one of ``STORE_ERRORS`` when the store is not available; they stay buffered.
        """
        with defer_stop_if_local():
            self._metric_queue.flush()

    def close(self) -> None:
        """Discard metrics that could not be sent."""
        self._metric_queue.close()

    def wait_for_store(self) -> None:
        """Send buffered metrics. Retry for some minutes while the store is not available.

        :raises: one of ``STORE_ERRORS`` when the store is still not available after that.
        """
        deadline, pause = time.monotonic() + _WAIT_SECONDS, 1.0
        while True:
            try:
                self._client.get_run(self.run_id)
                return self.flush()
            except STORE_ERRORS:
                if time.monotonic() + pause > deadline:
                    raise
            if pause == 1.0:
                say(f"waiting for the tracking store, {duration(_WAIT_SECONDS)} at most")
            time.sleep(pause)
            pause = min(2 * pause, 15.0)

    def _send(self, metrics: Sequence[Metric]) -> None:
        self._client.log_batch(self.run_id, metrics=metrics)

    def end_as(self, status: str, reason: str) -> None:
        """Set the final status and the reason; a later error or stop does not change them."""
        self.ending = (status, reason)

    def log_figure(self, figure: Figure, file: str) -> None:
        """Log a figure as an image."""
        with self._artifact(file) as path:
            figure.savefig(path, dpi=150, bbox_inches="tight")

    def log_table(self, table: pd.DataFrame, file: str, *, index: bool = False) -> None:
        """Log a table as a CSV artifact."""
        self.log_text(table.to_csv(index=index, lineterminator="\n"), file)

    def log_text(self, text: str, file: str) -> None:
        """Log a text artifact."""
        with self._artifact(file) as path:
            path.write_text(text, encoding="utf-8")

    def log_weights(self, weights: Mapping[str, Tensor], file: str) -> None:
        """Log a state dict as an artifact; :func:`read_weights` reads it without running code."""
        import torch

        # Given a path, torch does not raise the operating system's error for a full disk.
        with self._artifact(file) as path, path.open("wb") as stream:
            torch.save(weights, stream)

    def log_dataset(
        self,
        table: pd.DataFrame,
        source: str,
        name: str,
        digest: str | None,
        counts: Mapping[str, int],
        context: str = "training",
    ) -> None:
        """Log a table of photos as an MLflow dataset input, with its counts in the profile."""
        target = "label_group" if "label_group" in table else None
        with warnings.catch_warnings():
            # MLflow has two equivalent sources for a local file, and warns that it chose one.
            warnings.filterwarnings("ignore", message="The specified dataset source")
            dataset = from_pandas(table, source=source, targets=target, name=name, digest=digest)
        entity = dataset.to_dict()
        entity["profile"] = json.dumps({**json.loads(entity["profile"]), **counts})
        tags = [InputTag(MLFLOW_DATASET_CONTEXT, context)]
        inputs = [DatasetInput(Dataset(**entity), tags)]
        try:
            self._client.log_inputs(self.run_id, inputs)
        except MlflowException as error:
            if error.error_code != "BAD_REQUEST":
                raise
            # If two clients log a new dataset at the same time, the database refuses one of them.
            # The second time, MLflow finds the dataset there.
            self._client.log_inputs(self.run_id, inputs)

    def delete_logged_models(self) -> None:
        """Delete models that an earlier attempt has logged, complete or not."""
        outputs = self._client.get_run(self.run_id).outputs
        for logged in outputs.model_outputs if outputs else []:
            with suppress(MlflowException):
                self._client.delete_logged_model(logged.model_id)

    def log_model(
        self,
        model: ProductClassifier,
        metrics: Mapping[str, float],
        serialization: str = "pickle",
    ) -> str:
        """Log the classifier as a LoggedModel with its metrics; returns its model id."""
        from . import flavor  # imports torch

        with artifact_errors("the model could not be stored"):
            info = Model.log(
                artifact_path=None,
                name=MODEL_NAME,
                flavor=flavor,
                run_id=self.run_id,
                classifier=model,
                serialization=serialization,
                model_type="classifier",
                params={"architecture": model.architecture, "image_size": str(model.image_size)},
            )
        mlflow.log_metrics(dict(metrics), model_id=info.model_id, run_id=self.run_id)
        return info.model_id

    @contextmanager
    def _artifact(self, file: str) -> Iterator[Path]:
        """A temporary file that becomes an artifact."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(file).name
            yield path
            parent = str(Path(file).parent)
            with artifact_errors(f"{file} could not be stored"):
                self._client.log_artifact(self.run_id, str(path), None if parent == "." else parent)


def read_weights(run_id: str, file: str) -> dict[str, Tensor]:
    """Load a state dict that a run has logged, on the CPU, without executing code in the file.

    :raises TrackingError: when there is no such file or it is not a state dict.
    """
    import torch

    try:
        with downloaded(f"runs:/{run_id}/{file}") as path:
            weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (MlflowException, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise TrackingError(f"run {run_id}: its weights {file} cannot be read: {error}") from error
    return weights


def read_table(run_id: str, file: str) -> pd.DataFrame:
    """Read a CSV table that a run has logged; all values are text.

    :raises TrackingError: when there is no such file.
    """
    try:
        with downloaded(f"runs:/{run_id}/{file}") as path:
            return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"run={run_id}: has no {file} in {mlflow.get_tracking_uri()} ({error})"
        ) from error


def read_json(run_id: str, file: str) -> dict[str, Any]:
    """Read a JSON object that a run has logged.

    :raises TrackingError: when there is no such file or it is not JSON.
    """
    try:
        with downloaded(f"runs:/{run_id}/{file}") as path:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (MlflowException, OSError, ValueError) as error:
        raise TrackingError(f"run={run_id}: its {file} cannot be read ({error})") from error
    return values
