"""Fixtures of all tests: a separate cache and tracking store, and small catalogues."""

from __future__ import annotations

import csv
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blank_figures import save_blank
from new_store import new_store
from PIL import Image

SHARED = Path(__file__).parents[2] / "shared"
COLOURS = [
    (220, 40, 40),
    (40, 160, 60),
    (40, 80, 220),
    (230, 200, 40),
    (160, 60, 200),
    (90, 90, 90),
]

MakeCatalog = Callable[..., Path]

# Importing makes millions of objects and no garbage; searching them takes a quarter of collection.
gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()
    # What has been imported stays, and need not be searched again.
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--endurance", action="store_true", help="run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that take minutes run only when asked for."""
    if not config.getoption("--endurance"):
        left_out = pytest.mark.skip(reason="takes minutes; asked for with --endurance")
        for item in items:
            if "endurance" in item.keywords:
                item.add_marker(left_out)


@pytest.fixture(autouse=True)
def own_places(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests never touch the user's cache, the checkout or another tracking store.

    One store serves all tests, since a new one takes seconds.
    """
    base = tmp_path_factory.getbasetemp()
    if "mlflow" in sys.modules and not (base / "mlflow.db").exists():
        new_store(base / "mlflow.db")
    monkeypatch.setenv("SHOPEE_MLFLOW_CACHE", str(base / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{base}/mlflow.db")
    monkeypatch.setenv("SHOPEE_MLFLOW_STATE", str(tmp_path))
    # Processes that tests start share the cores with other tests.
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def own_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command changes its process's logger for good; the next test's messages are seen again."""
    logger = logging.getLogger("shopee_mlflow")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)


@pytest.fixture(autouse=True)
def blank_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are composed and saved blank, since drawing them is half of a small training.

    Tests of what is drawn have the marker ``drawn``.
    """
    if request.node.get_closest_marker("drawn") is None:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", save_blank)


@pytest.fixture
def make_catalog(tmp_path: Path) -> MakeCatalog:
    """A function that draws a small catalogue: each group one colour, each photo other stripes."""

    def make(groups: int = 3, each: int = 8, px: int = 40, name: str = "shop") -> Path:
        folder = tmp_path / name
        (folder / "train_images").mkdir(parents=True)
        rows = []
        for group in range(groups):
            for number in range(each):
                image = f"g{group}n{number}.png"
                draw_photo(group, number, px).save(folder / "train_images" / image)
                rows.append((f"p{group}_{number}", image, f"title {group}", f"group{group}"))
        write_csv(folder / "train.csv", ("posting_id", "image", "title", "label_group"), rows)
        return folder

    return make


def draw_photo(group: int, number: int, px: int = 40) -> Image.Image:
    """A coloured square with blocks that differ from photo to photo, so that no two are copies."""
    rng = np.random.default_rng((group, number))
    blocks = rng.integers(-60, 60, size=(8, 8, 1)).repeat(px // 8, 0).repeat(px // 8, 1)
    pixels = np.clip(np.array(COLOURS[group % len(COLOURS)]) + blocks, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Path:
    """Write a catalogue's CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path


@pytest.fixture
def grocery() -> Path:
    """Real product photos beside the project; tests of them are skipped where they are absent."""
    folder = SHARED / "data" / "grocery"
    if not folder.is_dir():
        pytest.skip(f"real photos are not at {folder}")
    return folder


@pytest.fixture
def shared_weights() -> Path:
    """A real trained EfficientNet-B0 backbone beside the project."""
    file = SHARED / "weights" / "efficientnet_b0_trashbox7.pth"
    if not file.is_file():
        pytest.skip(f"a trained backbone is not at {file}")
    return file


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors are computed faster by one thread, and repeat exactly on any machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Where a study may be kept."""
    return tmp_path / "studies" / "study.journal"


@pytest.fixture
def open_queue(journal: Path) -> Callable[..., Any]:
    """A function that opens a worker's queue on the file that all of a test's workers share."""
    from small_queue import queue_of

    from shopee_mlflow.tuning.storage import open_storage

    def opened(total: int = 3, owner: str | None = None) -> Any:
        return queue_of(open_storage("auto", journal), total, owner)

    return opened


@pytest.fixture
def another() -> str:
    """The name of another process that is alive: the one that has started the tests."""
    from shopee_mlflow.tracking.processes import process_name

    return process_name(os.getppid())
