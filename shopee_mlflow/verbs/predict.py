"""Predict: any number of photos in, a CSV of label groups out, as a stream."""

from __future__ import annotations

import csv
import hashlib
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from ..console import say, watch
from ..data.catalog_csv import IMAGES_NAME, read_catalog
from ..data.images import SUFFIXES, read_pixels
from ..data.photo_files import find_photo_files
from ..errors import CatalogError, ImageError
from ..modeling.inference import FastClassifier
from ..modeling.metrics import softmax
from ..tracking.registry import LoadedModel, load_classifier

_BATCH = 32
# Batches that are decoded ahead of the network.
_AHEAD = 3


@dataclass(frozen=True)
class Photo:
    """A photo to classify: what it is called in the answer, and its file (None: refused)."""

    name: str
    file: Path | None


def predict(
    model: str,
    source: str,
    out: Path,
    *,
    images: str | None = None,
    top_k: int = 1,
    workers: int = 0,
) -> int:
    """Classify photos and write a CSV, a row a photo in the order of the source.

    Memory holds a few batches whatever the number of photos. While it is under way the answers
    stand in a file beside ``out``; interrupted, the same call goes on where that ends.

    :param model: an MLflow model URI, such as ``models:/shopee-classifier@champion``.
    :param source: a photo, a folder of photos, a pattern such as ``shop/*.jpg``, or a CSV with a
        column ``image``.
    :param images: the folder of a CSV's photos; None: train_images beside it.
    :param top_k: how many of the best label groups to give for each photo.
    :returns: the number of photos that could not be read; their rows hold the reason.
    :raises ShopeeError: when the model or the source is not there.
    """
    photos, key = find_photos(source, images)
    _check_place(out, source)
    loaded = load_classifier(model)
    k = min(top_k, len(loaded.classes))
    partial = out.with_name(f"{out.name}.{_fingerprint(loaded.identity, key, k, photos)}.partial")
    header = [key, "label_group", "probability", *_more_columns(k), "error"]
    done, bad = _resume(partial, header, photos)
    if done:
        say(
            f"{done:,} of {len(photos):,} photos are in {partial.name} already; going on from there"
        )
    progress = watch("classifying photos")
    with partial.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not partial.stat().st_size:
            writer.writerow(header)
        for rows in _answers(photos[done:], loaded, k, workers):
            writer.writerows(rows)
            file.flush()
            done += len(rows)
            bad += sum(row[-1] != "" for row in rows)
            progress(done, len(photos))
    partial.replace(out)
    say(f"{done:,} photos in {out}" + (f", {bad:,} of them could not be read" if bad else ""))
    return bad


