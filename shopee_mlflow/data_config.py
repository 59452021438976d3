"""The options of a catalogue and of its split, which all commands share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from .errors import ConfigError
from .options import Group, Role, option, parse_option, unknown_option

SAMPLE = "sample"
AUTO = "auto"
NONE = "none"


@dataclass(frozen=True)
class DataConfig:
    """Options of the data and of its split.

    On construction, text is converted to the type of its option, and all values are checked.

    :raises ConfigError: listing every value of the wrong type or out of range.
    """

    def __new__(cls, *_values: Any, **options: Any) -> Self:
        """Refuse unknown options with the names that are meant, as on the command line.

        :raises ConfigError: listing them.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in options if name not in names]:
            raise ConfigError([unknown_option(name, names) for name in unknown])
        return super().__new__(cls)

    def __post_init__(self) -> None:
        problems = []
        for field in dataclasses.fields(self):
            try:
                value = parse_option(type(self), field.name, getattr(self, field.name))
                object.__setattr__(self, field.name, value)
            except ValueError as error:
                problems.append(str(error))
        problems = problems or self.contradictions()
        if problems:
            raise ConfigError(problems)

    data: str = option(
        SAMPLE,
        "folder with train.csv and train_images/ or with a folder of photos for each label, or a "
        "table; 'sample' is built in",
        Role.SETUP,
        begins=Group.DATA,
    )
    images: str = option(
        AUTO, "folder of a table's photos; auto: train_images or images beside it", Role.SETUP
    )
    image_column: str = option(
        AUTO, "column with file names; auto: image, or a usual name", Role.SETUP
    )
    label_column: str = option(
        AUTO, "column with labels; auto: label_group, or a usual name", Role.SETUP
    )
    title_column: str = option(AUTO, "column with titles; auto: title, or a usual name", Role.SETUP)
    split_column: str = option(
        AUTO, "column with train, val and test; auto: split, if it is there; none", Role.DATA
    )
    label_folder: str = option(
        AUTO,
        "label of nested photos; path: all folders",
        Role.DATA,
        choices=(AUTO, "first", "path"),
        details="In a folder of class folders, the label of a photo is the name of its first "
        "folder (first) or the path of all its folders (path). auto: an error if both are "
        "possible.",
    )
    val_csv: str = option(
        NONE, "table of the validation photos; data then holds the training photos", Role.SETUP
    )
    test_csv: str = option(
        NONE, "table of the test photos; data then holds the training photos", Role.SETUP
    )
    exclude: str = option(
        NONE, "text file of file names or posting ids to leave out, one a line", Role.SETUP
    )
    corrections: str = option(
        NONE,
        "table of reviewed labels, as cross-validate writes it",
        Role.SETUP,
        details="Its columns are image, label_group, action (relabel, drop or keep) and "
        "new_label_group.",
    )
    sample_px: int = option(
        256, "side of the built-in sample's photos", Role.DATA, minimum=64, maximum=4096
    )
    largest_groups: int = option(
        21, "keep this many of the largest label groups, by rows; 0 keeps all", Role.DATA, minimum=0
    )
    min_group: int = option(
        3, "leave out label groups with fewer photos than this after cleaning", Role.DATA, minimum=2
    )
    bad_images: str = option(
        "skip",
        "photos that cannot be decoded: skip leaves them out, error stops",
        Role.DATA,
        choices=("skip", "error"),
    )
    split: str = option(
        "leak_free",
        "leak_free keeps copies of a photo in one split; or random",
        Role.DATA,
        choices=("leak_free", "random"),
    )
    near_bits: int = option(
        4,
        "copies are photos whose phashes differ in at most this many bits",
        Role.DATA,
        minimum=0,
        maximum=6,
        details="A phash has 64 bits. With 0, only photos with equal phashes or equal bytes are "
        "copies.",
    )
    split_seed: int = option(
        0, "seed of the train/val/test split", Role.DATA, minimum=0, maximum=2**32 - 1
    )
    image_size: int = option(
        256, "side in pixels to which photos are resized", Role.DATA, minimum=32, maximum=1024
    )
    resize: str = option(
        "stretch",
        "how photos become squares: stretch, pad (white), crop (centre)",
        Role.LEARNING,
        choices=("stretch", "pad", "crop"),
        details="stretch changes the proportions of what a photo shows; pad keeps them and adds "
        "white margins; crop keeps them and cuts off what is beside the centre.",
    )
    cache: bool = option(
        True,
        "keep decoded photos in the cache folder for the next run",
        Role.SETUP,
        begins=Group.RUNNING,
    )
    workers: int = option(
        0, "threads that decode photos; 0: one per core", Role.SETUP, minimum=0, maximum=256
    )

    def contradictions(self) -> list[str]:
        """Problems of options that are valid alone but not together."""
        problems = []
        if self.data == SAMPLE and self.images != AUTO:
            problems.append(
                f"images={self.images}: the built-in sample has its own photos; set data too"
            )
        for name in ("val_csv", "test_csv") if self.data == SAMPLE else ():
            if getattr(self, name) != NONE:
                problems.append(
                    f"{name}={getattr(self, name)}: the built-in sample is split by split; set data"
                )
        return problems
