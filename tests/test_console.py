"""Terminal output: control characters in names are escaped."""

from __future__ import annotations

import io
import itertools
import logging
import sys

import pytest

from shopee_mlflow.console import (
    TrainingProgress,
    fail,
    printable,
    say,
    show_log_messages,
    watch,
)

ESCAPED = [
    ("a\x1b]52;c;aGVsbG8=\x07.jpg", r"a\x1b]52;c;aGVsbG8=\x07.jpg"),
    ("b\x1b[2J\x1b[31mRED", r"b\x1b[2J\x1b[31mRED"),
    ("c\r827 photos", r"c\r827 photos"),
    ("nul\0, del\x7f, csi\x9b2J, next line\x85", r"nul\x00, del\x7f, csi\x9b2J, next line\x85"),
    ("\u202egpj.exe", r"\u202egpj.exe"),
    ("line\u2028separator\u2029s", r"line\u2028separator\u2029s"),
    ("\ud800 alone", r"\ud800 alone"),
]


@pytest.mark.fault
@pytest.mark.parametrize(("text", "shown"), ESCAPED)
def test_control_characters_are_escaped_everywhere(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    say(text)
    fail(text)
    show_log_messages()
    logging.getLogger("shopee_mlflow").warning("%s", text)
    out, err = capsys.readouterr()
    assert out == shown + "\n"
    assert err == f"Error: {shown}\n{shown}\n"


def test_a_line_of_a_name_is_no_line_of_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    say("c\n0 of 82 test photos have a copy in train")
    assert capsys.readouterr().out == "c\\n0 of 82 test photos have a copy in train\n"


def test_an_error_may_take_several_lines(capsys: pytest.CaptureFixture[str]) -> None:
    fail("2 problems:\n  one\n  two")
    assert capsys.readouterr().err == "Error: 2 problems:\n  one\n  two\n"


@pytest.mark.parametrize(
    "text", ["Café, Cafe\u0301", "商品 ไทย עברית", "👨\u200d👩\u200d👧", "a\u00a0b", ""]
)
def test_ordinary_text_is_printed_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_titles_of_steps_are_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 100.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    watch("photos of a\x1b[2J")(1, 2)
    assert capsys.readouterr().out == "photos of a\\x1b[2J: 1 of 2 photos\n"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_say_what_they_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := _Terminal())
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    clock = itertools.count(0, 60)
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    watch("trial 3", "epochs")(2, 9)
    assert "trial 3:  22%" in terminal.getvalue()
    assert "2 of 9 epochs" in terminal.getvalue()
    metrics = dict.fromkeys(("train_loss", "train_accuracy", "val_loss", "val_accuracy"), 0.5)
    with TrainingProgress(100, epochs=4) as progress:
        progress.epoch(1, {**metrics, "images_per_second": 10}, best=True)
        progress.batch(50, 0.25, 0.75)
        progress.bar.refresh()
    assert "epoch 2 of 4:  38%" in terminal.getvalue()
    assert "150 of 400 photos" in terminal.getvalue()


def test_the_time_left_does_not_come_from_the_rest_of_a_resumed_epoch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shopee_mlflow.console.time.monotonic", itertools.count(0, 5).__next__)
    metrics = dict.fromkeys(("train_loss", "train_accuracy", "val_loss", "val_accuracy"), 0.5)
    with TrainingProgress(600, epochs=4) as progress:
        # Five seconds for what was left of this epoch, at a rate of a minute for all of it.
        progress.epoch(1, {**metrics, "images_per_second": 10.0}, best=True)
        progress.epoch(2, {**metrics, "images_per_second": 600.0}, best=True)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("10 images/s, 3 min left")
    assert second.endswith("600 images/s, 10 s left")
