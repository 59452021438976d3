"""Write measurements as a dated section of Markdown: figures, ratios, expectations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from .job import Job

TITLES = {
    "ours_frozen": "ours, frozen prefix",
    "ours_full": "ours, all layers",
    "original": "the original's pipeline",
    "torchvision": "torchvision's reference",
    "timm": "timm",
    "fastai": "fastai",
}
_RIVALS = ("torchvision", "timm", "fastai")
_NOTHING = "–"


@dataclass(frozen=True)
class Measured:
    """A job and its result."""

    job: Job
    result: dict[str, Any]

    @property
    def failed(self) -> bool:
        """Whether the job failed, so that there is a reason instead of figures."""
        return "failed" in self.result


def section(measured: list[Measured], day: date, machine: str, command: str) -> list[str]:
    """The lines of a section; its first is the heading."""
    lines = [
        f"## training, {day.isoformat()}",
        "",
        f"`{command}`",
        "",
        f"{machine}.{_busy(measured)}",
        "",
    ]
    trainings = [one for one in measured if one.job.name in TITLES]
    if trainings:
        lines += [*_trainings(trainings), ""]
    for words in (_decoding(measured), _others(measured), _ratios(measured)):
        lines += [*words, ""] if words else []
    return lines[:-1]


def _busy(measured: list[Measured]) -> str:
    """A sentence with the load of other processes before the measurements."""
    shares = [one.result["busy_before"] for one in measured if "busy_before" in one.result]
    if not shares:
        return ""
    return (
        f" In the seconds before each measurement, other processes used {min(shares):.0f} to "
        f"{max(shares):.0f} % of the cores."
    )


def write_section(file: Path, lines: list[str]) -> None:
    """Append the section to a file; it replaces an earlier one with the same heading."""
    text = file.read_text(encoding="utf-8") if file.is_file() else "# Measured speeds\n"
    before, found, rest = text.partition(lines[0] + "\n")
    later = rest.partition("\n## ") if found else ("", "", "")
    after = "## " + later[2] if later[1] else ""
    blocks = [before.rstrip(), "\n".join(lines), after.strip()]
    file.write_text("\n\n".join(block for block in blocks if block) + "\n", encoding="utf-8")


def _trainings(trainings: list[Measured]) -> Iterable[str]:
    job = trainings[0].job
    yield (
        f"{job.epochs} epochs of EfficientNet-B0 at {job.image_size} px, batches of "
        f"{job.batch_size}, JPEG files of 1024 px. Times are in seconds. A figure with ~ is "
        "scaled: from measured batches to the epoch, or from measured epochs to the job. Memory is "
        "the peak over the process and its workers, with shared pages counted once; the sum of "
        "their resident sizes is in brackets."
    )
    yield ""
    heads = (
        "photos",
        "system",
        "first epoch done after",
        "a later epoch",
        "images/s",
        "whole job",
        "compiling",
        "input wait",
        "peak MiB",
        "peak MiB of GPU",
        "test accuracy (95 %)",
        "flags",
    )
    yield from _table(heads, [_training_row(one) for one in trainings])


def _training_row(one: Measured) -> list[str]:
    result = one.result
    head = [f"{one.job.size:,}", TITLES[one.job.name]]
    if one.failed:
        return [*head, f"failed: {result['failed']}".replace("|", "/"), *[_NOTHING] * 9]
    once = result["peak_shared_once_mib"]
    summed = f"({result['peak_mib']:,.0f})"
    memory = f"{once:,.0f} {summed}" if once else summed
    gpu = result["peak_gpu_mib"]
    return [
        *head,
        _figure(result, "first_epoch_done"),
        _figure(result, "later_epoch"),
        _figure(result, "images_per_second"),
        _figure(result, "whole_job"),
        _figure(result, "compile_seconds"),
        f"{result['input_wait']:.1%}".replace("%", " %"),
        memory,
        f"{gpu:,.0f}" if gpu else _NOTHING,
        _accuracy(result),
        result["flags"],
    ]


def _figure(result: dict[str, Any], name: str) -> str:
    value = result.get(name)
    if value is None:
        return _NOTHING
    mark = "~" if name in result["scaled"] else ""
    digits = 0 if value >= 100 else 1 if value >= 1 else 2
    return f"{mark}{value:,.{digits}f}"


def _accuracy(result: dict[str, Any]) -> str:
    test = result.get("test")
    if not test:
        return "not trained to the end"
    low, high = 100 * test["accuracy_low"], 100 * test["accuracy_high"]
    return f"{100 * test['accuracy']:.1f} % ({low:.1f} to {high:.1f} %), {test['photos']:,} photos"


def _decoding(measured: list[Measured]) -> list[str]:
    found = [one for one in measured if one.job.name == "decode"]
    rows = []
    for one in found:
        if one.failed:
            rows.append([f"{one.job.size:,}", f"failed: {one.result['failed']}", _NOTHING, ""])
            continue
        slowest = next(iter(one.result["speeds"].values()))
        for way, speed in one.result["speeds"].items():
            rows.append([f"{one.job.size:,}", way, f"{speed:,.0f}", f"{speed / slowest:.2f}"])
        warm = one.result["warm_cache_seconds"]
        speed = one.job.size / warm
        words = f"ours, from the warm cache ({warm:.2f} s)"
        rows.append([f"{one.job.size:,}", words, f"{speed:,.0f}", f"{speed / slowest:.0f}"])
    heads = ("photos", "decoding and resizing alone", "images/s", "times the original's")
    return list(_table(heads, rows)) if rows else []


def _others(measured: list[Measured]) -> list[str]:
    lines = []
    for one in measured:
        result = one.result
        if one.job.name not in ("predict", "tune"):
            continue
        if one.failed:
            lines.append(f"- {one.job.name}: failed: {result['failed']}")
        elif one.job.name == "predict":
            share = 100 * result["predict"] / result["bare"]
            lines.append(
                f"- predict, {result['photos']} photos: {result['predict']:.1f} images/s, "
                f"{share:.0f} % of the bare network's {result['bare']:.1f}"
            )
        else:
            times = result["whole"] / result["first_trial"]
            lines.append(
                f"- tune, {one.job.size:,} photos, {result['states']}: first trial "
                f"{result['first_trial']:.1f} s, the others {result['others']:.2f} s (median), "
                f"whole command {result['whole']:.1f} s, {times:.2f} times the first trial"
            )
    return lines


def _ratios(measured: list[Measured]) -> list[str]:
    rows: list[list[str]] = []
    for size in dict.fromkeys(one.job.size for one in measured):
        here = {one.job.name: one for one in measured if one.job.size == size and not one.failed}
        rows += _job_ratios(size, here)
        if "decode" in here:
            speeds = here["decode"].result["speeds"]
            ratio = speeds[here["decode"].result["ours"]] / next(iter(speeds.values()))
            rows.append(_ratio_row(size, "decoding, ours against the original's", ratio, 3))
        for name in ("ours_frozen", "ours_full"):
            if name in here:
                wait = 100 * here[name].result["input_wait"]
                verdict = "met" if wait < 2 else "falls short"
                what = f"input wait in a warm epoch, {TITLES[name]}"
                rows.append([f"{size:,}", what, f"{wait:.2f} %", "under 2 %", verdict])
    heads = ("photos", "ratio", "measured", "expected", "")
    return list(_table(heads, rows)) if rows else []


def _job_ratios(size: int, here: dict[str, Measured]) -> Iterable[list[str]]:
    """Ratios of the whole job with all layers trained: the original's, and the fastest other's.

    Frozen layers save work that the others do, so that row has no ratio here;
    benchmarks/time_to_accuracy.py compares with the same layers frozen.
    """
    ours = here.get("ours_full")
    rivals = [here[name] for name in _RIVALS if name in here]
    best = min(rivals, key=lambda one: float(one.result["whole_job"]), default=None)
    for other, expected in ((here.get("original"), None), (best, 1.3)):
        if ours is None or other is None:
            continue
        what = f"whole job, {TITLES['ours_full']} against {TITLES[other.job.name]}"
        what += "" if other.job.name == "original" else ", the fastest of the others"
        ratio = other.result["whole_job"] / ours.result["whole_job"]
        scaled = any("whole_job" in one.result["scaled"] for one in (other, ours))
        yield _ratio_row(size, what, ratio, expected, scaled)


def _ratio_row(
    size: int, what: str, ratio: float, expected: float | None, scaled: bool = False
) -> list[str]:
    number = f"{'~' if scaled else ''}{ratio:.{1 if ratio >= 10 else 2}f} x"
    if expected is None:
        return [f"{size:,}", what, number, _NOTHING, ""]
    met = "met" if ratio > expected else "falls short"
    return [f"{size:,}", what, number, f"over {expected:g} x", met]


def _table(heads: Iterable[str], rows: Iterable[list[str]]) -> Iterable[str]:
    heads = list(heads)
    yield f"| {' | '.join(heads)} |"
    yield f"| {' | '.join(['---'] * len(heads))} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"
