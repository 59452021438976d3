"""Evaluate a logged model on the test split of a run, or on a labelled catalogue.

Photos that the model has seen in training are scored separately.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ..config import resolve
from ..console import say, watch
from ..data.catalog_forms import folder_name, load_catalog
from ..data.cleaning import drop_bad_images, fill_phashes, locate_files, select_rows
from ..data.cleaning_record import Cleaning
from ..data.photo_files import find_photo_files
from ..data.pixel_cache import compute_phashes, hash_files, load_pixels
from ..data.plain_photos import clear_plain
from ..data.splits import TEST, digest
from ..data_config import AUTO, NONE, DataConfig
from ..errors import CatalogError
from ..modeling.inference import Predictor
from ..modeling.metrics import class_report, confusion, softmax, with_label_names
from ..reports.training_figures import confusion_figure, mistakes_figure
from ..tracking.environment import machine_tags
from ..tracking.finding import read_manifest
from ..tracking.links import run_link, view_lines
from ..tracking.names import ANALYSIS_EXPERIMENT, DESCRIPTION_TAG, EVALUATE
from ..tracking.registry import LoadedModel, load_classifier
from ..tracking.run_log import RunLog
from ..tracking.runs import open_run_if_writable
from ..tracking.signals import stop_on_signals
from ..training.seen_photos import SeenPhotos, eval_scores, find_seen, in_words

_FOLDER = "evaluation"

# Options of a training that locate its photos, besides data and images.
_TABLES = ("val_csv", "test_csv")
_DATA_OPTIONS = ("sample_px", "image_column", "label_column", "label_folder", *_TABLES)


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    :ivar scores: eval_accuracy, eval_accuracy_low, eval_accuracy_high, eval_loss, eval_macro_f1 and
        eval_top5_accuracy of the photos that the model has not seen; eval_seen_accuracy of the
        photos that it has seen. Scores of an empty set are omitted.
    :ivar predictions: columns image, label_group, predicted, probability and seen, one row per
        photo. ``seen`` is the split of the model's run that has the photo or a copy, or empty.
    """

    run_id: str
    scores: dict[str, float]
    predictions: pd.DataFrame = field(repr=False)


@dataclass(frozen=True)
class _Photos:
    """Labelled photos.

    :ivar frame: columns image, label_group, file, and content and image_phash if known.
    """

    frame: pd.DataFrame
    source: Path

    @property
    def name(self) -> str:
        return folder_name(self.source) or "catalogue"


def evaluate(
    model: str,
    *,
    data: str = AUTO,
    images: str = AUTO,
    image_column: str = AUTO,
    label_column: str = AUTO,
    label_folder: str = AUTO,
    run: str | None = None,
    experiment: str = ANALYSIS_EXPERIMENT,
) -> Evaluation:
    """Score a model on labelled photos; log scores, tables and figures as a new run.

    Photos are compared with the manifest of the run that has trained the model, by content and
    phash, see :func:`find_seen`. Photos in its train or val split do not count in
    ``eval_accuracy``. Photos of label groups that the model does not have are left out and counted.

    :param model: an MLflow model URI.
    :param data: a labelled catalogue; with ``run``, the catalogue of the run if it was moved (auto:
        as in the options of the run).
    :param images: the folder of the photos; auto: see ``data``.
    :param image_column: the column of file names in the catalogue.
    :param label_column: the column of labels in the catalogue.
    :param label_folder: the label of photos in nested class folders, as for trainings.
    :param run: id of a training run, whose test split is scored.
    :param experiment: name of the experiment of the new run.
    :raises ShopeeError: when the photos or the model do not exist, the run's photos have changed,
        or the model has none of the label groups.
    """
    with stop_on_signals():
        loaded = load_classifier(model)
        columns = {"image_column": image_column, "label_column": label_column}
        columns["label_folder"] = label_folder
        photos = (
            _test_split(run, data, images, columns) if run else _catalogue(data, images, columns)
        )
        frame, pixels = _decode(_of_known_labels(photos.frame, loaded), loaded)
        seen = find_seen(frame, loaded.run_id)
        labels = frame["label_group"].map({n: i for i, n in enumerate(loaded.classes)}).to_numpy()
        logits = Predictor(loaded.module, loaded.classes).logits(pixels, np.asarray).numpy()
        scores = eval_scores(labels, logits, seen.mask)
        lines = in_words(scores, seen)
        predictions = _predictions(frame, logits, loaded.classes, seen)
        what = f"{_short(model)} on {f'the test split of {run[:8]}' if run else photos.name}"
        # Opened last, so that a mistake of the user leaves no failed run.
        with open_run_if_writable(f"evaluate {what}", experiment, kind=EVALUATE) as log:
            log.log_params({"model": model, "data": data, "images": images, "run": run or NONE})
            log.log_tags({"model_id": loaded.identity, **machine_tags("cpu")})
            _log_data(log, photos, frame, seen)
            log.log_metrics(scores)
            _log_results(log, pixels, predictions, labels, logits, loaded)
            _log_description(log, what, lines, loaded)
            say(*lines, *view_lines(log, f"{len(frame):,} photos"))
    return Evaluation(log.run_id, scores, predictions)


