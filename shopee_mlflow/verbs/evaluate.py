"""Evaluate a logged model: on the test split of its run, or on a labelled catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ..config import AUTO, NONE, DataConfig, resolve
from ..console import say, watch
from ..data.catalog_forms import load_catalog
from ..data.cleaning import Cleaning, drop_bad_images, locate_files, select_rows
from ..data.photo_files import find_photo_files
from ..data.pixel_cache import hash_files, load_pixels
from ..data.splits import TEST
from ..errors import CatalogError
from ..modeling.inference import Predictor
from ..modeling.metrics import (
    class_report,
    confusion,
    scores_of_test,
    softmax,
    with_label_names,
)
from ..reports.training_figures import confusion_figure, mistakes_figure
from ..tracking.environment import machine_tags
from ..tracking.registry import LoadedModel, load_classifier
from ..tracking.run_log import RunLog
from ..tracking.runs import open_run_if_writable, read_manifest

# Options of a training that say where its photos are, beside data and images.
_PLACES = ("sample_px", "image_column", "label_column", "label_folder", "val_csv", "test_csv")


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    :ivar scores: test_accuracy, test_accuracy_low, test_accuracy_high, test_loss.
    :ivar predictions: image, label_group, predicted, probability of every photo.
    """

    run_id: str
    scores: dict[str, float]
    predictions: pd.DataFrame = field(repr=False)


def evaluate(
    model: str,
    *,
    data: str = AUTO,
    images: str = AUTO,
    image_column: str = AUTO,
    label_column: str = AUTO,
    run: str | None = None,
    experiment: str = "shopee",
) -> Evaluation:
    """Score a model on labelled photos; log scores, tables and figures as a new run.

    :param model: an MLflow model URI.
    :param data: a labelled catalogue; with ``run``, the present place of its photos (auto: the
        run's own options).
    :param image_column: the column of file names in the catalogue.
    :param label_column: the column of labels in the catalogue.
    :param run: id of a training run; the test split in its manifest is scored.
    :raises ShopeeError: when the photos or the model do not exist, when the run's photos have
        changed, or when the model does not know a label.
    """
    loaded = load_classifier(model)
    with open_run_if_writable("evaluate", experiment) as log:
        log.log_params({"model": model, "data": data, "images": images, "run": run or NONE})
        log.log_tags({"model_id": loaded.identity, **machine_tags("cpu")})
        columns = {"image_column": image_column, "label_column": label_column}
        frame = _test_split(run, data, images) if run else _catalogue(data, images, columns)
        frame = _known_labels(frame, loaded)
        frame, pixels = _decode(frame, loaded)
        labels = frame["label_group"].map({n: i for i, n in enumerate(loaded.classes)}).to_numpy()
        logits = Predictor(loaded.module, loaded.classes).logits(pixels, np.asarray).numpy()
        scores = scores_of_test(labels, logits)
        predictions = _log(log, frame, pixels, labels, logits, loaded, scores)
        say(
            f"accuracy {scores['test_accuracy']:.1%} of {len(labels):,} photos, 95 % interval "
            f"{scores['test_accuracy_low']:.1%} to {scores['test_accuracy_high']:.1%} "
            f"(run {log.run_id})"
        )
    return Evaluation(log.run_id, scores, predictions)


