"""Clean the rows of a catalogue, step by step, which gives a table of photos and labels."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ..data_config import NONE
from ..errors import CatalogError
from ..options import expand_path
from .cleaning_record import Cleaning
from .label_checks import label_remarks
from .near_copies import PHASH
from .photo_files import SPECIAL_FILE, file_problem, find_photo_files


def drop_excluded(frame: pd.DataFrame, file: str, cleaning: Cleaning) -> pd.DataFrame:
    """Leave out the rows whose file name or posting id is in a list.

    :param file: a text file with one name or id per line; ``none``: no list.
    :raises CatalogError: when the file cannot be read or is empty.
    """
    if file == NONE:
        return frame
    names = _read_names(file)
    columns = [column for column in ("image", "posting_id") if column in frame]
    listed = frame[columns].isin(names).any(axis=1)
    known = {name for column in columns for name in frame.loc[listed, column]}
    if unknown := [name for name in names if name not in known]:
        few = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        cleaning.remarks.append(
            f"{len(unknown):,} of {len(names):,} names in {file} are not an image or posting_id of "
            f"the catalogue: {few}"
        )
    return cleaning.keep(frame, ~listed, "excluded", f"in the list {file}")


def _read_names(file: str) -> list[str]:
    """The distinct lines of a text file, without blank lines."""
    try:
        path = expand_path(file)
        if file_problem(path) == SPECIAL_FILE:
            raise OSError(errno.EINVAL, f"it is {SPECIAL_FILE}")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise CatalogError(
            f"exclude={file}: cannot be read ({reason}), relative to {Path.cwd()}. Name a text "
            "file with one file name or posting id per line."
        ) from error
    # splitlines would also split at other characters, which names may hold.
    names = list(dict.fromkeys(line.strip() for line in text.split("\n") if line.strip()))
    if not names:
        raise CatalogError(f"exclude={file}: is empty; use exclude=none to leave nothing out.")
    return names


def select_rows(frame: pd.DataFrame, largest_groups: int, cleaning: Cleaning) -> pd.DataFrame:
    """Select rows without reading photos: complete rows, the largest groups, each file once.

    Groups of equal size are ordered by their label, so the choice never depends on row order.

    :param largest_groups: how many of the largest groups to keep; 0 keeps all.
    :returns: one row per file, sorted by file name.
    :raises CatalogError: when no row is left.
    """
    complete = (frame["image"] != "") & (frame["label_group"] != "")
    kept = cleaning.keep(frame, complete, "incomplete_rows", "without image or label_group")
    if "split" in kept:
        kept = cleaning.keep(kept, kept["split"] != "", "without_split", "without a split")
    everything = kept
    cleaning.remarks += label_remarks(everything["label_group"])
    kept = _keep_largest(everything, largest_groups, cleaning)
    # Sorted first, so that the order in the file does not decide which repeated row is kept.
    order = ("image", "label_group", "split", "posting_id", "title", "image_phash", "label_name")
    by = [name for name in order if name in kept]
    kept = kept.sort_values(by, kind="stable", key=_test_first)
    if "split" in kept:
        several = int((kept.groupby("image")["split"].nunique() > 1).sum())
        cleaning.notes |= {"files_in_several_splits": several} if several else {}
    first = ~kept.duplicated(["image", "label_group"])
    kept = cleaning.keep(kept, first, "repeated_rows", "that repeat a file of their group")
    single = ~kept["image"].duplicated(keep=False)
    kept = cleaning.keep(kept, single, "conflicting_files", "of files with more than one label")
    if kept.empty:
        raise CatalogError("No row of the catalogue is left:\n" + "\n".join(cleaning.lines()))
    groups = everything.groupby("image")["label_group"].nunique()
    noisy = int((groups.reindex(kept["image"]) > 1).sum())
    if noisy:
        cleaning.notes["noisy_files"] = noisy
    return kept.reset_index(drop=True)


def _keep_largest(frame: pd.DataFrame, largest_groups: int, cleaning: Cleaning) -> pd.DataFrame:
    """Keep the largest label groups, and add a remark on what is left out."""
    sizes = frame["label_group"].value_counts()
    ranked = sorted(sizes.index, key=lambda label: (-sizes[label], label))
    chosen = ranked[:largest_groups] if largest_groups else ranked
    words = (
        f"outside the {len(chosen):,} largest label groups"
        if largest_groups
        else "outside the label groups, which are all kept"
    )
    inside = frame["label_group"].isin(chosen)
    kept = cleaning.keep(frame, inside, "outside_largest_groups", words)
    if len(chosen) < len(ranked):
        cleaning.remarks.append(
            f"keeping {len(chosen):,} of {len(ranked):,} label groups, "
            f"{kept['image'].nunique():,} of {frame['image'].nunique():,} photos; "
            "largest_groups=0 keeps all"
        )
    return kept


def _test_first(column: pd.Series) -> pd.Series:
    """A sort key: test before val before train; other columns are sorted by their values."""
    return column.map({"test": "0", "val": "1"}).fillna("2") if column.name == "split" else column


def locate_files(frame: pd.DataFrame, folder: Path, cleaning: Cleaning) -> pd.DataFrame:
    """Leave out rows whose path leaves the folder or whose file is missing; add ``file``.

    :returns: the frame with a column ``file`` of Path.
    """
    found = find_photo_files(folder, list(frame["image"]))
    if found.note:
        cleaning.remarks.append(found.note)
    frame = frame.assign(file=pd.Series(found.files, index=frame.index, dtype=object))
    inside = frame["file"].notna()
    problems = pd.Series(found.problems, index=frame.index, dtype=str)[inside]
    frame = cleaning.keep(frame, inside, "unsafe_paths", "whose path leaves the folder of photos")
    readable = problems == ""
    kept = cleaning.keep(
        frame,
        readable,
        "missing_files",
        f"whose file is not in {folder}",
        list(problems[~readable]),
    )
    if kept.empty:
        raise CatalogError(
            f"None of the catalogue's photos is in {folder}:\n" + "\n".join(cleaning.lines())
        )
    return kept.reset_index(drop=True)


def drop_bad_images(
    frame: pd.DataFrame, reasons: dict[int, str], policy: str, cleaning: Cleaning
) -> pd.DataFrame:
    """Leave out photos that do not decode, or raise an error with ``policy="error"``.

    The index of the frame is unchanged: it has the row numbers of the decoded pixels.
    """
    if reasons and policy == "error":
        few = [f"{frame['image'][row]}: {reasons[row]}" for row in list(reasons)[:10]]
        raise CatalogError(
            f"{len(reasons)} photos do not decode (bad_images=skip would leave them out):\n  "
            + "\n  ".join(few)
        )
    good = pd.Series(~frame.index.isin(list(reasons)), index=frame.index)
    why = [reasons[row] for row in frame.index[~good]]
    return cleaning.keep(frame, good, "bad_images", "that do not decode", why)


def drop_conflicting_contents(frame: pd.DataFrame, cleaning: Cleaning) -> pd.DataFrame:
    """Leave out photos whose bytes occur in several files with different labels."""
    labels = frame.groupby("content")["label_group"].transform("nunique")
    return cleaning.keep(
        frame,
        labels == 1,
        "conflicting_contents",
        "equal, byte for byte, to a photo of another label",
    )


def drop_small_groups(frame: pd.DataFrame, minimum: int, cleaning: Cleaning) -> pd.DataFrame:
    """Leave out label groups with fewer than ``minimum`` photos.

    :raises CatalogError: when fewer than two groups are left.
    """
    sizes = frame.groupby("label_group")["image"].transform("size")
    frame = cleaning.keep(
        frame, sizes >= minimum, "small_groups", f"in groups of fewer than {minimum} photos"
    )
    groups = frame["label_group"].nunique()
    if groups < 2:
        raise CatalogError(
            f"A classifier needs two label groups with at least {minimum} photos each, and "
            f"{groups} {'is' if groups == 1 else 'are'} left:\n" + "\n".join(cleaning.lines())
        )
    return frame


def drop_untrained_groups(frame: pd.DataFrame, cleaning: Cleaning) -> pd.DataFrame:
    """Leave out label groups without a photo in train, if the catalogue has a split.

    :raises CatalogError: when fewer than two groups are left.
    """
    if "split" not in frame:
        return frame
    trained = frame["label_group"].isin(frame.loc[frame["split"] == "train", "label_group"])
    frame = cleaning.keep(frame, trained, "untrained_groups", "in groups without a photo in train")
    if frame["label_group"].nunique() < 2:
        raise CatalogError(
            "A classifier needs two label groups with photos in train, and fewer are left:\n"
            + "\n".join(cleaning.lines())
        )
    return frame


def fill_phashes(
    frame: pd.DataFrame, compute: Callable[[list[Path]], list[str]], cleaning: Cleaning
) -> pd.DataFrame:
    """Add ``image_phash``, 16 hexadecimal digits, and compute missing and invalid values.

    :param compute: takes files, returns their phashes.
    """
    if "image_phash" in frame:
        phashes = frame["image_phash"].str.lower()
        valid = phashes.map(lambda text: bool(PHASH.fullmatch(text))).astype(bool)
        if not valid.all():
            cleaning.notes["invalid_phashes"] = int((~valid).sum())
    else:
        phashes = pd.Series("", index=frame.index)
        valid = pd.Series(False, index=frame.index)
    missing = frame.index[~valid]
    if missing.empty:
        return frame.assign(image_phash=phashes)
    computed = pd.Series(compute(list(frame.loc[missing, "file"])), index=missing, dtype=str)
    return frame.assign(image_phash=pd.concat([phashes[valid], computed]))
