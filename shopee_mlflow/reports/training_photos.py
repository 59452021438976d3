"""Photos in the report of a training: mistakes, close calls, and where the network looked."""

from __future__ import annotations

import numpy as np

from ..data.titles import decode_escapes
from .pages import Gallery, Tile, photo_picture, shortened
from .training_facts import ExplainFn, TrainingFacts, group_text

# Photos in a gallery.
MOST_TILES = 12


def photo_gallery(
    facts: TrainingFacts, rows: np.ndarray, title: str, caption: str, total: int
) -> Gallery:
    shown = rows[:MOST_TILES]
    tiles = [
        Tile(photo_picture(photo, _alt(facts, row, "Photo")), _lines(facts, row))
        for row, photo in zip(shown, facts.photos(shown), strict=True)
    ]
    return Gallery(title, caption if tiles else "There are none.", tiles, total - len(tiles))


def attention_gallery(
    facts: TrainingFacts, rows: np.ndarray, predicted: np.ndarray, explain: ExplainFn
) -> Gallery | None:
    """The mistakes with Grad-CAM heat maps for the predicted label group."""
    if not len(rows):
        return None
    photos = facts.photos(rows)
    maps = explain(photos, predicted[rows])
    if maps is None:
        return None
    tiles = [
        Tile(
            photo_picture(_overlay(photo, heat), _alt(facts, row, "Grad-CAM on photo")),
            _prediction(facts, row),
        )
        for row, photo, heat in zip(rows, photos, maps, strict=True)
    ]
    caption = (
        "The same mistakes in the same order. Grad-CAM: brighter and warmer parts of the photo "
        "contributed more to the predicted label group. A map has a few coarse cells, enlarged to "
        "the photo: it shows roughly where, and not why."
    )
    return Gallery("Where the network looked", caption, tiles, 0)


def _lines(facts: TrainingFacts, row: int) -> list[str]:
    """The prediction, the title, and the beginning of the file's name."""
    lines = _prediction(facts, row)
    if "title" in facts.names:
        lines.append(shortened(decode_escapes(str(facts.names["title"].iloc[row])), 80))
    return [*lines, shortened(str(facts.names["image"].iloc[row]), 18)]


def _prediction(facts: TrainingFacts, row: int) -> list[str]:
    probabilities = facts.probabilities[row]
    predicted, true = int(probabilities.argmax()), int(facts.labels[row])
    lines = [f"predicted {group_text(facts, predicted)} ({probabilities[predicted]:.0%})"]
    if predicted != true:
        lines.append(f"true {group_text(facts, true)} ({probabilities[true]:.0%})")
    return lines


def _alt(facts: TrainingFacts, row: int, what: str) -> str:
    predicted = group_text(facts, int(facts.probabilities[row].argmax()))
    return f"{what} of {group_text(facts, int(facts.labels[row]))}, predicted {predicted}"


def _overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A photo, (S, S, 3) uint8, dimmed where the heat, (S, S) 0..1, is low."""
    from matplotlib import colormaps

    colours = colormaps["inferno"](heat)[..., :3] * 255
    grey = pixels.mean(axis=2, keepdims=True)
    strength = 0.25 + 0.45 * heat[..., None]
    mixed = grey * (1 - strength) + colours * strength
    return np.clip(mixed, 0, 255).astype(np.uint8)