def _catalogue(data: str, images: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """All labelled photos of a catalogue after cleaning; groups of any size are kept."""
    if data == AUTO:
        raise CatalogError("evaluate needs data (a labelled catalogue) or run (a training run).")
    options = {"data": data, "images": images, "split_column": NONE, **columns}
    config = resolve(DataConfig, options)
    catalog = load_catalog(config, watch)
    assert catalog.folder is not None
    cleaning = Cleaning(rows=len(catalog.rows), remarks=list(catalog.remarks))
    frame = locate_files(select_rows(catalog.rows, 0, cleaning), catalog.folder, cleaning)
    say(*cleaning.lines())
    return frame


def _test_split(run: str, data: str, images: str) -> pd.DataFrame:
    """The test photos of a run, after checking that none is missing or has changed."""
    manifest, params = read_manifest(run)
    given = {name: value for name, value in (("data", data), ("images", images)) if value != AUTO}
    # If data is given, the options data and images of the run are ignored.
    names = ("sample_px",) if data != AUTO else ("data", "images", *_PLACES)
    config = resolve(DataConfig, {**{n: params[n] for n in names if n in params}, **given})
    folder = load_catalog(config, watch).folder
    assert folder is not None
    test = manifest[manifest["split"] == TEST].reset_index(drop=True)
    files = find_photo_files(folder, list(test["image"])).files
    contents = hash_files([file or Path("missing") for file in files])
    changed = [
        n for n, a, b in zip(test["image"], contents, test["content"], strict=True) if a != b
    ]
    if changed:
        raise CatalogError(
            f"{len(changed)} of the {len(test)} test photos of run {run} are missing from {folder} "
            f"or have changed: {', '.join(changed[:5])}{', ...' if len(changed) > 5 else ''}. Name "
            "the folder that the run was trained on with data."
        )
    return test.assign(file=pd.Series(files, index=test.index, dtype=object))


def _known_labels(frame: pd.DataFrame, loaded: LoadedModel) -> pd.DataFrame:
    """The photos of label groups that the model knows; the number of others is printed.

    :raises CatalogError: when it knows none.
    """
    known = frame["label_group"].isin(loaded.classes)
    unknown = sorted(set(frame.loc[~known, "label_group"]))
    if unknown:
        words = (
            f"{len(unknown):,} label groups are unknown to the model, which knows "
            f"{len(loaded.classes):,}: "
            f"{', '.join(unknown[:10])}{', ...' if len(unknown) > 10 else ''}"
        )
        if not known.any():
            raise CatalogError(f"{words}. Evaluate a model that was trained on them.")
        say(f"{(~known).sum():,} of {len(frame):,} photos are not scored: {words}")
    return frame[known].reset_index(drop=True)


def _decode(frame: pd.DataFrame, loaded: LoadedModel) -> tuple[pd.DataFrame, np.ndarray]:
    files = list(frame["file"])
    contents = list(frame["content"]) if "content" in frame else hash_files(files)
    decoded = load_pixels(
        files,
        contents,
        loaded.image_size,
        resize=loaded.resize,
        progress=watch("decoding photos"),
    )
    cleaning = Cleaning(rows=len(frame))
    frame = drop_bad_images(frame, decoded.bad, "skip", cleaning)
    if frame.empty:
        raise CatalogError("None of the photos decodes.")
    if decoded.bad:
        say(*cleaning.lines())
    return frame.reset_index(drop=True), decoded.values[frame.index.to_numpy()]


def _log(
    log: RunLog,
    frame: pd.DataFrame,
    pixels: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    loaded: LoadedModel,
    scores: dict[str, float],
) -> pd.DataFrame:
    classes, names = loaded.classes, loaded.label_names
    probabilities = softmax(logits)
    predicted = probabilities.argmax(axis=1)
    table = frame[["image", "label_group"]].assign(
        predicted=[classes[i] for i in predicted],
        probability=probabilities.max(axis=1).round(6),
    )
    counts = confusion(labels, predicted, classes)
    log.log_metrics(scores)
    log.log_table(table, "test/predictions.csv")
    log.log_table(counts, "test/confusion_matrix.csv", index=True)
    report = with_label_names(class_report(labels, predicted, classes), names)
    log.log_table(report, "test/report.csv")
    title = f"Accuracy {scores['test_accuracy']:.1%} of {len(labels):,} photos"
    log.log_figure(confusion_figure(counts, title, names), "test/confusion_matrix.png")
    wrong = table[table["label_group"] != table["predicted"]]
    worst = wrong.sort_values("probability", ascending=False).index.to_numpy()
    named = dict(zip(classes, names, strict=True))
    shown = table.assign(
        label_group=table["label_group"].map(named), predicted=table["predicted"].map(named)
    )
    log.log_figure(mistakes_figure(pixels, shown, worst), "test/mistakes.png")
    return table
