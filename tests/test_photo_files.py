"""Matching names in a CSV to files: one rule that fits all, and never outside the folder."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MakeCatalog

from shopee_mlflow.data.catalog_csv import read_catalog
from shopee_mlflow.data.dataset import load_dataset
from shopee_mlflow.data.photo_files import find_photo_files
from shopee_mlflow.data.photo_sources import find_photos
from shopee_mlflow.data_config import DataConfig
from shopee_mlflow.exploring.photo_survey import survey_photos

NAMES = [f"photo é {i:02d}.jpg" for i in range(12)]


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., Path]:
    """A function that puts files of these names into shop/train_images."""

    def put(*names: str) -> Path:
        folder = tmp_path / "shop" / "train_images"
        for name in names:
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(name.encode())
        return folder

    return put


def nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def nfd(name: str) -> str:
    return unicodedata.normalize("NFD", name)


def same(name: str) -> str:
    return name


READINGS: dict[str, tuple[Callable[[str], str], Callable[[str], str], str]] = {
    "suffix": (lambda n: n[:-4], same, "the missing suffix added"),
    "other-suffix": (lambda n: n[:-4] + ".png", same, "another suffix"),
    "prefix": (lambda n: "train_images/" + n, same, "the part before train_images/ removed"),
    "other-prefix": (lambda n: "images/" + n, same, "the leading images/ removed"),
    "backslash": (lambda n: "sub\\" + n, lambda n: "sub/" + n, "backslashes as slashes"),
    "nfc": (nfc, nfd, "Unicode forms (NFC, NFD) as equal"),
    "nfd": (nfd, nfc, "Unicode forms (NFC, NFD) as equal"),
    "case": (same, lambda n: n.replace(".jpg", ".JPG"), "upper and lower case as equal"),
    "percent": (lambda n: n.replace(" ", "%20"), same, "percent escapes decoded"),
    "windows": (
        lambda n: "C:\\Users\\me\\train_images\\" + n,
        same,
        "backslashes as slashes, the part before train_images/ removed",
    ),
    "linux": (lambda n: "/home/me/images/" + n, same, "the leading /home/me/images/ removed"),
    "above": (lambda n: "../shop/train_images/" + n, same, "the part before train_images/"),
    "web": (
        lambda n: "https://x.example/a/" + n.replace(" ", "%20") + "?width=3",
        same,
        "percent escapes decoded, the leading",
    ),
    "nested": (same, lambda n: f"shop{n[-5]}/" + n, "subfolders searched"),
    "quotes": (lambda n: f"'{n}'", same, "quotes removed"),
    "several": (
        lambda n: "sub\\" + n[:-4].upper(),
        lambda n: "Sub/" + n,
        "backslashes as slashes, upper and lower case as equal, the missing suffix added",
    ),
}


@pytest.mark.fault
@pytest.mark.parametrize("kind", READINGS)
@pytest.mark.parametrize("as_written", [0, 6], ids=["all", "half"])
def test_names_that_nearly_match_are_found_where_one_reading_fits(
    store: Callable[..., Path], kind: str, as_written: int
) -> None:
    listed, stored, words = READINGS[kind]
    files = [stored(name) for name in NAMES]
    folder = store(*files)
    names = [*files[:as_written], *[listed(name) for name in NAMES[as_written:]]]
    found = find_photo_files(folder, names)
    assert found.found() == [folder / file for file in files]
    assert found.note.startswith(f"{12 - as_written} file names read with {words}")


def test_photos_that_are_missing_do_not_hide_the_reading(store: Callable[..., Path]) -> None:
    folder = store(*NAMES[2:])
    found = find_photo_files(folder, [name[:-4] for name in NAMES])
    assert found.found() == [None, None, *[folder / name for name in NAMES[2:]]]
    assert found.problems[:2] == ["no such file"] * 2


def test_no_reading_is_chosen_where_several_files_fit(store: Callable[..., Path]) -> None:
    folder = store(*NAMES, NAMES[3].replace(".jpg", ".png"))
    found = find_photo_files(folder, [name[:-4] for name in NAMES])
    assert found.found() == [None] * 12
    assert found.note == (
        f"'{NAMES[0][:-4]}' does not exist, but '{NAMES[0]}' does; they differ by the missing "
        "suffix added"
    )


def test_a_file_that_another_row_names_is_not_taken_for_a_missing_one(
    store: Callable[..., Path],
) -> None:
    folder = store(*NAMES)
    names = [*NAMES, *[name.replace(".jpg", ".png") for name in NAMES]]
    assert find_photo_files(folder, names).found() == [*[folder / n for n in NAMES], *[None] * 12]


def test_few_missing_names_are_a_hint_only(store: Callable[..., Path]) -> None:
    folder = store(*NAMES)
    found = find_photo_files(folder, [*NAMES[1:], "sub/" + NAMES[0]])
    assert found.found()[-1] is None
    assert found.note == (
        f"'sub/{NAMES[0]}' does not exist, but '{NAMES[0]}' does; they differ by the leading sub/ "
        "removed"
    )


def test_where_nothing_fits_a_name_and_a_file_are_shown(store: Callable[..., Path]) -> None:
    folder = store("IMG_1.png")
    found = find_photo_files(folder, ["1.jpg", "2.jpg"])
    assert found.note == "no name matches: the CSV names '1.jpg', the folder holds 'IMG_1.png'"


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.jpg", "sub/../../secret.jpg", "a\0"])
def test_no_reading_leaves_the_folder(store: Callable[..., Path], name: str) -> None:
    folder = store("a.jpg", "../secret.jpg")
    found = find_photo_files(folder, [name])
    assert found.found() == [None]
    assert found.problems == ["its path leaves the folder of photos"]


def test_linked_folders_are_searched_once(store: Callable[..., Path]) -> None:
    folder = store("../blobs/a/1.jpg", "../blobs/b/2.jpg", "3.jpg")
    (folder / "linked").symlink_to("../blobs")
    (folder / "again").symlink_to(".")
    found = find_photo_files(folder, ["1.jpg", "2.jpg", "3.jpg", "0.jpg"])
    assert [file and file.name for file in found.found()] == [None, None, "3.jpg", None]
    found = find_photo_files(folder, ["linked/a/1.JPG", "linked/b/2.JPG", "again/3.JPG"])
    assert [file.read_bytes()[-5:] for file in found.found()[:2] if file] == [b"1.jpg", b"2.jpg"]


def test_training_predict_and_explore_agree_on_links(
    make_catalog: MakeCatalog, tmp_path: Path
) -> None:
    shop = make_catalog(groups=2, each=6)
    (shop / "train_images").rename(tmp_path / "blobs")
    (shop / "train_images").mkdir()
    for number, blob in enumerate(sorted((tmp_path / "blobs").iterdir())):
        stored = blob.rename(blob.with_name(f"sha{number:02d}"))
        (shop / "train_images" / blob.name).symlink_to(f"../../blobs/{stored.name}")
    rows = read_catalog(shop / "train.csv")
    dataset = load_dataset(DataConfig(data=str(shop), image_size=32, cache=False))
    assert sorted(dataset.frame["image"]) == sorted(rows["image"])
    survey = survey_photos(rows, shop / "train_images")
    assert survey.count("ok") == len(rows) == 12
    photos = find_photos(str(shop / "train.csv")).photos
    assert all(photo.file and photo.file.is_file() for photo in photos)
