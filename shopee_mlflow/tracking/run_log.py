"""What a command logs into a run: the protocol, and an implementation that stores nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor

    from ..modeling.models import ProductClassifier

# The id of a run that is not stored.
NOT_STORED = "none"


class RunLog(Protocol):
    """A run that commands log to; :class:`.mlflow_run_log.MlflowRunLog` stores it in MLflow.

    Methods may raise one of ``tracking.store.STORE_ERRORS`` when the store is not available.
    """

    run_id: str
    experiment_id: str

    def log_params(self, params: Mapping[str, str]) -> None:
        """Log parameters, except those that are already logged."""

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Log tags: facts about the run that are not options."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics: immediately, or in the background if they have a ``step``."""

    def skip_logged_metrics(self, names: Iterable[str]) -> None:
        """Do not log these metrics again for steps that are already in the store."""

    def delete_logged_models(self) -> None:
        """Delete models that an earlier attempt has logged, complete or not."""

    def log_figure(self, figure: Figure, file: str) -> None:
        """Log a figure as an image."""

    def log_table(self, table: pd.DataFrame, file: str, *, index: bool = False) -> None:
        """Log a table as CSV."""

    def log_text(self, text: str, file: str) -> None:
        """Log a text file."""

    def log_weights(self, weights: Mapping[str, Tensor], file: str) -> None:
        """Log a state dict."""

    def log_dataset(
        self,
        table: pd.DataFrame,
        source: str,
        name: str,
        digest: str | None,
        counts: Mapping[str, int],
        context: str = "training",
    ) -> None:
        """Log a table of photos as a dataset.

        :param digest: fingerprint of the table; None: MLflow computes one.
        :param counts: name -> number, for the dataset's profile.
        :param context: what the data were used for.
        """

    def log_model(
        self, model: ProductClassifier, metrics: Mapping[str, float], serialization: str = "pickle"
    ) -> str:
        """Log the classifier with its metrics; returns its id."""

    def flush(self) -> None:
        """Send buffered metrics."""

    def wait_for_store(self) -> None:
        """Send buffered metrics. Retry for some minutes while the store is not available."""

    def end_as(self, status: str, reason: str) -> None:
        """Set the final status and the reason; a later error or stop does not change them."""


class NullRunLog:
    """A run that stores nothing: to train without MLflow, and for processes that only compute."""

    def __init__(self, run_id: str = NOT_STORED, experiment_id: str = "none") -> None:
        self.run_id, self.experiment_id = run_id, experiment_id

    def log_params(self, params: Mapping[str, str]) -> None:
        """Do nothing."""

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Do nothing."""

    def skip_logged_metrics(self, names: Iterable[str]) -> None:
        """Do nothing."""

    def delete_logged_models(self) -> None:
        """Do nothing."""

    def log_figure(self, figure: Figure, file: str) -> None:
        """Do nothing."""

    def log_table(self, table: pd.DataFrame, file: str, *, index: bool = False) -> None:
        """Do nothing."""

    def log_text(self, text: str, file: str) -> None:
        """Do nothing."""

    def log_weights(self, weights: Mapping[str, Tensor], file: str) -> None:
        """Do nothing."""

    def log_dataset(
        self,
        table: pd.DataFrame,
        source: str,
        name: str,
        digest: str | None,
        counts: Mapping[str, int],
        context: str = "training",
    ) -> None:
        """Do nothing."""

    def log_model(
        self,
        model: ProductClassifier,  # noqa: ARG002 - the protocol's arguments
        metrics: Mapping[str, float],  # noqa: ARG002
        serialization: str = "pickle",  # noqa: ARG002
    ) -> str:
        """Do nothing; the id is empty."""
        return ""

    def flush(self) -> None:
        """Do nothing."""

    def wait_for_store(self) -> None:
        """Do nothing."""

    def end_as(self, status: str, reason: str) -> None:
        """Do nothing."""
