"""Output of a running command: lines, and progress bars if the output is a terminal."""

from __future__ import annotations

import io
import logging
import math
import os
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import click
from tqdm import tqdm

from .masking import mask_passwords

_QUIET_SECONDS = 10.0
# Embeddings, overrides and isolates, which change the direction of the text that follows.
_BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


class _Voice:
    """Whether this process prints. Of several that train one model, only the first does."""

    muted = False


def mute(muted: bool) -> None:
    """Turn lines, bars and warnings off or on again. Errors are always printed."""
    _Voice.muted = muted


def printable(text: str, *, newlines: bool = False) -> str:
    """Replace control characters and lone surrogates with escapes such as ``\\x1b``.

    Without this, names from a catalogue could clear the screen, set the clipboard, reverse the
    direction of text or forge lines. All other Unicode is kept.

    :param newlines: keep line breaks.
    """
    if text.isprintable():
        return text
    return "".join(
        escaped if (escaped := _escape(char)) and not (newlines and char == "\n") else char
        for char in text
    )


def _escape(char: str) -> str:
    """The escape of a character that must not be printed; empty for any other."""
    kind = unicodedata.category(char)
    if kind in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(char) in _BIDI_CONTROLS:
        return char.encode("unicode_escape").decode("ascii")
    return ""


def say(*lines: str) -> None:
    """Print lines above any bar, control characters escaped."""
    if _Voice.muted:
        return
    for line in lines:
        tqdm.write(printable(mask_passwords(line)), file=sys.stdout)
    sys.stdout.flush()


class _LastingStream:
    """A stream that discards its output once it cannot be written.

    A closed pipe or terminal, a dead log collector or a full disk must not end a training.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._drop()

    def _drop(self) -> None:
        """Redirect to the null device, so that flushing the buffer at exit does not fail."""
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_output() -> None:
    """Keep running when the output is closed, and escape characters it cannot encode.

    Bars get a lock of this process alone.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent process
            stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for good
        if isinstance(stream, _LastingStream):
            continue
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, _LastingStream(stream))
    # The default lock is a semaphore for several processes, which share no bar here. When a process
    # ends without cleanup, Python would warn that it is leaked.
    tqdm.set_lock(threading.RLock())


def show_log_messages() -> None:
    """Print this package's log messages as plain lines on standard error."""
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger(__package__)
    if not any(isinstance(h, _ToStderr) for h in logger.handlers):
        logger.addHandler(handler)
        # Set here, since MLflow raises the level of the root logger, which would hide our messages.
        logger.setLevel(logging.INFO)
        logger.propagate = False


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if _Voice.muted and record.levelno < logging.ERROR:
            return
        text = printable(mask_passwords(self.format(record)), newlines=True)
        tqdm.write(text, file=sys.stderr)


# A bar says what it counts: "decoding photos: 40%|####      | 331 of 827 photos, 0:02 left".
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} {unit}, {remaining} left{postfix}"


def watch(title: str, unit: str = "photos") -> Callable[[int, int], None]:
    """A progress callback(done, total): a bar on a terminal, else a line every ten seconds.

    Short steps print nothing.

    :param unit: what is counted.
    """
    bar: tqdm[Any] | None = None
    started = shown = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal bar, shown
        now = time.monotonic()
        if sys.stderr.isatty() and not _Voice.muted:
            if bar is None:
                bar = tqdm(
                    total=total,
                    desc=printable(title),
                    unit=unit,
                    bar_format=_BAR,
                    delay=0.5,
                    leave=False,
                    dynamic_ncols=True,
                )
            bar.update(done - bar.n)
            if done >= total:
                bar.close()
        elif now - shown > _QUIET_SECONDS or (done >= total and shown > started):
            shown = now
            say(f"{title}: {done:,} of {total:,} {unit}")

    return progress


class TrainingProgress:
    """A bar over all photos of a training with loss, accuracy, images/s and time left.

    A line per epoch is printed as well; without a terminal, nothing else is.
    """

    def __init__(self, photos_per_epoch: int, epochs: int, done: int = 0) -> None:
        """
        :param done: number of epochs completed before a resume.
        """
        self.photos = photos_per_epoch
        self.epochs = epochs
        self._epoch_began = time.monotonic()
        self.bar = tqdm(
            total=photos_per_epoch * epochs,
            initial=photos_per_epoch * done,
            unit="photos",
            bar_format=_BAR,
            disable=_Voice.muted or not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self._epochs_done = done
        self._name_epoch()

    def _name_epoch(self) -> None:
        epoch = min(self._epochs_done + 1, self.epochs)
        self.bar.set_description_str(f"epoch {epoch} of {self.epochs}", refresh=False)

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.close()

    def batch(self, done: int, loss: float, accuracy: float) -> None:
        """Called at intervals during an epoch."""
        self.bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.1%}", refresh=False)
        self.bar.update(self._epochs_done * self.photos + done - self.bar.n)

    def epoch(self, number: int, metrics: Mapping[str, float], best: bool) -> None:
        """Called after each epoch."""
        self._epochs_done = number
        self._name_epoch()
        self.bar.update(number * self.photos - self.bar.n)
        # The next epochs take as long as this one. If a resume began in the middle of it, only its
        # rate tells how long a whole one takes; at its end there is no rate.
        now = time.monotonic()
        whole = self.photos / (metrics["images_per_second"] or math.inf)
        left = max(now - self._epoch_began, whole) * (self.epochs - number)
        self._epoch_began = now
        say(
            f"epoch {number:>{len(str(self.epochs))}}/{self.epochs}  "
            f"train loss {metrics['train_loss']:.3f} accuracy {metrics['train_accuracy']:6.1%}  "
            f"val loss {metrics['val_loss']:.3f} accuracy {metrics['val_accuracy']:6.1%}"
            f"{' *' if best else '  '} {metrics['images_per_second']:,.0f} images/s"
            + (f", {duration(left)} left" if number < self.epochs else "")
        )


class EpochBar:
    """A bar that counts epochs, for one of several trainings."""

    def __init__(self, title: str, epochs: int) -> None:
        self._show, self._epochs = watch(title, "epochs"), epochs

    def batch(self, done: int, loss: float, accuracy: float) -> None:
        """Show nothing."""

    def epoch(self, number: int, metrics: Mapping[str, float], best: bool) -> None:  # noqa: ARG002
        """Count an epoch."""
        self._show(number, self._epochs)


def duration(seconds: float) -> str:
    """Format a time in seconds for people: 45 s, 3 min, 1 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def fail(message: str) -> None:
    """Print an error on standard error, with control characters except line breaks escaped."""
    text = printable(mask_passwords(message), newlines=True)
    click.echo(click.style("Error: ", fg="red", bold=True) + text, err=True)
