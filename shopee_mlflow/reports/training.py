"""The report of a training as one HTML page."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..data.splits import copy_words
from ..data_config import NONE
from .figure_text import measure_name
from .pages import (
    Picture,
    Table,
    figure_picture,
    render,
)
from .training_facts import ExplainFn, StrangerFacts, TrainingFacts, group_text
from .training_figures import (
    calibration_figure,
    confusion_figure,
    f1_figure,
    learning_curve,
    stranger_figure,
)
from .training_photos import MOST_TILES, attention_gallery, photo_gallery

_MOST_PAIRS = 15
_FEW_PHOTOS = 5
_MOST_EPOCHS = 5
_LARGE_GAP = 0.1
_UNDERFIT = 0.5


def training_page(facts: TrainingFacts, explain: ExplainFn) -> str:
    """The page; see the template ``training.html.j2`` for the order of its sections."""
    predicted = facts.probabilities.argmax(axis=1)
    confidence = facts.probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != facts.labels)
    right = np.flatnonzero(predicted == facts.labels)
    mistakes = wrong[np.argsort(-confidence[wrong], kind="stable")]
    hits = right[np.argsort(confidence[right], kind="stable")]
    return render(
        "training.html.j2",
        title=facts.title,
        lead=facts.lead,
        headline=facts.headline or _headline(facts),
        curves=[_curve(facts, name) for name in ("loss", "accuracy")],
        learned=facts.learned or _curves_text(facts),
        folds=facts.folds,
        review=facts.review,
        confusion=figure_picture(
            confusion_figure(facts.counts, "", facts.label_names),
            "Confusion matrix: true label groups in rows, predicted ones in columns.",
            _confusion_text(len(wrong), facts),
        ),
        pairs=_confused_pairs(facts),
        class_figure=figure_picture(
            f1_figure(_per_class(facts)),
            "F1 score of each label group, the lowest first.",
            _classes_text(facts),
        ),
        class_table=_class_table(facts),
        calibration=figure_picture(
            calibration_figure(facts.calibration),
            "Accuracy of predictions by their probability.",
            _calibration_text(facts),
        ),
        strangers=_strangers(facts.strangers),
        subsets=_subset_table(facts),
        mistakes=photo_gallery(facts, mistakes, "Most confident mistakes", _MISTAKES, len(wrong)),
        attention=attention_gallery(facts, mistakes[:MOST_TILES], predicted, explain),
        hits=photo_gallery(facts, hits, "Least confident correct predictions", _HITS, len(right)),
        options=list(facts.options.items()),
        data_lines=list(facts.data_lines),
    )


_MISTAKES = (
    "Wrong predictions with the highest probability. Look for wrong labels, label groups that show "
    "the same product, and photos that show something else."
)
_HITS = "Correct predictions with the lowest probability: the closest calls."


def _curve(facts: TrainingFacts, name: str) -> Picture:
    figure = learning_curve(facts.history, name, int(facts.scores["best_epoch"]))
    values = facts.history.iloc[-1]
    said = f"train {values[f'train_{name}']:.3g}, validation {values[f'val_{name}']:.3g}"
    alt = f"{name.capitalize()} of training and validation photos by epoch; in the last one {said}."
    return figure_picture(figure, alt)


def _headline(facts: TrainingFacts) -> list[tuple[str, str]]:
    s = facts.scores
    interval = f"{s['test_accuracy_low']:.1%} to {s['test_accuracy_high']:.1%}"
    return [
        ("Test accuracy", f"{s['test_accuracy']:.1%}"),
        ("95 % interval", interval),
        ("Test photos", f"{len(facts.labels):,} of {len(facts.classes):,} groups"),
        ("Validation accuracy", f"{s['best_val_accuracy']:.1%}"),
        ("Best epoch", f"{s['best_epoch']:.0f} of {len(facts.history)}"),
    ]


def _curves_text(facts: TrainingFacts) -> str:
    """The best epoch, and what curves and options allow to say about the others."""
    last, gap = facts.history.iloc[-1], _gap(facts.history)
    falling = still_falling(facts.history["val_loss"])
    words = [_best_epoch(facts)]
    if gap > _LARGE_GAP:
        words.append(
            f"In the last epoch, accuracy on training photos is {100 * gap:.0f} percentage points "
            "higher than on validation photos: the model overfits."
        )
        if facts.options.get("augment") == NONE:
            words.append("Augmentation is off; augment=original or flip may help.")
    elif last["train_accuracy"] < _UNDERFIT:
        words.append(
            f"In the last epoch, only {last['train_accuracy']:.0%} of the training photos are "
            "correct: the model underfits."
        )
        if not falling:
            words.append("The loss no longer falls; another learning rate may help.")
    if falling:
        words.append(STILL_FALLING)
    return " ".join(words)


def _gap(history: pd.DataFrame) -> float:
    last = history.iloc[-1]
    return float(last["train_accuracy"] - last["val_accuracy"])


def _best_epoch(facts: TrainingFacts) -> str:
    """Which epoch was kept, and why that one if others have the same metric."""
    history, best = facts.history.set_index("epoch"), int(facts.scores["best_epoch"])
    monitor = facts.options.get("monitor", "val_accuracy")
    value, measure = history[monitor].max(), measure_name(monitor)
    equal = history[history[monitor] == value]
    if len(equal) == 1:
        return f"Epoch {best} has the highest {measure} ({value:.1%}); its weights were kept."
    numbers = [str(number) for number in equal.index]
    listed = f"{', '.join(numbers[:-1])} and {numbers[-1]}"
    which = f"Epochs {listed}" if len(equal) <= _MOST_EPOCHS else f"{len(equal)} epochs"
    lowest = equal.index[equal["val_loss"] == equal["val_loss"].min()]
    reason = "has the lowest validation loss of them" if len(lowest) == 1 else "is the first"
    return (
        f"{which} have the same highest {measure} ({value:.1%}). Epoch {best} {reason}; its "
        "weights were kept."
    )


STILL_FALLING = "The validation loss was still falling at the end, so more epochs may help."


def still_falling(val_loss: pd.Series) -> bool:
    """Whether the validation loss fell by more than 2 % over the last tenth of the epochs."""
    part = max(1, len(val_loss) // 10)
    if len(val_loss) < 2 * part + 1:
        return False
    before, end = val_loss.iloc[-2 * part : -part].mean(), val_loss.iloc[-part:].mean()
    return bool(end < 0.98 * before)


def _confusion_text(wrong: int, facts: TrainingFacts) -> str:
    total = len(facts.labels)
    if wrong == 0:
        return f"All {total:,} test photos are classified correctly."
    noun = "photo is" if wrong == 1 else "photos are"
    return f"{wrong:,} of {total:,} test {noun} misclassified; the table lists the pairs."


def _confused_pairs(facts: TrainingFacts) -> Table:
    values = facts.counts.to_numpy().copy()
    np.fill_diagonal(values, 0)
    rows, columns = np.nonzero(values)
    order = np.argsort(-values[rows, columns], kind="stable")
    table = pd.DataFrame(
        {
            "true": [group_text(facts, label) for label in rows[order]],
            "predicted": [group_text(facts, label) for label in columns[order]],
            "photos": values[rows, columns][order],
        }
    )
    more = max(0, len(table) - _MOST_PAIRS)
    return Table("Confused label groups", "", table.head(_MOST_PAIRS), more)


def _per_class(facts: TrainingFacts) -> pd.DataFrame:
    """The report without the averages in its last rows."""
    return facts.class_scores.head(len(facts.classes))


def _classes_text(facts: TrainingFacts) -> str:
    everything = _per_class(facts)
    table = everything[everything["support"] > 0]
    perfect = int((table["f1-score"] == 1).sum())
    few = int((table["support"] < _FEW_PHOTOS).sum())
    words = f"{perfect:,} of {len(table):,} label groups have no mistake."
    if few:
        words += (
            f" {few:,} have fewer than {_FEW_PHOTOS} test photos, so one photo changes their score "
            "a lot."
        )
    if len(table) < len(everything):
        words += f" {len(everything) - len(table):,} have no test photo and are not shown."
    return words


def _class_table(facts: TrainingFacts) -> Table:
    table = _per_class(facts).sort_values(["f1-score", "support"], kind="stable")
    table = table.assign(support=table["support"].astype(int))
    table.insert(0, "number", table.index)
    caption = (
        "Number: of the label group in the figures. "
        "Precision: share of photos predicted as this label group that belong to it. Recall: share "
        "of its photos predicted as this label group. Support: test photos. Lowest F1 score first."
    )
    return Table("Label groups", caption, table)


def _calibration_text(facts: TrainingFacts) -> str:
    table = facts.calibration
    photos = table["photos"] / table["photos"].sum()
    bias = float(((table["confidence"] - table["accuracy"]) * photos).sum())
    variance = float((table["confidence"] * (1 - table["confidence"]) * photos).sum())
    chance = 2 * (variance / int(table["photos"].sum())) ** 0.5
    known = facts.calibrated
    size = (
        f"Expected calibration error {known['error_after']:.1%}; a calibrated model has "
        f"about {known['chance_after']:.1%} on so many photos by chance. Before calibration it was "
        f"{known['error_before']:.1%} (by chance {known['chance_before']:.1%}): "
        f"{known['words']}. "
    )
    if abs(bias) <= max(0.02, chance):
        return size + "On average, probabilities agree with the accuracy within chance."
    points = f"{abs(bias) * 100:.0f} percentage points"
    if bias > 0:
        return size + f"Probabilities are {points} too high on average."
    return size + f"Probabilities are {points} too low on average."


def _strangers(found: StrangerFacts | None) -> Picture | str:
    """The curve of strangers with the result in words; without a curve, the words."""
    if found is None:
        return ""
    text = " ".join(f"{words[0].upper()}{words[1:]}." for words in found.words)
    if not len(found.curve):
        return text
    alt = "Accuracy of the kept test photos, and share of strangers accepted, by share kept."
    return figure_picture(stranger_figure(found.curve), alt, text)


def _subset_table(facts: TrainingFacts) -> Table | None:
    if len(facts.subsets) < 2:
        return None
    rows = [
        {
            "test photos": name,
            "count": photos,
            "accuracy": f"{accuracy:.1%}",
            "95 % interval": f"{low:.1%} to {high:.1%}",
        }
        for name, (photos, accuracy, low, high) in facts.subsets.items()
    ]
    copies = copy_words(int(facts.options["near_bits"]))
    caption = (
        f"Some test photos have a copy in train ({copies}), so "
        "the model may have memorized them. The others show the accuracy on new photos. With "
        "split=leak_free there are no such copies."
    )
    return Table("With and without a copy in train", caption, pd.DataFrame(rows))
