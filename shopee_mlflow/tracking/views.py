"""A saved view of MLflow's table of runs and its charts: accuracies, curves, the main options.

By default, MLflow's table has no columns of metrics, and charts are in alphabetical order. The UI
stores saved views as tags of the experiment. The format is that of MLflow 3.17. If another version
cannot read the view, its menu does not list it, and nothing else changes.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from contextlib import suppress

from mlflow import MlflowClient

from .names import FOLD, KIND_TAG, NOT_STARTED, TRIAL
from .store import STORE_ERRORS

# The name in the menu "Views", and the key in links.
VIEW_NAME, VIEW_KEY = "Accuracy", "accuracy"
_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
_COLUMNS = {
    "metrics": ("best_val_accuracy", "test_accuracy", "cv_accuracy"),
    # With more, a window of 1440 pixels cuts the table; the UI sorts columns by name.
    "params": ("epochs", "freeze", "lr", "model"),
}
# Folds and trials are on the page of their search or cross-validation.
_HIDDEN_KINDS = (FOLD, TRIAL, NOT_STARTED)
# Charts in this order: curves by epoch, and bars.
_CHARTS = (
    *(("val_accuracy", "LINE"), ("train_accuracy", "LINE"), ("test_accuracy", "BAR")),
    *(("val_loss", "LINE"), ("train_loss", "LINE"), ("best_val_accuracy", "BAR")),
    *(("val_macro_f1", "LINE"), ("test_macro_f1", "BAR"), ("lr", "LINE")),
    ("cv_accuracy", "BAR"),
)
_SECTION = "accuracy"


def save_view(experiment_id: str) -> None:
    """Add the view to an experiment that does not have it yet."""
    client = MlflowClient()
    # The view is optional: a user who may not change the experiment works without it.
    with suppress(*STORE_ERRORS):
        if _TAG not in client.get_experiment(experiment_id).tags:
            client.set_experiment_tag(experiment_id, _TAG, _view())


def _view() -> str:
    columns = [f"{kind}.`{name}`" for kind, names in _COLUMNS.items() for name in names]
    state = {
        "searchFilter": " and ".join(f"tags.{KIND_TAG} != '{kind}'" for kind in _HIDDEN_KINDS),
        "orderByKey": "metrics.`best_val_accuracy`",
        "orderByAsc": False,
        "selectedColumns": columns,
        "compareRunSections": [{"uuid": _SECTION, "name": "Accuracy and loss", "display": True}],
        "compareRunCharts": [_chart(*chart) for chart in _CHARTS],
    }
    now = int(time.time() * 1000)
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    view = {"name": VIEW_NAME, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
    return json.dumps(view)


def _chart(metric: str, kind: str) -> dict[str, object]:
    chart: dict[str, object] = {
        "uuid": metric,
        "type": kind,
        "runsCountToCompare": 10,
        "metricSectionId": _SECTION,
        "deleted": False,
        "isGenerated": False,
        "displayName": metric,
        "metricKey": metric,
    }
    if kind == "LINE":
        chart |= {
            "xAxisKey": "step",
            "yAxisKey": "metric",
            "yAxisExpressions": [],
            "scaleType": "linear",
            "xAxisScaleType": "linear",
            "range": {},
            "lineSmoothness": 0,
            "useGlobalXaxisKey": True,
            "useGlobalLineSmoothing": True,
        }
    return chart
