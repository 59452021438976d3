"""Predict: classify photos and write their label groups to a CSV."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
from filelock import Timeout

from ..console import say, watch
from ..data.file_locks import locked
from ..data.photo_sources import Photo, PhotoSource, find_photos
from ..data_config import AUTO
from ..errors import CatalogError
from ..modeling.inference import BATCH, Prediction, Predictor, check_answer_options
from ..options import expand_path
from ..tracking.registry import LoadedModel, load_classifier

# Most file systems allow 255 bytes, and the partial file has a longer name than the output.
_LONGEST_NAME = 255 - len(".0123456789ab.partial")


def predict(
    model: str,
    source: str,
    out: Path,
    *,
    images: str | None = None,
    image_column: str = AUTO,
    top_k: int = 1,
    workers: int = 0,
    unknown: str = AUTO,
) -> int:
    """Classify photos and write a CSV with one row per photo, in the order of the source.

    Only a few batches are in memory at a time. The rows are written to a partial file beside
    ``out``, which is renamed at the end. After an interruption, the same call resumes from the
    partial file, unless photos or the model have changed.

    :param model: an MLflow model URI, such as ``models:/shopee-classifier@champion``.
    :param source: a photo, a folder of photos, a pattern such as ``shop/*.jpg``, or a table with a
        column of file names.
    :param images: the folder of a table's photos; None: see
        :func:`~shopee_mlflow.data.catalog_csv.find_images`.
    :param image_column: the column of file names; auto: ``image`` or another common name.
    :param top_k: number of label groups per photo, the most probable first.
    :param workers: number of threads that decode photos; 0: one per core.
    :param unknown: auto: the answer for a photo that looks like no label group is ``unknown``, if
        the model has a threshold for its ``known_score``; none: always a label group.
    :returns: the number of photos that could not be read; their rows have the reason.
    :raises ShopeeError: when an option is invalid, the model or the source does not exist, no photo
        can be read, or another process is writing ``out``.
    """
    check_answer_options(top_k, unknown, workers)
    found = find_photos(source, images, image_column)
    _check_output(out, source)
    if found.passed_over:
        say(found.passed_over_in_words())
    if found.note:
        say(found.note)
    with _only_writer(out):
        loaded = load_classifier(model)
        written = _write(found, loaded, out, min(top_k, len(loaded.classes)), workers, unknown)
    total, bad = written.done, written.bad
    if bad == total:
        raise CatalogError(
            f"None of the {total:,} photos could be read: {written.reason}. They were expected in "
            f"{found.place}; {out} has the reason for each photo."
        )
    say(f"{total:,} photos in {out}" + (f"; {bad:,} of them could not be read" if bad else ""))
    return bad


def _check_output(out: Path, source: str) -> None:
    """Check before classifying that the output can be written."""
    if len(os.fsencode(out.name)) > _LONGEST_NAME:
        raise CatalogError(f"out={out}: the name is too long; use up to {_LONGEST_NAME} bytes.")
    if out.is_dir():
        raise CatalogError(f"out={out}: is a folder; name a file, such as {out / 'answers.csv'}.")
    if out.exists() and not out.is_file():
        raise CatalogError(f"out={out}: is not a regular file.")
    if out.exists() and out.resolve() == expand_path(source).resolve():
        raise CatalogError(f"out={out}: is the source; name another file.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise CatalogError(f"out={out}: cannot be written ({error.strerror or error}).") from error


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Allow one process at a time to write a file, by a lock that ends with its process."""
    lock = out.with_name(f".{out.name}.lock")
    try:
        with locked(lock, wait=False):
            try:
                yield
            finally:
                # Delete the file while it is locked, so that a waiting process notices it.
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise CatalogError(
            f"out={out}: another predict is writing this file. Wait until it has ended, or name "
            "another file."
        ) from error


@dataclass
class _Progress:
    """The number of rows written, how many of them have an error, and the first error."""

    done: int = 0
    bad: int = 0
    reason: str = ""

    def add(self, rows: list[list[str]]) -> None:
        errors = [row[-1] for row in rows if row[-1]]
        self.done += len(rows)
        self.bad += len(errors)
        self.reason = self.reason or next(iter(errors), "")


def _write(
    found: PhotoSource, loaded: LoadedModel, out: Path, k: int, workers: int, unknown: str
) -> _Progress:
    photos, predictor = found.photos, Predictor(loaded.module, loaded.classes)
    key = _fingerprint(loaded.identity, found, k, unknown)
    partial = out.with_name(f"{out.name}.{key}.partial")
    score = ["known_score"] if predictor.has_detector else []
    header = [found.key, *_columns(k), *score, "error"]
    names = dict(zip(loaded.classes, loaded.label_names or loaded.classes, strict=True))
    show = watch("classifying photos")
    with partial.open("a+b") as file:
        progress = _resume(file, header, photos)
        if progress.done:
            say(
                f"{progress.done:,} of {len(photos):,} photos are in {partial.name}; resuming there"
            )
        else:
            file.write(_as_csv([header]))
        remaining = photos[progress.done :]

        def decode(photo: Photo) -> np.ndarray:
            return photo.read(loaded.image_size, loaded.resize)

        for predictions in predictor.predict(
            remaining, decode, top_k=k, workers=workers, unknown=unknown
        ):
            part = photos[progress.done : progress.done + len(predictions)]
            rows = [_row(*pair, len(header), names) for pair in zip(part, predictions, strict=True)]
            file.write(_as_csv(rows))
            file.flush()
            progress.add(rows)
            show(progress.done, len(photos))
    partial.replace(out)
    return progress


def _columns(k: int) -> Iterator[str]:
    for rank in range(1, k + 1):
        number = "" if rank == 1 else f"_{rank}"
        yield from (f"label_group{number}", f"label_name{number}", f"probability{number}")


def _fingerprint(model: str, found: PhotoSource, k: int, unknown: str) -> str:
    """A digest of all that affects the output, so that only a matching partial file is resumed."""
    sha = hashlib.sha256(repr((model, found.key, k, unknown)).encode())
    for photo in found.photos:
        sha.update(repr((photo.name, str(photo.file), photo.state())).encode())
    return sha.hexdigest()[:12]


def _resume(file: IO[bytes], header: list[str], photos: list[Photo]) -> _Progress:
    """Read the progress from a partial file, and truncate the file after its last complete batch.

    Incomplete batches are computed again, since rounding errors of probabilities can depend on the
    other photos of a batch. The output must be the same as without the interruption.
    """
    file.seek(0)
    kept, progress = 0, _Progress()
    lines = _Lines(file)
    reader = csv.reader(lines)
    if next(reader, None) == header:
        while batch := _whole_batch(
            reader, photos[progress.done : progress.done + BATCH], len(header)
        ):
            progress.add(batch)
            kept = lines.bytes_read
    file.truncate(kept)
    return progress


class _Lines:
    """Yield the complete lines of a file as text, and count their bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.bytes_read = 0

    def __iter__(self) -> Iterator[str]:
        for line in self.file:
            # Without a line break, writing the last line was interrupted.
            if not line.endswith(b"\n"):
                return
            self.bytes_read += len(line)
            yield line.decode("utf-8", "replace")


def _whole_batch(
    rows: Iterator[list[str]], photos: list[Photo], columns: int
) -> list[list[str]] | None:
    batch = list(islice(rows, len(photos)))
    fits = all(len(row) == columns for row in batch)
    names = [row[0] for row in batch if row]
    return batch if fits and names == [photo.name for photo in photos] else None


def _row(photo: Photo, prediction: Prediction, columns: int, names: Mapping[str, str]) -> list[str]:
    if prediction.error is not None:
        reason = " ".join(prediction.error.split()) or "unreadable"
        return [photo.name, *[""] * (columns - 2), reason]
    best = zip(prediction.answers(), prediction.probabilities, strict=True)
    answer = [
        text for label, value in best for text in (label, names.get(label, label), f"{value:.6f}")
    ]
    score = [] if prediction.known_score is None else [f"{prediction.known_score:.4f}"]
    return [photo.name, *answer, *score, ""]


def _as_csv(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        # The csv module does not quote a carriage return, which readers treat as the end of a row.
        writer = quoted if any("\r" in value for value in row) else plain
        writer.writerow(row)
    return text.getvalue().encode("utf-8", "backslashreplace")
