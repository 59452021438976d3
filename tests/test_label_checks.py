"""Labels that look alike, and labels that read like a missing value."""

from __future__ import annotations

import unicodedata

import pytest

from shopee_mlflow.data.label_checks import (
    label_remarks,
    lookalike_labels,
    missing_value_labels,
    shown_label,
)

NFD = unicodedata.normalize("NFD", "Café")
ALIKE = [
    ("249114794", "249114794.0"),
    ("7", "7.00"),
    ("1.5", "1.50"),
    ("-3", "-3."),
    ("Café", NFD),
    ("SHIRT", "shirt"),
    ("Straße", "STRASSE"),
    ("red bag", "red  bag"),
    ("red bag", "red\u00a0bag"),
    ("red bag", " red bag"),
    ("zerowidth", "zero\u200bwidth"),
    ("bag", "bag\ufeff"),
    ("bag", "ba\u00adg"),
    ("Bag", "Ｂag"),
    ("it's", "it’s"),
    ("t-shirt", "t–shirt"),
    ("t-shirt", "t\u2011shirt"),
    ("ﬁg", "fig"),
    ("cop", "сор"),
    ("❤", "❤\ufe0f"),
    ("bag", "bag\u3164"),
    ("bag", "bag\u2800"),
    ("bag", "b\u034fag"),
    ("249114794", "2.49114794E+08"),
    ("1000", "1e3"),
    ("1234", "1,234"),
    ("1234567", "1 234\u202f567"),
    ("1234", "1'234"),
    ("1234", "1_234"),
    ("0.5", ".50"),
    ("istanbul", "İSTANBUL"),
    ("7", "+7"),
    ("7", "٧"),
    ("COM", "СОМ"),
    ("ABE", "ΑΒΕ"),
    ("a/b", "a∕b"),
]
APART = [
    "007",
    "7",
    "+",
    "1e",
    "2.49E+08",
    "1e999999",
    "1,2",
    "12",
    "1 2",
    ".",
    "9" * 40,
    "9" * 39 + "8",
    "249114794",
    "red bag",
    "redbag",
    "Cafe",
    "Café",
]


@pytest.mark.fault
@pytest.mark.parametrize("pair", ALIKE, ids=lambda pair: ascii(pair[1]))
def test_lookalikes_are_found_in_any_order(pair: tuple[str, str]) -> None:
    expected = [sorted(pair)]
    assert lookalike_labels([*pair, "other"]) == expected
    assert lookalike_labels(reversed([*pair, *pair])) == expected


def test_labels_that_differ_to_a_person_are_none() -> None:
    assert lookalike_labels(APART) == []
    assert lookalike_labels([]) == []


def test_sets_are_whole_and_sorted() -> None:
    labels = ["shirt", "b", "Shirt", "SHIRT", "B", "c"]
    assert lookalike_labels(labels) == [["B", "b"], ["SHIRT", "Shirt", "shirt"]]


def test_labels_that_read_like_missing_values() -> None:
    missing = [
        "nan",
        "NaN",
        "None",
        "#N/A",
        "null",
        "NULL",
        "NA",
        "N/A",
        "-",
        "<NA>",
        "#REF!",
        "#NV",
        "#N/A N/A",
    ]
    missing += ["-1.#IND", "(blank)", "<null>", "(none)"]
    named = ["Nantes", "nanny", "none of these", "0", "Nathan", "no", "-1", "unknown", ""]
    assert missing_value_labels([*missing, *named, "nan"]) == sorted(missing)


def test_what_cannot_be_seen_is_shown() -> None:
    assert shown_label("商品") == "'商品'"
    assert shown_label(NFD) == r"'Cafe\u0301'"
    assert shown_label("zero\u200bwidth") == r"'zero\u200bwidth'"


def test_remarks_name_a_few_and_count_all() -> None:
    pairs = [label for pair in ALIKE[:5] for label in pair]
    alike, missing = label_remarks([*pairs, "nan", "null", "plain"])
    assert alike.startswith("5 sets of label groups differ only in")
    assert "are kept apart: '-3' and '-3.'; '1.5' and '1.50'; '249114794' and" in alike
    assert missing.startswith("2 label groups read like a missing value")
    assert missing.endswith(": 'nan', 'null'")
    assert label_remarks(["plain", "other"]) == []


@pytest.mark.parametrize(
    ("label", "other"),
    [
        ("\u04cfamp", "lamp"),
        ("b\u0251\u0261", "bag"),
        ("sh\u0131rt", "shirt"),
        ("b\u0585x", "box"),
        ("2\u00d73", "2x3"),
        ("\u8fbb\U000e0101", "\u8fbb"),
        ("\u0662\u0664", "24"),
    ],
)
def test_further_lookalikes(label: str, other: str) -> None:
    assert lookalike_labels([label, other]) == [sorted([label, other])]


def test_further_missing_values() -> None:
    assert missing_value_labels(["#N/D", "[null]", "{}", "red"]) == ["#N/D", "[null]", "{}"]
