"""The report of match as one HTML page: the ladder, and pairs that are sure, doubtful or wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..data.images import read_thumbnail
from ..data.photo_files import find_photo_files
from ..errors import ImageError
from .pages import Gallery, Picture, Table, Tile, figure_picture, photo_picture, render, shortened

_MOST_ROWS, _MOST_TILES, _PIXELS, _LONGEST = 15, 12, 220, 90


@dataclass(frozen=True)
class MatchFacts:
    """What the page shows.

    :ivar lines: the summary.
    :ivar postings: columns posting_id, image and title.
    :ivar folder: the photos; None without any.
    :ivar pairs: columns posting_id, match, probability, why, and same_group where labels are known.
    """

    name: str
    lines: list[str]
    postings: pd.DataFrame
    folder: Path | None
    pairs: pd.DataFrame


def match_page(facts: MatchFacts, ladder: pd.DataFrame | None) -> str:
    """The page; see the template ``match.html.j2`` for the order of its sections."""
    pairs = facts.pairs[facts.pairs["posting_id"] < facts.pairs["match"]]
    parts = [
        _part("surest", "Surest matches", "Pairs of the highest probability.", _spread(pairs)),
        _part(
            "doubtful",
            "Least sure matches",
            "Predicted pairs of the lowest probability.",
            pairs.nsmallest(_MOST_ROWS, "probability"),
        ),
    ]
    if "same_group" in pairs:
        wrong = pairs[pairs["same_group"] == "no"].nlargest(_MOST_ROWS, "probability")
        parts.append(
            _part(
                "wrong",
                "Wrong matches",
                "Pairs of two label groups, the surest first. Some are errors of the labels.",
                wrong,
            )
        )
    return render(
        "match.html.j2",
        title=f"Matches in {facts.name}",
        lead=facts.lines[0],
        lines=facts.lines[1:],
        ladder=None if ladder is None else _ladder_table(ladder),
        plot=None if ladder is None else _ladder_picture(ladder),
        parts=[
            (anchor, title, _pair_table(caption, rows, facts), _gallery(rows, facts))
            for anchor, title, caption, rows in parts
        ],
    )


def _part(
    anchor: str, title: str, caption: str, rows: pd.DataFrame
) -> tuple[str, str, str, pd.DataFrame]:
    return anchor, title, caption, rows


def _spread(pairs: pd.DataFrame) -> pd.DataFrame:
    """The surest pairs, each posting once, so that one large group does not fill the table."""
    ordered = pairs.sort_values("probability", ascending=False, kind="stable")
    return ordered.drop_duplicates("posting_id").drop_duplicates("match").head(_MOST_ROWS)


def _ladder_table(ladder: pd.DataFrame) -> Table:
    shown = pd.DataFrame(
        {
            "method": ladder["words"],
            "F1": ladder["f1"].map("{:.4f}".format),
            "95 % interval": [
                f"{low:.4f} to {high:.4f}"
                for low, high in zip(ladder["low"], ladder["high"], strict=True)
            ],
            "F1 of validation groups": ladder["validation_f1"].map("{:.4f}".format),
            "chosen": ladder["choice"],
        }
    )
    caption = (
        "First single signals, then all of them. Thresholds, weights and models are chosen on the "
        "validation groups; F1 is the mean over the postings of the test groups, with the whole "
        "catalogue as the pool. Intervals are from a bootstrap over groups."
    )
    return Table("", caption, shown)


def _ladder_picture(ladder: pd.DataFrame) -> Picture:
    figure = Figure(figsize=(7.2, 0.36 * len(ladder) + 0.9))
    axes = figure.subplots()
    rows = np.arange(len(ladder))
    error = np.abs(ladder[["low", "high"]].to_numpy().T - ladder["f1"].to_numpy())
    axes.errorbar(ladder["f1"], rows, xerr=error, fmt="o", color="#0072b2", capsize=3)
    axes.set_yticks(rows, [name.replace("_", " ") for name in ladder["name"]])
    axes.invert_yaxis()
    axes.set_xlabel("mean F1 of the test groups' postings")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    last = ladder.iloc[-1]
    caption = f"The last row has an F1 of {last['f1']:.4f}; bars are 95 % intervals."
    return figure_picture(figure, "The mean F1 of each row of the ladder", caption)


def _pair_table(caption: str, rows: pd.DataFrame, facts: MatchFacts) -> Table:
    titles = facts.postings.set_index("posting_id")["title"]
    shown = pd.DataFrame({"probability": rows["probability"].map("{:.3f}".format)})
    for column, ids in (("posting", rows["posting_id"]), ("match", rows["match"])):
        shown[column] = [shortened(titles[name] or name, _LONGEST) for name in ids]
    shown["why"] = rows["why"].to_numpy()
    return Table("", caption, shown)


def _gallery(rows: pd.DataFrame, facts: MatchFacts) -> Gallery | None:
    """The photos of pairs, two tiles each, where both photos are there."""
    if facts.folder is None:
        return None
    images = facts.postings.set_index("posting_id")["image"]
    tiles: list[Tile] = []
    for _, row in rows.iterrows():
        pair = [_tile(facts, images, row, side) for side in ("posting_id", "match")]
        if all(pair):
            tiles += [tile for tile in pair if tile]
        if len(tiles) >= _MOST_TILES:
            break
    return Gallery("Photos of these pairs", "Each pair side by side.", tiles) if tiles else None


def _tile(facts: MatchFacts, images: pd.Series, row: pd.Series, side: str) -> Tile | None:
    name = str(images[row[side]])
    assert facts.folder is not None
    file = find_photo_files(facts.folder, [name]).found()[0] if name else None
    try:
        pixels = None if file is None else read_thumbnail(file, _PIXELS)
    except ImageError:
        return None
    if pixels is None:
        return None
    words = f"probability {row['probability']:.3f}: {row['why']}"
    return Tile(photo_picture(pixels, f"Photo of {row[side]}"), [str(row[side]), words])
