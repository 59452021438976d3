"""A saved view of MLflow's table of runs and its charts: accuracies, curves, the main options.

MLflow shows no metric in its table unless the user adds a column, and charts in alphabetical
order. Its UI stores saved views as tags of the experiment; the format is that of MLflow 3.17. A
view that another version cannot read is missing in its menu, and changes nothing else.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from contextlib import suppress

from mlflow import MlflowClient

from .store import STORE_ERRORS

# The name in the menu "Views", and the key in addresses.
VIEW_NAME, VIEW_KEY = "Accuracy", "accuracy"
_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
_COLUMNS = {
    "metrics": ("best_val_accuracy", "test_accuracy"),
    "params": ("model", "freeze", "augment", "epochs", "lr", "image_size"),
}
# Charts in this order, curves by epoch and bars.
_CHARTS = (
    *(("val_accuracy", "LINE"), ("train_accuracy", "LINE"), ("test_accuracy", "BAR")),
    *(("val_loss", "LINE"), ("train_loss", "LINE"), ("best_val_accuracy", "BAR")),
    *(("val_macro_f1", "LINE"), ("test_macro_f1", "BAR"), ("lr", "LINE")),
)
_SECTION = "accuracy"


def save_view(experiment_id: str) -> None:
    """Add the view to an experiment, unless it is there."""
    client = MlflowClient()
    # Without the right to change the experiment there is no view; that is no reason to fail.
    with suppress(*STORE_ERRORS):
        if _TAG not in client.get_experiment(experiment_id).tags:
            client.set_experiment_tag(experiment_id, _TAG, _view())


def _view() -> str:
    columns = [f"{kind}.`{name}`" for kind, names in _COLUMNS.items() for name in names]
    state = {
        "searchFilter": "",
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
