"""Match: which postings of a catalogue show the same product."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..analysis_config import MatchConfig
from ..config import as_params
from ..console import duration, say, watch
from ..data.catalog_forms import Catalog, folder_name, load_catalog
from ..data.cleaning import drop_excluded
from ..data.cleaning_record import Cleaning
from ..data.photo_files import find_photo_files
from ..data.pixel_cache import compute_phashes
from ..data.splits import TEST
from ..data.titles import without_formulas
from ..data_config import NONE, SAMPLE
from ..errors import ConfigError
from ..matching.ladder import Ladder, climb
from ..matching.match_tables import groups_table, matches_table, pairs_table
from ..matching.matcher import Matcher, Matches, among, match_unlabelled
from ..matching.pool import Pool, pool_changes
from ..matching.postings import Postings, check_postings
from ..options import expand_path
from ..reports.match_page import MatchFacts, match_page
from ..reports.report_folder import REPORT_FILE, prepare_report_folder
from ..tracking.environment import machine_tags
from ..tracking.links import report_link, view_lines
from ..tracking.matcher_files import load_matcher, log_matcher
from ..tracking.names import DESCRIPTION_TAG, MATCH
from ..tracking.posting_matcher import PostingMatcher
from ..tracking.runs import open_run
from ..tracking.signals import stop_on_signals

if TYPE_CHECKING:
    from ..modeling.models import ProductClassifier

FOLDER = "match"
MATCHES_FILE, PAIRS_FILE, GROUPS_FILE = "matches.csv", "pairs.csv", "groups.csv"
LADDER_FILE, SUBMISSION_FILE = "ladder.csv", "submission.csv"
_TABLES = (MATCHES_FILE, PAIRS_FILE, GROUPS_FILE, LADDER_FILE, SUBMISSION_FILE)


@dataclass(frozen=True)
class MatchResult:
    """The result of a matching.

    :ivar scores: name -> F1; empty without labels.
    :ivar report: path of the page.
    :ivar tables: name of a file beside the page -> the table in it.
    """

    run_id: str
    scores: dict[str, float]
    report: Path
    tables: dict[str, pd.DataFrame] = field(repr=False)


def match(config: MatchConfig, cli_options: Mapping[str, str] | None = None) -> MatchResult:
    """Match the postings of a catalogue by titles and phashes, and log the result as a run.

    With label groups, some of them choose the matcher and the others score it. Without, postings
    match by fixed thresholds, and there is no score.

    :param cli_options: command-line options, which are logged as they were typed.
    :raises ShopeeError: when there is nothing to match by, or ``out`` cannot be used.
    """
    started = time.monotonic()
    given = None if config.matcher == NONE else load_matcher(config.matcher)
    catalog = load_catalog(config, watch, required=(), photos=False)
    rows = _without_excluded(catalog.rows, config)
    embedder = _embedder(config) if given is None else given.embedder
    postings = check_postings(*_with_photos(rows, catalog.folder, embedder, config))
    if config.register and given is None and not postings.labelled:
        raise ConfigError(["register=true: needs label groups, by which a matcher is chosen"])
    out = _prepare_folder(expand_path(config.out), catalog)
    say(f"{len(postings):,} postings, matched by {' and '.join(postings.signals)}")
    say(*catalog.remarks, *postings.remarks)
    with stop_on_signals():
        ladder, matcher, matches = _matched(postings, given, config)
        tables = _tables(postings, matches, ladder)
        if config.test_csv != NONE:
            tables[SUBMISSION_FILE] = _submission(postings, matches, rows)
    scores = _scores(ladder)
    name = SAMPLE if config.data == SAMPLE else folder_name(catalog.source)
    lines = _summary(postings, matches, ladder)
    # Opened last, so that a mistake of the user leaves no failed run.
    with open_run(f"match {name}", config.experiment, kind=MATCH) as run:
        run.log_params({**as_params(config), **(cli_options or {})})
        run.log_tags(machine_tags("cpu"))
        run.log_metrics(scores)
        facts = MatchFacts(name, lines, postings.frame, catalog.folder, tables[PAIRS_FILE])
        files = {REPORT_FILE: match_page(facts, tables.get(LADDER_FILE))}
        for file, table in tables.items():
            files[file] = without_formulas(table).to_csv(index=False, lineterminator="\n")
        for file, text in files.items():
            (out / file).write_text(text, encoding="utf-8", newline="")
            run.log_text(text, f"{FOLDER}/{file}")
        if matcher is not None:
            pool = Pool(postings, matches.pairs)
            log_matcher(PostingMatcher(matcher, pool, embedder), register=config.register)
        counts = {"postings": len(postings), "pairs": len(tables[PAIRS_FILE])}
        run.log_dataset(postings.frame, str(catalog.source), name, None, counts, MATCH)
        report = report_link(run.experiment_id, run.run_id, f"{FOLDER}/{REPORT_FILE}")
        run.log_tags({DESCRIPTION_TAG: "\n\n".join([*lines, f"Report: {report}"])})
        say(
            *lines,
            f"{out / REPORT_FILE} and {len(tables)} tables beside it, also in the run",
            *view_lines(run, f"{duration(time.monotonic() - started)} in all"),
        )
    return MatchResult(run.run_id, scores, out / REPORT_FILE, tables)


def _embedder(config: MatchConfig) -> ProductClassifier | None:
    """The model that the option ``model`` names."""
    if config.model == NONE:
        return None
    from ..tracking.photo_embeddings import embedding_model

    return embedding_model(config.model, config.image_size, config.resize)


def _with_photos(
    rows: pd.DataFrame, folder: Path | None, embedder: ProductClassifier | None, config: MatchConfig
) -> tuple[pd.DataFrame, np.ndarray | None]:
    """The rows with phashes, if they have none but photos, and embeddings of the photos.

    :param embedder: embeds the photos; None: they are not used.
    :raises ConfigError: when they are to be embedded and there is no photo.
    """
    files: list[Path | None] = []
    if folder is not None and "image" in rows:
        files = find_photo_files(folder, list(rows["image"])).found()
    there = [file for file in files if file is not None]
    if there and "image_phash" not in rows:
        found = iter(compute_phashes(there, config.workers, watch("computing phashes")))
        rows = rows.assign(image_phash=[next(found) if file else "" for file in files])
    if embedder is None:
        return rows, None
    if not there:
        name = f"matcher={config.matcher}" if config.model == NONE else f"model={config.model}"
        raise ConfigError(
            [
                f"{name}: embeds photos, and no photo is found; name their folder with images, or "
                "use one without photos"
            ]
        )
    from ..tracking.photo_embeddings import embed_files

    return rows, embed_files(
        embedder,
        files,
        cache=config.cache,
        workers=config.workers,
        progress=watch("embedding photos"),
    )


def _without_excluded(rows: pd.DataFrame, config: MatchConfig) -> pd.DataFrame:
    """The rows that the option ``exclude`` does not name."""
    if config.exclude == NONE:
        return rows
    missing = {name: "" for name in ("image", "label_group") if name not in rows}
    cleaning = Cleaning(rows=len(rows))
    kept = drop_excluded(rows.assign(**missing), config.exclude, cleaning)
    say(*cleaning.lines(), *cleaning.remarks)
    return kept.drop(columns=list(missing))


def _submission(postings: Postings, matches: Matches, rows: pd.DataFrame) -> pd.DataFrame:
    """Matches among the postings of ``test_csv`` alone."""
    asked = (rows["split"] == TEST).to_numpy()
    return matches_table(postings, among(matches, asked))[asked]


def _prepare_folder(out: Path, catalog: Catalog) -> Path:
    """Create the folder of the page and its tables, and delete those of an earlier matching.

    :raises ConfigError: when it has other files, is in the folder of photos or cannot be written.
    """
    if catalog.folder is not None and out.resolve().is_relative_to(catalog.folder.resolve()):
        raise ConfigError([f"out={out}: is in the folder of photos; name another folder"])
    prepare_report_folder(out, MATCH)
    for name in (REPORT_FILE, *_TABLES):
        (out / name).unlink(missing_ok=True)
    return out


def _matched(
    postings: Postings, given: PostingMatcher | None, config: MatchConfig
) -> tuple[Ladder | None, Matcher | None, Matches]:
    if given is not None:
        _say_changes(postings, given, config)
        return None, given.matcher, given.matcher.match(postings)
    if not postings.labelled:
        say("There are no label groups: postings match by fixed thresholds, without a score.")
        return None, None, match_unlabelled(postings)
    return climb(postings, config.near_bits, config.validation_share, config.split_seed, say)


def _say_changes(postings: Postings, given: PostingMatcher, config: MatchConfig) -> None:
    """Say whether these postings are those of the matcher's index."""
    changes = pool_changes(given.index, postings.frame)
    if changes:
        say(
            f"matcher={config.matcher}: these postings differ from the {changes.before:,} of its "
            f"index: {changes.words()}",
            "All postings are matched as they are now. The matcher of this run has them in its "
            "index; the one named keeps its own.",
        )
    else:
        say(f"matcher={config.matcher}: its index holds these postings")
    if postings.labelled:
        say("The label groups are not scored: the matcher may have been chosen on them.")


