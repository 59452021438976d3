"""The benchmarks: scaled times, ratios, sections of the results, and resuming."""

from __future__ import annotations

import dataclasses
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from benchmarks.job import Job
from benchmarks.recipes import against
from benchmarks.record import Record
from benchmarks.stopwatch import Stopwatch
from benchmarks.table import Measured, section, write_section

JOB = Job(name="timm", catalog="shop", weights=None, size=100, epochs=10, batch_size=10)


def watched(job: Job, complete: bool) -> Stopwatch:
    """An epoch of 4 batches of 10 photos, 2 s each and 10 s more for the first."""
    watch = Stopwatch(job)
    watch.ready = 5.0
    watch.begin_epoch()
    for number in range(4):
        watch.add(wait=0.5, step=11.5 if number == 0 else 1.5, photos=10)
    if complete:
        watch.end_epoch(validation=3.0)
        watch.passes[-1].done = 26.0
    return watch


def test_half_an_epoch_is_scaled_to_the_job() -> None:
    figures = watched(JOB, complete=False).figures(80, validation=3.0, test=4.0)
    epoch = 80 / 5 + 3
    assert figures["images_per_second"] == pytest.approx(5)
    assert figures["compile_seconds"] == pytest.approx(10)
    assert figures["later_epoch"] == pytest.approx(epoch)
    assert figures["first_epoch_done"] == pytest.approx(5 + 10 + epoch)
    assert figures["whole_job"] == pytest.approx(5 + 10 + 10 * epoch + 4)
    assert figures["input_wait"] == pytest.approx(0.25)
    assert set(figures["scaled"]) == {"first_epoch_done", "later_epoch", "whole_job"}


def test_what_was_measured_is_not_marked() -> None:
    figures = watched(JOB, complete=True).figures(40, None, None)
    assert figures["first_epoch_done"] == 26
    assert "first_epoch_done" not in figures["scaled"]
    assert "whole_job" not in figures["scaled"]


def test_the_budget_ends_what_is_not_to_go_to_the_end() -> None:
    assert watched(dataclasses.replace(JOB, budget=6), complete=False).enough()
    assert not watched(dataclasses.replace(JOB, budget=7), complete=False).enough()
    assert not watched(dataclasses.replace(JOB, budget=6, whole=True), complete=False).enough()


def result(whole: float, **changes: Any) -> dict[str, Any]:
    return {
        "first_epoch_done": 1.0,
        "later_epoch": 2.0,
        "images_per_second": 3.0,
        "whole_job": whole,
        "compile_seconds": None,
        "input_wait": 0.01,
        "peak_mib": 900.0,
        "peak_shared_once_mib": 800.0,
        "peak_gpu_mib": None,
        "flags": "none",
        "scaled": [],
        **changes,
    }


def test_ratios_say_whether_they_are_what_was_expected() -> None:
    measured = [
        Measured(dataclasses.replace(JOB, name="ours_frozen"), result(10)),
        Measured(dataclasses.replace(JOB, name="ours_full"), result(60)),
        Measured(dataclasses.replace(JOB, name="original"), result(500, scaled=["whole_job"])),
        Measured(dataclasses.replace(JOB, name="timm"), result(50)),
        Measured(dataclasses.replace(JOB, name="fastai"), {"failed": "not installed"}),
    ]
    text = "\n".join(section(measured, date(2026, 1, 2), "a machine", "python run.py"))
    assert text.startswith("## training, 2026-01-02\n")
    assert "| 100 | fastai | failed: not installed |" in text
    full = "whole job, ours, all layers against"
    assert f"| {full} the original's pipeline | ~8.33 x | – |" in text
    assert f"| {full} timm, the fastest of the others | 0.83 x | over 1.3 x | falls short |" in text
    # It does less work than the others.
    assert "whole job, ours, frozen prefix" not in text
    assert "| 100 | the original's pipeline | 1.0 | 2.0 | 3.0 | ~500 |" in text


def test_a_section_takes_the_place_of_its_own_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "RESULTS.md"
    file.write_text("# Speeds\n\n## a\n\nold a\n\n## b\n\nold b\n", encoding="utf-8")
    write_section(file, ["## a", "", "new a"])
    assert file.read_text(encoding="utf-8") == "# Speeds\n\n## a\n\nnew a\n\n## b\n\nold b\n"
    write_section(file, ["## c", "", "c"])
    assert file.read_text(encoding="utf-8").endswith("old b\n\n## c\n\nc\n")


def test_a_benchmark_goes_on_from_its_record(tmp_path: Path) -> None:
    file = tmp_path / "record.jsonl"
    record = Record.open(file, resume=False)
    record.add(JOB, {"failed": "no"})
    assert record.find(JOB) is None
    record.add(JOB, {"whole_job": 1.0})
    again = Record.open(file, resume=True)
    assert again.find(dataclasses.replace(JOB, scratch="elsewhere")) == {"whole_job": 1.0}
    assert again.find(dataclasses.replace(JOB, size=101)) is None
    with pytest.raises(SystemExit, match="add --resume"):
        Record.open(file, resume=False)


def test_rows_of_recipes_are_compared_with_copies_together() -> None:
    images = [f"{n}.jpg" for n in range(8)]
    right = {"image": images, "label_group": ["a"] * 8, "predicted": ["a"] * 8}
    wrong = {"image": images[::-1], "label_group": ["a"] * 8, "predicted": ["b"] * 8}
    assert against(right, wrong) == ("+8, -0", "0.0078")
    assert against({**right, "copy_set": [0] * 5 + [5, 6, 7]}, wrong) == ("+8, -0", "0.12")
