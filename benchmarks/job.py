"""What a child process is asked to measure, and the photos that every system gets alike."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

IMAGES = "train_images"
MANIFEST = "manifest.csv"


@dataclass(frozen=True)
class Job:
    """One measurement.

    :ivar name: a system, or ``decode``, ``predict``, ``tune``.
    :ivar catalog: folder with train.csv, train_images/ and manifest.csv.
    :ivar weights: state-dict file in torchvision's layout; None: random weights.
    :ivar size: photos in the catalogue.
    :ivar budget: seconds of measured batches after which a reference stops; 0: no limit.
    :ivar whole: train to the end whatever the budget.
    :ivar workers: worker processes of the references' loaders.
    :ivar trials: of the search that ``tune`` runs.
    :ivar data: name of the folder that the catalogue was made from.
    :ivar scratch: a folder for this measurement alone.
    :ivar started: when the process began that is asked about (seconds since 1970); 0: this one.
    """

    name: str
    catalog: str
    weights: str | None
    size: int
    image_size: int = 256
    epochs: int = 50
    batch_size: int = 75
    budget: float = 60.0
    whole: bool = False
    workers: int = 2
    channels_last: bool = True
    compile: bool = True
    device: str = "auto"
    trials: int = 30
    data: str = ""
    scratch: str = ""
    started: float = 0.0

    @property
    def to_the_end(self) -> bool:
        """Whether nothing is to be scaled."""
        return self.whole or self.budget <= 0

    def settings(self) -> dict[str, object]:
        """All that shapes the result: equal for two runs of one measurement, wherever they ran."""
        values = dataclasses.asdict(self)
        for name in ("catalog", "scratch", "started"):
            del values[name]
        values["weights"] = Path(self.weights).name if self.weights else None
        return values

    def write(self, file: Path) -> None:
        """Store the job for a child to read."""
        file.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Job:
        """The job that :meth:`write` stored."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Split:
    """Photos of one split: files, and their labels as numbers 0, 1, ..."""

    files: list[Path]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.files)


def read_splits(catalog: str) -> dict[str, Split]:
    """train, val and test as the manifest of the catalogue says."""
    table = pd.read_csv(Path(catalog) / MANIFEST)
    folder = Path(catalog) / IMAGES
    return {
        str(name): Split([folder / image for image in rows["image"]], rows["label"].tolist())
        for name, rows in table.groupby("split")
    }


def count_classes(catalog: str) -> int:
    """How many label groups the manifest has."""
    return int(pd.read_csv(Path(catalog) / MANIFEST)["label"].nunique())
