"""The job of a child process, and the photos that all systems use."""

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
    :ivar whole: train to the end regardless of the budget.
    :ivar workers: worker processes of the references' loaders.
    :ivar trials: of the search that ``tune`` runs.
    :ivar data: name of the folder that the catalogue was made from.
    :ivar scratch: a folder for this measurement alone.
    :ivar started: start of the measured process (seconds since 1970); 0: this process.
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
        """Whether the job runs to its end, so that nothing is scaled."""
        return self.whole or self.budget <= 0

    def settings(self) -> dict[str, object]:
        """The settings that affect the result, without the paths of one machine."""
        values = dataclasses.asdict(self)
        for name in ("catalog", "scratch", "started"):
            del values[name]
        values["weights"] = Path(self.weights).name if self.weights else None
        return values

    def write(self, file: Path) -> None:
        """Write the job to a file for a child process."""
        file.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Job:
        """Read a job that :meth:`write` stored."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Split:
    """Photos of one split: files, and their labels as integers from 0."""

    files: list[Path]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.files)


def read_splits(catalog: str) -> dict[str, Split]:
    """The train, val and test splits of the catalogue's manifest."""
    table = pd.read_csv(Path(catalog) / MANIFEST)
    folder = Path(catalog) / IMAGES
    return {
        str(name): Split([folder / image for image in rows["image"]], rows["label"].tolist())
        for name, rows in table.groupby("split")
    }


def count_classes(catalog: str) -> int:
    """Number of label groups in the manifest."""
    return int(pd.read_csv(Path(catalog) / MANIFEST)["label"].nunique())
