"""Names that nearly match files: how they have to be read, where one reading fits all of them."""

from __future__ import annotations

import itertools
import posixpath
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from urllib.parse import unquote, urlsplit

# Fewer names may be missing for other reasons than the way in which they are written.
_FEWEST = 3
# Names on which a reading is tried before all of them.
_SAMPLE = 50

Change = Callable[[str], str]


@dataclass(frozen=True)
class Reading:
    """How names are read.

    :ivar words: what is ignored or changed; empty when nothing helps.
    :ivar files: name -> path of the file relative to the folder; empty when no reading fits all.
    :ivar example: a name and the path of a file.
    """

    words: str
    files: dict[str, str]
    example: tuple[str, str]


@dataclass(frozen=True)
class _Step:
    """One thing to ignore: what to do to a name, and what to do to the path of a file."""

    words: str
    name: Change
    file: Change


def find_reading(
    names: Sequence[str], files: Iterable[str], folder: str, *, alone: bool
) -> Reading | None:
    """Find the simplest reading by which every name is found that is there in any reading.

    :param names: that no file has, each once.
    :param files: paths in the folder that no other name stands for.
    :param folder: name of the folder of photos, which may lead a name.
    :param alone: whether no other name was found as it is written. Otherwise a few names are not
        enough to tell a way of writing, and the reading serves as a hint only.
    :returns: None when no file resembles any name.
    """
    paths = list(files)
    if not paths:
        return None
    choices = _choices(names, folder)
    index = cache(lambda steps: _index(paths, [step.file for step in steps]))
    possible = _resembling(names, choices, index)
    if not possible:
        return Reading("", {}, (names[0], paths[0])) if alone else None
    if alone or len(possible) >= _FEWEST:
        for steps in _by_size(choices):
            found = _resolve(possible[:_SAMPLE], steps, index) and _resolve(possible, steps, index)
            if found:
                return Reading(_words(steps), found, next(iter(found.items())))
    for steps in _by_size(choices):
        if found := _resolve(possible[:1], steps, index):
            return Reading(_words(steps), {}, next(iter(found.items())))
    return None


def _choices(names: Sequence[str], folder: str) -> list[list[_Step | None]]:
    """For each kind of difference the steps to choose from, in the order of their application."""

    def after_folder(name: str) -> str:
        parts = name.split("/")
        last = len(parts) - parts[::-1].index(folder) if folder in parts else 0
        return "/".join(parts[last:])

    def without_start(name: str) -> str:
        return name.removeprefix(start).removeprefix("/")

    slashes = [_decoded(_slashes(name)) for name in names]
    start = _common_folder(slashes)
    return [
        [None, _Step("backslashes as slashes", _slashes, str)],
        [None, _Step("percent escapes decoded", _decoded, str)],
        [None, _Step("quotes removed", lambda name: name.strip("'\"` "), str)],
        [
            None,
            _Step(f"what leads up to {folder}/ removed", after_folder, str),
            _Step(f"the leading {start} removed", without_start, str),
        ],
        [None, _Step("subfolders searched", str, posixpath.basename)],
        [None, _Step("Unicode forms (NFC, NFD) as equal", _nfc, _nfc)],
        [None, _Step("upper and lower case as equal", str.casefold, str.casefold)],
        [
            None,
            _Step("the missing suffix added", str, _stem),
            _Step("another suffix", _stem, _stem),
        ],
    ]


def _slashes(name: str) -> str:
    return name.replace("\\", "/")


def _decoded(name: str) -> str:
    """A web address or a name with percent escapes as a path."""
    return unquote(urlsplit(name).path if "://" in name else name)


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]


def _common_folder(names: Sequence[str]) -> str:
    """The leading folders that all names share, with a slash at the end."""
    folders = [posixpath.dirname(name).split("/") for name in names]
    common = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    return "/".join(parts[0] for parts in common) + "/"


def _by_size(choices: list[list[_Step | None]]) -> Iterator[tuple[_Step, ...]]:
    """All readings, those with the fewest steps first; another suffix is the last resort."""
    another = choices[-1][-1]
    readings = [
        tuple(step for step in steps if step is not None) for steps in itertools.product(*choices)
    ]
    return iter(
        sorted(
            (steps for steps in readings if steps), key=lambda some: (len(some), another in some)
        )
    )


def _words(steps: tuple[_Step, ...]) -> str:
    return ", ".join(step.words for step in steps)


def _applied(text: str, changes: Iterable[Change]) -> str:
    for change in changes:
        text = change(text)
    return text


def _key(name: str, steps: tuple[_Step, ...]) -> str:
    return posixpath.normpath(_applied(name, (step.name for step in steps)))


def _index(paths: list[str], changes: list[Change]) -> dict[str, str | None]:
    """Changed path -> the path; None where it is that of several files."""
    found: dict[str, str | None] = {}
    for path in paths:
        key = _applied(path, changes)
        found[key] = None if key in found else path
    return found


Index = Callable[[tuple[_Step, ...]], dict[str, str | None]]


def _resembling(names: Sequence[str], choices: list[list[_Step | None]], index: Index) -> list[str]:
    """The names that some file resembles when all differences are ignored at once."""
    whole = [steps[-1] for steps in choices]
    start, folder = choices[3][1], choices[3][2]
    added, other = choices[7][1], choices[7][2]
    lenient = []
    for lead, below, suffix in itertools.product((start, folder), choices[4], (added, other)):
        steps = [*whole[:3], lead, below, *whole[5:7], suffix]
        lenient.append(tuple(step for step in steps if step is not None))
    return [name for name in names if any(_key(name, steps) in index(steps) for steps in lenient)]


def _resolve(names: Sequence[str], steps: tuple[_Step, ...], index: Index) -> dict[str, str]:
    """Name -> path of its file; empty unless each name has a file, and one of its own."""
    there = index(tuple(step for step in steps if step.file is not str))
    found: dict[str, str] = {}
    for name in names:
        path = there.get(_key(name, steps))
        if path is None:
            return {}
        found[name] = path
    return found if len(set(found.values())) == len(found) else {}