def _short(model: str) -> str:
    """A short form of a model URI, such as shopee-classifier@champion, for the name of a run."""
    kind, _, rest = model.partition(":/")
    return rest.strip("/").split("/")[0][:8] if kind == "runs" else rest or model


def _catalogue(data: str, images: str, columns: Mapping[str, str]) -> _Photos:
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
    return _Photos(frame, catalog.source)


def _test_split(run: str, data: str, images: str, columns: Mapping[str, str]) -> _Photos:
    """The test photos of a run.

    :raises CatalogError: when photos are missing or have changed.
    """
    manifest, params = read_manifest(run)
    given = {name: value for name, value in (("data", data), ("images", images)) if value != AUTO}
    given |= {name: value for name, value in columns.items() if value != AUTO}
    # Options given here replace those of the run. The manifest has the split.
    names = _DATA_OPTIONS if data != AUTO else ("data", "images", *_DATA_OPTIONS)
    options = {n: params[n] for n in names if n in params} | {"split_column": NONE}
    if data != AUTO:
        # Tables beside the former place of the catalogue may be gone.
        options = {n: v for n, v in options.items() if n not in _TABLES or Path(v).exists()}
    config = resolve(DataConfig, {**options, **given})
    catalog = load_catalog(config, watch)
    folder = catalog.folder
    assert folder is not None
    test = manifest[manifest["split"] == TEST].reset_index(drop=True)
    if test.empty:
        raise CatalogError(
            f"run={run}: has no test split. A cross-validation tests every photo once, and its "
            "final model is trained on all of them; evaluate that on new photos with data."
        )
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
    return _Photos(
        test.assign(file=pd.Series(files, index=test.index, dtype=object)), catalog.source
    )


def _of_known_labels(frame: pd.DataFrame, loaded: LoadedModel) -> pd.DataFrame:
    """Select the photos of label groups that the model has, and print the number of others.

    :raises CatalogError: when the model has none of the label groups.
    """
    known = frame["label_group"].isin(loaded.classes)
    unknown = sorted(set(frame["label_group"][~known]))
    if not unknown:
        return frame
    few = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
    words = f"{len(unknown):,} label groups are unknown to the model, which has "
    words += f"{len(loaded.classes):,}: {few}"
    if not known.any():
        raise CatalogError(f"All {words}. Evaluate a model that was trained on them.")
    say(f"{(~known).sum():,} of {len(frame):,} photos are not scored: {words}")
    return frame[known].reset_index(drop=True)


