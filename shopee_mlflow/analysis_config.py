"""The options of explore and match, which do not train a classifier."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from .data_config import NONE, DataConfig
from .options import Group, Role, option

# Options by which match chooses a matcher; a given matcher is applied as it is.
_CHOOSING = ("validation_share", "near_bits", "split_seed", "image_size", "resize")


@dataclass(frozen=True)
class ExploreConfig(DataConfig):
    """Options of ``explore``. The data options select the training that the report describes."""

    max_photos: int = option(
        50_000,
        "read at most this many photos, drawn at random; 0: all",
        Role.SETUP,
        minimum=0,
        begins=Group.DATA,
    )
    seed: int = option(0, "seed of that draw", Role.SETUP, minimum=0, maximum=2**32 - 1)
    out: str = option(
        "explore",
        "output folder for the page and its tables: a new one, or that of an earlier page",
        Role.SETUP,
        begins=Group.RUNNING,
    )
    experiment: str = option(
        "shopee-analysis",
        "MLflow experiment that the run belongs to",
        Role.RECORD,
        begins=Group.TRACKING,
    )


@dataclass(frozen=True)
class MatchConfig(DataConfig):
    """Options of ``match``. All postings are matched, whatever their label group."""

    split_column: str = option(
        NONE, "always none: match splits label groups, not photos", Role.DATA, choices=(NONE,)
    )
    val_csv: str = option(
        NONE, "always none: validation groups are drawn from data", Role.SETUP, choices=(NONE,)
    )
    test_csv: str = option(
        NONE,
        "table of further postings; their matches among themselves are in submission.csv",
        Role.SETUP,
    )
    largest_groups: int = option(
        0, "always 0: match uses all label groups", Role.DATA, minimum=0, maximum=0
    )
    min_group: int = option(
        1, "always 1: match uses label groups of any size", Role.DATA, minimum=1, maximum=1
    )
    bad_images: str = option(
        "skip", "always skip: photos are optional", Role.DATA, choices=("skip",)
    )
    split: str = option(
        "leak_free",
        "always leak_free: copies are on one side of the split",
        Role.DATA,
        choices=("leak_free",),
    )
    model: str = option(
        NONE,
        "model whose embeddings of photos are a further signal: a logged or registered model "
        "(models:/NAME@champion, the id of a run, a folder), or an architecture such as "
        "effnet_pretrained; none: no photos",
        Role.DATA,
        begins=Group.MODEL,
    )
    matcher: str = option(
        NONE,
        "a matcher to apply as it is: a registered one (models:/shopee-matcher/1), the id of its "
        "run, or its folder; none: choose one on the label groups",
        Role.DATA,
    )
    validation_share: float = option(
        0.5,
        "share of the labelled postings whose groups choose thresholds, weights and the pair "
        "model; the others score them",
        Role.DATA,
        minimum=0.05,
        maximum=0.95,
        begins=Group.EVALUATION,
    )
    register: bool = option(
        False,
        "register the matcher as shopee-matcher; needs label groups, or matcher",
        Role.SETUP,
        begins=Group.TRACKING,
    )
    out: str = option(
        "match",
        "output folder for the page and the tables: a new one, or that of an earlier page",
        Role.SETUP,
        begins=Group.RUNNING,
    )
    experiment: str = option(
        "shopee-analysis",
        "MLflow experiment that the run belongs to",
        Role.RECORD,
        begins=Group.TRACKING,
    )

    def contradictions(self) -> list[str]:
        """Problems of options that are valid alone but not together."""
        problems = super().contradictions()
        if NONE not in (self.matcher, self.model):
            problems.append(
                f"model={self.model}: a matcher has its own model; omit model, or omit matcher"
            )
        if self.matcher != NONE and (changed := self._changed(_CHOOSING)):
            problems.append(
                f"{', '.join(changed)}: no effect with matcher={self.matcher}, since nothing is "
                "chosen and a matcher has its own model; omit them, or omit matcher"
            )
        return problems

    def _changed(self, names: Iterable[str]) -> list[str]:
        """Of these options, those that differ from their defaults, as name=value."""
        defaults = {field.name: field.default for field in fields(self)}
        values = {name: getattr(self, name) for name in names}
        return [f"{name}={value}" for name, value in values.items() if value != defaults[name]]