def _check_place(out: Path, source: str) -> None:
    """Before any photo is classified: can the answers be put there?"""
    if out.is_dir():
        raise CatalogError(f"out={out}: is a folder; name a file, such as {out / 'answers.csv'}.")
    if out.exists() and out.resolve() == Path(source).expanduser().resolve():
        raise CatalogError(f"out={out}: is the source itself; name another file.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise CatalogError(f"out={out}: cannot be written ({error.strerror or error}).") from error


def find_photos(source: str, images: str | None = None) -> tuple[list[Photo], str]:
    """The photos that ``source`` names, in a fixed order, and the name of their column.

    :raises CatalogError: when there are none.
    """
    place = Path(source).expanduser()
    key = "image"
    if place.is_dir():
        files = sorted(f for f in place.rglob("*") if f.suffix.lower() in SUFFIXES)
        photos = [Photo(_text(f.relative_to(place).as_posix()), f) for f in files]
    elif place.suffix.lower() == ".csv":
        photos, key = _from_csv(place, images)
    elif place.is_file():
        photos = [Photo(_text(source), place)]
    elif has_magic(source):
        names = sorted(glob(str(place), recursive=True))  # noqa: PTH207 - from any folder
        photos = [Photo(_text(name), Path(name)) for name in names if Path(name).is_file()]
    else:
        raise CatalogError(f"{source}: no such photo, folder or CSV, looked for from {Path.cwd()}.")
    if not photos:
        raise CatalogError(f"{source}: holds no photo ({', '.join(SUFFIXES)}).")
    return photos, key


def _text(name: str) -> str:
    """File names need not be UTF-8, the answers are."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _from_csv(path: Path, images: str | None) -> tuple[list[Photo], str]:
    frame = read_catalog(path, required=("image",))
    folder = Path(images).expanduser() if images else path.parent / IMAGES_NAME
    if not folder.is_dir():
        raise CatalogError(f"images={folder}: no such folder of photos; name it with images.")
    key = "posting_id" if "posting_id" in frame else "image"
    files = find_photo_files(folder, list(frame["image"]))
    if files.note:
        say(files.note)
    return [Photo(name, file) for name, file in zip(frame[key], files.files, strict=True)], key


def _more_columns(k: int) -> Iterator[str]:
    for place in range(2, k + 1):
        yield from (f"label_group_{place}", f"probability_{place}")


def _fingerprint(model: str, key: str, k: int, photos: Iterable[Photo]) -> str:
    """Changes when the answers would: a partial file of another call is never gone on with."""
    sha = hashlib.sha256(f"{model}\n{key}\n{k}\n".encode())
    for photo in photos:
        sha.update(_text(f"{photo.name}\0{photo.file}\n").encode())
    return sha.hexdigest()[:12]


def _resume(partial: Path, header: list[str], photos: list[Photo]) -> tuple[int, int]:
    """How many photos the partial file answers, and how many of them with an error.

    What follows the last whole batch is taken out of the file: a batch of other photos can round
    an answer differently, and the file is to be the one of a call that nobody interrupted.
    """
    if not partial.is_file():
        return 0, 0
    done = bad = 0
    whole = partial.with_suffix(".whole")
    with (
        partial.open(encoding="utf-8", errors="replace", newline="") as old,
        whole.open("w", encoding="utf-8", newline="") as new,
    ):
        writer = csv.writer(new, lineterminator="\n")
        # A last line without its end was cut off in writing.
        rows = csv.reader(line for line in old if line.endswith("\n"))
        if next(rows, None) == header:
            writer.writerow(header)
            while batch := _whole_batch(rows, photos[done : done + _BATCH], len(header)):
                writer.writerows(batch)
                done += len(batch)
                bad += sum(row[-1] != "" for row in batch)
    whole.replace(partial)
    return done, bad


def _whole_batch(
    rows: Iterator[list[str]], photos: list[Photo], columns: int
) -> list[list[str]] | None:
    batch = list(islice(rows, len(photos)))
    fits = all(len(row) == columns for row in batch)
    names = [row[0] for row in batch if row]
    return batch if fits and names == [photo.name for photo in photos] else None


def _answers(
    photos: list[Photo], loaded: LoadedModel, k: int, workers: int
) -> Iterator[list[list[str]]]:
    """Rows of the CSV, a batch at a time; photos are decoded in threads while the network works."""
    network = FastClassifier(loaded.module)
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:

        def decode(photo: Photo) -> np.ndarray | str:
            """Pixels, or the reason in one line why there are none."""
            if photo.file is None:
                return "its path leaves the folder of photos"
            try:
                return read_pixels(photo.file, loaded.image_size)
            except ImageError as error:
                return " ".join(str(error).split())

        for part, pixels in _ahead(pool, decode, photos):
            yield _rows(part, pixels, network, loaded.classes, k)


def _ahead(
    pool: ThreadPoolExecutor, decode: Callable[[Photo], np.ndarray | str], photos: list[Photo]
) -> Iterator[tuple[list[Photo], list[np.ndarray | str]]]:
    waiting: deque[tuple[list[Photo], list[Future[np.ndarray | str]]]] = deque()
    remaining = iter(photos)
    while True:
        while len(waiting) < _AHEAD and (part := list(islice(remaining, _BATCH))):
            waiting.append((part, [pool.submit(decode, photo) for photo in part]))
        if not waiting:
            return
        part, futures = waiting.popleft()
        yield part, [future.result() for future in futures]


def _rows(
    photos: list[Photo],
    pixels: list[np.ndarray | str],
    network: FastClassifier,
    classes: list[str],
    k: int,
) -> list[list[str]]:
    good = [p for p in pixels if isinstance(p, np.ndarray)]
    answers: Iterator[list[str]] = iter(())
    if good:
        logits = network(torch.from_numpy(np.stack(good)).permute(0, 3, 1, 2)).numpy()
        answers = (_best(row, classes, k) for row in softmax(logits))
    rows = []
    for photo, result in zip(photos, pixels, strict=True):
        if isinstance(result, str):
            rows.append([photo.name, *[""] * (2 * k), result])
        else:
            rows.append([photo.name, *next(answers), ""])
    return rows


def _best(probabilities: np.ndarray, classes: list[str], k: int) -> list[str]:
    order = np.argsort(-probabilities, kind="stable")[:k]
    return [text for i in order for text in (classes[i], f"{probabilities[i]:.6f}")]