def _tables(postings: Postings, matches: Matches, ladder: Ladder | None) -> dict[str, pd.DataFrame]:
    tables = {
        MATCHES_FILE: matches_table(postings, matches),
        PAIRS_FILE: pairs_table(postings, matches),
        GROUPS_FILE: groups_table(postings, matches),
    }
    if ladder is not None:
        tables[LADDER_FILE] = ladder.table()
    return tables


def _scores(ladder: Ladder | None) -> dict[str, float]:
    """Metrics: the F1 of the matches with its interval, and the F1 of each rung."""
    if ladder is None:
        return {}
    last = ladder.rungs[-1]
    return {
        "match_f1": last.f1,
        "match_f1_low": last.low,
        "match_f1_high": last.high,
        "match_validation_f1": last.validation_f1,
        **{f"ladder_{rung.name}": rung.f1 for rung in ladder.rungs},
    }


def _summary(postings: Postings, matches: Matches, ladder: Ladder | None) -> list[str]:
    """The lines for the console."""
    matched = int((matches.pairs.totals(matches.chosen) > 0).sum())
    lines = [
        f"{matched:,} of {len(postings):,} postings have a match; "
        f"{int(matches.chosen.sum()):,} matches in all"
    ]
    if ladder is not None:
        last, test = ladder.rungs[-1], int((ladder.side == "test").sum())
        lines.append(
            f"F1 {last.f1:.4f} ({last.low:.4f} to {last.high:.4f}), the mean over the {test:,} "
            "postings of the test groups, whose labels have chosen nothing"
        )
        lines.append(ladder.choice)
    return lines
