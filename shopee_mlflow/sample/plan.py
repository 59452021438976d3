"""Plan the sample catalogue before drawing it: groups, files, copies and postings."""

from __future__ import annotations

import random
from collections import Counter
from itertools import cycle
from typing import NamedTuple

from .designs import DESIGNS, GOODS, Design

SEED = "shopee-sample-1"

# Numbers of rows, repeated rows and near copies in the 21 largest groups, and of rows in the small
# groups. The rows of the largest groups are as many as in the real data.
ROWS = (*[51] * 7, 49, 46, 46, 45, 41, 37, 36, 35, 35, 35, 35, 34, 34, 34)
REPEATS = (9, 7, 6, 5, 5, 4, 4, 4, 4, 3, 3, 3, 3, 2, 2, 2, 2, 2, 1, 1, 0)
COPIES = (4, 1, 3, 2, 4, 2, 3, 2, 3, 1, 4, 2, 3, 2, 3, 2, 1, 3, 2, 2, 1)
SMALL_ROWS = (6, 5, 4, 4, 3, 3, 2, 2, 2, 2, 2, 1)
# Pairs (from, to) of small groups. A file of the first is also listed in the second (CONFLICTS), or
# a near copy of it (CROSS_COPY).
CONFLICTS = ((0, 1), (2, 3), (4, 6))
CROSS_COPY = (1, 5)

OFFERS = ("PROMO", "READY STOCK", "MURAH", "BEST SELLER", "[COD]", "Grosir", "TERLARIS", "SALE")
EXTRAS = ("termurah", "bisa COD", "100% baru", "kualitas premium", "import", "free bubble wrap")
LISTS = (
    "kecil, sedang, besar",
    "ecer, grosir, reseller",
    "tebal, awet, halus",
    "kado, souvenir, hampers",
)
# In the real CSV, some characters are written as escapes of their UTF-8 bytes.
ESCAPES = (r"\xe2\x9d\xa4", r"\xf0\x9f\x94\xa5", r"\xe2\x9c\xa8", r"\xe2\xad\x90")


class Photo(NamedTuple):
    """A drawn photo: its group, its number in the group, its file, the files of its near copies."""

    group: int
    number: int
    image: str
    copies: tuple[str, ...] = ()


class Row(NamedTuple):
    """One posting. The hash of its photo is computed when the photo is written."""

    posting_id: str
    image: str
    title: str
    label_group: int


class Plan(NamedTuple):
    """All photos and rows of the catalogue. They do not depend on the size in pixels."""

    photos: list[Photo]
    rows: list[Row]


def make_plan() -> Plan:
    """Plan all photos and postings of the sample; postings are in shuffled order."""
    rng = random.Random(SEED)
    photos, postings = _plan_large(rng)
    small_photos, small_postings = _plan_small(rng)
    postings += small_postings
    rng.shuffle(postings)
    labels = rng.sample(range(10**8, 4 * 10**9), len(DESIGNS))
    numbers = rng.sample(range(10**6, 4 * 10**9), len(postings))
    rows = [
        Row(f"train_{number}", image, _title(DESIGNS[group], rng), labels[group])
        for number, (group, image) in zip(numbers, postings, strict=True)
    ]
    return Plan(photos + small_photos, rows)


def _name(rng: random.Random) -> str:
    return f"{rng.getrandbits(128):032x}.jpg"


def _plan_large(rng: random.Random) -> tuple[list[Photo], list[tuple[int, str]]]:
    """The photos and the postings (group, image) of the 21 largest groups."""
    photos, postings = [], []
    for group, (rows, repeats, copies) in enumerate(zip(ROWS, REPEATS, COPIES, strict=True)):
        files = [_name(rng) for _ in range(rows - repeats)]
        drawn = len(files) - copies
        extras = files[drawn:]
        photos += [
            Photo(group, number, files[number], tuple(extras[number : number + 1]))
            for number in range(drawn)
        ]
        postings += [(group, image) for image in files + _repeated(files, repeats, rng)]
    return photos, postings


def _repeated(files: list[str], count: int, rng: random.Random) -> list[str]:
    """The files of ``count`` additional postings, each file one to three times."""
    chosen: list[str] = []
    pool, times = rng.sample(files, len(files)), cycle((1, 2, 1, 3, 1))
    while len(chosen) < count:
        chosen += [pool.pop()] * min(next(times), count - len(chosen))
    return chosen


def _plan_small(rng: random.Random) -> tuple[list[Photo], list[tuple[int, str]]]:
    """The small groups, with the label noise of the real data: see CONFLICTS and CROSS_COPY."""
    first = len(ROWS)
    copied, other = CROSS_COPY
    borrowed = Counter(to for _, to in CONFLICTS)
    borrowed[other] += 1
    photos, postings = [], []
    for small, rows in enumerate(SMALL_ROWS):
        for number in range(rows - borrowed[small]):
            extra = (_name(rng),) if (small, number) == (copied, 0) else ()
            photos.append(Photo(first + small, number, _name(rng), extra))
            postings.append((first + small, photos[-1].image))
            postings += [(first + other, name) for name in extra]
    for source, to in CONFLICTS:
        image = next(photo.image for photo in photos if photo.group == first + source)
        postings.append((first + to, image))
    return photos, postings


def _title(design: Design, rng: random.Random) -> str:
    words = [rng.choice(GOODS[design.shape]), design.word.title()]
    if rng.random() < 0.4:
        words.insert(0, rng.choice(OFFERS))
    if rng.random() < 0.6:
        words.append(rng.choice(EXTRAS))
    if rng.random() < 0.06:
        words.append(f"({rng.choice(LISTS)})")
    title = " ".join(words)
    if rng.random() < 0.2:
        title = title.upper()
    if rng.random() < 0.03:
        sign = rng.choice(ESCAPES)
        title = f"{sign} {title} {sign}"
    return title
