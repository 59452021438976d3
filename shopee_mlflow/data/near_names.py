"""Match names that differ from file names in a regular way, such as by a missing suffix."""

from __future__ import annotations

import itertools
import posixpath
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from urllib.parse import unquote, urlsplit

# The fewest names that establish a reading; fewer may be missing for other reasons.
_FEWEST = 3
# Number of names on which a reading is tried first.
_SAMPLE = 50

Change = Callable[[str], str]


@dataclass(frozen=True)
class Reading:
    """A way to match names with files.

    :ivar words: what is ignored or changed; empty if no reading helps.
    :ivar files: name -> path of the file relative to the folder; empty if no reading matches all.
    :ivar example: a name and the path of a file.
    """

    words: str
    files: dict[str, str]
    example: tuple[str, str]


@dataclass(frozen=True)
class _Step:
    """One difference to ignore: how to change a name, and how to change the path of a file."""

    words: str
    name: Change
    file: Change


def find_reading(
    names: Sequence[str], files: Iterable[str], folder: str, *, alone: bool
) -> Reading | None:
    """Find the simplest reading that matches every name that any reading can match.

    :param names: distinct names that match no file exactly.
    :param files: paths in the folder that no other name matches.
    :param folder: name of the folder of photos, with which names may begin.
    :param alone: whether no other name matches a file exactly. Otherwise a few names are not enough
        evidence, and the reading is only a hint.
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
    """The alternative steps for each kind of difference, in the order in which they apply."""

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
            _Step(f"the part before {folder}/ removed", after_folder, str),
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
    """Decode a URL, or a name with percent escapes, to a path."""
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
    """Changed path -> original path; None if several files have the same changed path."""
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
    """Name -> path of its file; empty unless each name has a file and no two share one."""
    candidates = index(tuple(step for step in steps if step.file is not str))
    found: dict[str, str] = {}
    for name in names:
        path = candidates.get(_key(name, steps))
        if path is None:
            return {}
        found[name] = path
    return found if len(set(found.values())) == len(found) else {}
