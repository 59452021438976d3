"""Train, compare and register product-photo classifiers with MLflow.

What the commands do, Python does::

    from shopee_mlflow import Classifier, TrainConfig, train

    result = train(TrainConfig(model="cnn", image_size=128, epochs=10))
    result.scores["test_accuracy"]
    Classifier.load(result.uri).predict("photos/")

Everything public is imported at first use, since torch and MLflow take seconds.
"""

import sys
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "TrainConfig": "config",
    "DataConfig": "data_config",
    "ExploreConfig": "analysis_config",
    "MatchConfig": "analysis_config",
    "CrossValidateConfig": "config",
    "resolve": "config",
    "ShopeeError": "errors",
    "Dataset": "data.dataset",
    "load_dataset": "data.dataset",
    "read_catalog": "data.catalog_csv",
    "read_pixels": "data.images",
    "assign_splits": "data.splits",
    "sample_catalog": "sample",
    "ProductClassifier": "modeling.models",
    "architecture_names": "modeling.architectures",
    "build_model": "modeling.architectures",
    "score": "modeling.metrics",
    "wilson_interval": "modeling.metrics",
    "ExploreResult": "verbs.explore",
    "explore": "verbs.explore",
    "Evaluation": "verbs.evaluate",
    "evaluate": "verbs.evaluate",
    "Comparison": "verbs.compare",
    "compare": "verbs.compare",
    "predict": "verbs.predict",
    "MatchResult": "verbs.match",
    "match": "verbs.match",
    "Classifier": "tracking.classifier",
    "load_classifier": "tracking.registry",
    "register_model": "tracking.registry",
    "TrainResult": "verbs.train",
    "train": "verbs.train",
    "TuneResult": "verbs.tune",
    "tune": "verbs.tune",
    "CrossValidation": "verbs.cross_validate",
    "cross_validate": "verbs.cross_validate",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        module = sys.modules[__name__]
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}", name=name, obj=module
        )
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
