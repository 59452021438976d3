"""Survey the photos of a catalogue. Threads open each photo once and release it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..data.images import open_photo, upright_rgb, upright_size
from ..data.near_copies import PHASH
from ..data.photo_files import find_photo_files
from ..data.pixel_cache import Progress, hash_file, phash_of
from ..data.plain_photos import detail_of
from ..errors import ImageError

OK, BAD, MISSING, OUTSIDE, LEFT_OUT = STATES = (
    "ok",
    "does not decode",
    "missing",
    "outside the folder",
    "not looked at",
)
_LEVELS = 256
_NUMBERS = ("bytes", "width", "height", "phash_bits")
_MEANS = ("red", "green", "blue")
_FLOATS = (*_MEANS, "detail")
_TEXTS = ("image", "state", "reason", "format", "mode", "content", "phash", "listed_phash")
# Limits the number of results waiting in memory.
_AHEAD = 1000


@dataclass(frozen=True)
class PhotoSurvey:
    """The state and properties of a catalogue's photos.

    :ivar folder: the folder of photos.
    :ivar table: one row for each file name of the catalogue, sorted. Columns image; state, one of
        ``STATES``; reason for a decoding error; bytes; format; mode, as stored; width and height,
        upright; red, green, blue, the means 0..255; content, the digest of the bytes;
        phash; listed_phash, the catalogue's; phash_bits, the number of bits that differ; detail,
        see :func:`~shopee_mlflow.data.plain_photos.detail_of`.
    :ivar levels: (3, 256) float, for red, green and blue the mean share of pixels at each level;
        each photo has the same weight.
    """

    folder: Path
    table: pd.DataFrame
    levels: np.ndarray

    def count(self, state: str) -> int:
        """The number of files in a state."""
        return int((self.table["state"] == state).sum())

    @property
    def present(self) -> int:
        """The number of files in the folder."""
        return len(self.table) - self.count(MISSING) - self.count(OUTSIDE)

    @property
    def good(self) -> pd.DataFrame:
        """The rows of photos that decode."""
        return self.table[self.table["state"] == OK]

    @property
    def complete(self) -> bool:
        """Whether every photo that is present was opened."""
        return self.count(LEFT_OUT) == 0

    def phashes(self) -> dict[str, str]:
        """File name -> phash of photos that decode."""
        return dict(zip(self.good["image"], self.good["phash"], strict=True))

    def facts(self) -> dict[str, int]:
        """Name -> number."""
        facts = {f"photos_{state.replace(' ', '_')}": self.count(state) for state in STATES}
        bits = self.good["phash_bits"].dropna()
        return {
            **facts,
            "phashes_compared": len(bits),
            "phashes_equal": int((bits == 0).sum()),
            "photo_bytes": int(self.table["bytes"].fillna(0).sum()),
        }


def survey_photos(
    rows: pd.DataFrame,
    folder: Path,
    *,
    most: int = 0,
    seed: int = 0,
    workers: int = 0,
    progress: Progress | None = None,
) -> PhotoSurvey:
    """Survey the photos that a catalogue names.

    :param rows: column image, and optionally image_phash.
    :param most: most photos to open, a random sample drawn with ``seed``; 0: all. All files are
        checked for presence.
    """
    listed = _listed_phashes(rows)
    names = sorted(name for name in set(rows["image"]) if name)
    records = {name: _new_record(name, listed.get(name, "")) for name in names}
    looked_up = find_photo_files(folder, names)
    files: dict[str, Path] = {}
    for name, file, problem in zip(names, looked_up.files, looked_up.problems, strict=True):
        if file is None:
            records[name]["state"] = OUTSIDE
        elif problem:
            records[name]["reason"] = problem
        else:
            files[name] = file
    for name in files:
        records[name]["state"] = LEFT_OUT
    chosen = _choose(sorted(files), most, seed)
    levels = np.zeros((3, _LEVELS))
    opened = 0
    inspected = _inspect_all([files[name] for name in chosen], workers, progress)
    for name, (about, shares) in zip(chosen, inspected, strict=True):
        records[name].update(about)
        if shares is not None:
            opened += 1
            levels += shares
    return PhotoSurvey(folder, _table(list(records.values())), levels / max(opened, 1))


def _choose(names: list[str], most: int, seed: int) -> list[str]:
    if not most or len(names) <= most:
        return names
    chosen = np.random.default_rng(seed).choice(len(names), most, replace=False)
    return [names[index] for index in sorted(chosen)]


def _inspect_all(
    files: list[Path], workers: int, progress: Progress | None
) -> Iterator[tuple[dict[str, Any], np.ndarray | None]]:
    """Inspect the files in order, a bounded number ahead of the caller."""
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for start in range(0, len(files), _AHEAD):
            results = pool.map(_inspect, files[start : start + _AHEAD])
            for done, found in enumerate(results, start + 1):
                yield found
                if progress:
                    progress(done, len(files))


def _inspect(file: Path) -> tuple[dict[str, Any], np.ndarray | None]:
    """Properties of one photo, and the share of its pixels at each level, (3, 256)."""
    about: dict[str, Any] = {"content": hash_file(file), "bytes": _size(file)}
    try:
        with open_photo(file) as image:
            about |= {"format": image.format or "", "mode": image.mode}
            rgb = upright_rgb(image)
            counts = np.array(rgb.histogram(), dtype=float).reshape(3, _LEVELS)
            shares = counts / counts.sum(axis=1, keepdims=True)
            means = shares @ np.arange(_LEVELS)
            about |= dict(zip(_MEANS, (float(mean) for mean in means), strict=True))
            width, height = upright_size(image)
            about |= {"width": width, "height": height, "phash": phash_of(image)}
            about["detail"] = detail_of(rgb)
    except ImageError as error:
        return {**about, "state": BAD, "reason": str(error)}, None
    return {**about, "state": OK}, shares


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


def _listed_phashes(rows: pd.DataFrame) -> dict[str, str]:
    """File name -> the first valid phash that the catalogue gives for it."""
    if "image_phash" not in rows:
        return {}
    phashes = rows["image_phash"].str.lower()
    valid = phashes.str.fullmatch(PHASH)
    first = pd.DataFrame({"image": rows["image"], "phash": phashes})[valid]
    first = first.drop_duplicates("image")
    return dict(zip(first["image"], first["phash"], strict=True))


def _new_record(name: str, listed: str) -> dict[str, Any]:
    texts = dict.fromkeys(_TEXTS, "")
    numbers = dict.fromkeys((*_NUMBERS, *_FLOATS))
    return {**texts, **numbers, "image": name, "state": MISSING, "listed_phash": listed}


def _table(records: list[dict[str, Any]]) -> pd.DataFrame:
    for record in records:
        if record["phash"] and record["listed_phash"]:
            differing = int(record["phash"], 16) ^ int(record["listed_phash"], 16)
            record["phash_bits"] = differing.bit_count()
    columns = [
        *("image", "state", "reason", "bytes", "format", "mode", "width", "height"),
        *_MEANS,
        *("content", "phash", "listed_phash", "phash_bits", "detail"),
    ]
    table = pd.DataFrame(records, columns=columns)
    kinds = {**dict.fromkeys(_TEXTS, "str"), **dict.fromkeys(_NUMBERS, "Int64")}
    return table.astype({**kinds, **dict.fromkeys(_FLOATS, "float")})