def _decode(frame: pd.DataFrame, loaded: LoadedModel) -> tuple[pd.DataFrame, np.ndarray]:
    """Decode the photos, leave out those that do not decode, and add content and image_phash."""
    files = list(frame["file"])
    if "content" not in frame:
        frame = frame.assign(content=hash_files(files))
    decoded = load_pixels(
        files,
        list(frame["content"]),
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
    pixels = decoded.values[frame.index.to_numpy()]
    frame = fill_phashes(frame.reset_index(drop=True), compute_phashes, cleaning)
    return clear_plain(frame, pixels, frame.index, loaded.resize), pixels


def _predictions(
    frame: pd.DataFrame, logits: np.ndarray, classes: list[str], seen: SeenPhotos
) -> pd.DataFrame:
    probabilities = softmax(logits)
    return frame[["image", "label_group"]].assign(
        predicted=[classes[i] for i in probabilities.argmax(axis=1)],
        probability=probabilities.max(axis=1).round(6),
        seen=seen.split,
    )


def _log_data(log: RunLog, photos: _Photos, frame: pd.DataFrame, seen: SeenPhotos) -> None:
    # MLflow stores one dataset per digest, so the digest must cover what the counts depend on.
    table = frame[["image", "label_group", "content", "image_phash"]].assign(seen=seen.split)
    counts = {"seen": int(seen.mask.sum()), "unseen": int((~seen.mask).sum())}
    log.log_dataset(table, str(photos.source), photos.name, digest(table), counts, "evaluation")
    known = not seen.unknown
    log.log_tags({f"{k}_photos": str(n) if known else "unknown" for k, n in counts.items()})


def _log_results(
    log: RunLog,
    pixels: np.ndarray,
    predictions: pd.DataFrame,
    labels: np.ndarray,
    logits: np.ndarray,
    loaded: LoadedModel,
) -> None:
    """Log the predictions of all photos, and tables and figures of the unseen photos.

    If all photos were seen, tables and figures are of the seen photos.
    """
    log.log_table(predictions, f"{_FOLDER}/predictions.csv")
    unseen = (predictions["seen"] == "").to_numpy()
    scored = unseen if unseen.any() else ~unseen
    classes, names = loaded.classes, loaded.label_names
    predicted = logits.argmax(axis=1)
    counts = confusion(labels[scored], predicted[scored], classes)
    log.log_table(counts, f"{_FOLDER}/confusion_matrix.csv", index=True)
    report = with_label_names(class_report(labels[scored], predicted[scored], classes), names)
    log.log_table(report, f"{_FOLDER}/report.csv")
    right = (labels == predicted)[scored].mean()
    kind = "" if unseen.all() else " not seen in training" if unseen.any() else " seen in training"
    title = f"Accuracy {right:.1%} of {scored.sum():,} photos{kind}"
    log.log_figure(confusion_figure(counts, title, names), f"{_FOLDER}/confusion_matrix.png")
    wrong = predictions[scored & (labels != predicted)]
    worst = wrong.sort_values("probability", ascending=False).index.to_numpy()
    named = dict(zip(classes, names, strict=True))
    shown = predictions.assign(
        label_group=predictions["label_group"].map(named),
        predicted=predictions["predicted"].map(named),
    )
    log.log_figure(mistakes_figure(pixels, shown, worst), f"{_FOLDER}/mistakes.png")


def _log_description(log: RunLog, what: str, lines: list[str], loaded: LoadedModel) -> None:
    """Log the result as sentences, in the run's description and in a file."""
    sentences = [line[0].upper() + line[1:] for line in lines]
    summary = "\n\n".join([f"Evaluation of {what}.", *sentences])
    log.log_text(f"{summary}\n", f"{_FOLDER}/summary.md")
    if loaded.run_id:
        sentences.append(f"The model was trained in run {run_link(loaded.run_id)}.")
    # Two spaces end a line in Markdown.
    log.log_tags({DESCRIPTION_TAG: "  \n".join(sentences)})
