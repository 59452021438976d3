"""Designs and names of the products in the sample catalogue."""

from __future__ import annotations

from typing import NamedTuple


class Design(NamedTuple):
    """The look of a label group: shape, three colours, pattern, printed word, relative width."""

    shape: str
    body: str
    accent: str
    paper: str
    pattern: str
    word: str
    width: float = 1.0


class Shape(NamedTuple):
    """The shape of a product.

    :ivar parts: parts from back to front, each as "kind role size x y x y ...", where ``size`` is
        the corner radius of a box or the width of a line. Numbers are percents of the picture's
        side.
    :ivar label: the area of the printed label, in the same unit.
    :ivar is_round: whether to shade the product as a round one.
    """

    parts: tuple[str, ...]
    label: str
    is_round: bool = False


SHAPES: dict[str, Shape] = {
    "bottle": Shape(
        (
            "box body 6 30 36 70 97",
            "curve body 0 30 50 31 34 43 27 43 14 57 14 57 27 69 34 70 50",
            "box accent 2 41 3 59 16",
            "box deep 0.5 41 13.5 59 16",
        ),
        "30 46 70 88",
        True,
    ),
    "pump": Shape(
        (
            "box metal 1 47.5 12 52.5 36",
            "curve accent 0 24 12 26 6 60 6 60 14 34 13",
            "box accent 2 42 22 58 34",
            "box body 11 27 32 73 97",
        ),
        "31 47 69 86",
        True,
    ),
    "jar": Shape(
        (
            "box body 12 17 28 83 94",
            "box light 3 23 24 77 34",
            "box accent 4 19 11 81 28",
            "box deep 0 19 22.5 81 25",
        ),
        "17 42 83 82",
        True,
    ),
    "box": Shape(
        (
            "poly light 0 14 18 34 10 88 13 70 22",
            "poly dark 0 70 22 88 13 88 85 70 96",
            "poly body 0 14 18 70 22 70 96 14 90",
            "poly accent 0 14 18 70 22 70 30 14 26",
        ),
        "18 36 66 84",
    ),
    "pouch": Shape(
        (
            "curve body 0 18 6 82 6 80 30 86 60 84 95 50 98 16 95 14 60 20 30",
            "box accent 0 19.5 8 80.5 15",
            "line light 1.2 19 20 81 20",
            "line dark 1 17 88 50 93 83 88",
        ),
        "22 30 78 82",
    ),
    "tube": Shape(
        (
            "poly body 0 25 5 75 5 65 80 35 80",
            "box dark 1 25 4 75 10",
            "box accent 3 35 78 65 96",
            "line deep 0.8 35 83 65 83",
        ),
        "32 18 68 68",
        True,
    ),
    "shirt": Shape(
        (
            "curve dark 0 36 10 64 10 60 22 40 22",
            "poly body 0 36 8 42 16 50 19 58 16 64 8 78 13 97 34 85 45 76 36 77 95 23"
            " 95 24 36 15 45 3 34 22 13",
            "line accent 2.2 36 8 42 17 58 17 64 8",
            "line dark 0.8 24 36 25 50 24 60",
            "line dark 0.8 76 36 75 50 76 60",
            "line accent 1.8 83.5 44 95.5 32.5",
            "line accent 1.8 16.5 44 4.5 32.5",
        ),
        "30 33 70 74",
    ),
    "shoe": Shape(
        (
            "curve body 0 3 80 5 28 14 30 24 36 34 28 46 42 62 52 86 56 99 66 97 82",
            "curve dark 0 7 31 16 34 24 40 34 31 20 36",
            "curve accent 0 74 78 76 58 90 57 99 68 97 80",
            "line trim 2 36 44 46 36",
            "line trim 2 43 50 53 41",
            "line trim 2 51 55 60 46",
            "box trim 5 2 74 98.5 84",
            "line accent 1.2 5 80 96 80",
        ),
        "9 48 40 72",
    ),
    "case": Shape(
        (
            "box dark 8 27 2 73 98",
            "box body 7 28.5 3.5 71.5 96.5",
        ),
        "28.5 30 71.5 92",
    ),
    "mug": Shape(
        (
            "line accent 6 70 36 90 36 94 52 88 68 70 70",
            "box body 8 14 20 74 88",
            "box body 0 14 20 74 50",
            "oval light 0 14 13 74 27",
            "oval deep 0 17 15 71 25",
        ),
        "14 36 74 76",
        True,
    ),
    "lipstick": Shape(
        (
            "poly accent 0 34 40 34 15 40 8 52 4 52 40",
            "box metal 1 32 36 54 56",
            "box body 2 28 54 58 96",
            "box body 3 66 40 92 96",
            "box metal 0 66 88 92 92",
        ),
        "28 62 58 90",
    ),
    "bag": Shape(
        (
            "line dark 4 26 42 28 8 72 8 74 42",
            "curve body 0 12 36 88 36 95 94 5 94",
            "curve dark 0 12 38 88 38 88 58 50 68 12 58",
            "curve accent 0 13 37 87 37 85 56 50 65 15 56",
            "box metal 1.5 46 58 54 68",
        ),
        "20 69 80 88",
    ),
    "watch": Shape(
        (
            "box body 4 39 1 61 99",
            "line dark 1.2 50 74 50 95",
            "line dark 1.2 50 5 50 24",
            "box metal 1 74 47 80 53",
            "oval deep 0 23 23 77 77",
            "oval accent 0 25 25 75 75",
            "oval paper 0 29 29 71 71",
        ),
        "36 36 64 64",
    ),
    "cap": Shape(
        (
            "curve body 0 14 66 14 20 48 16 80 20 80 66",
            "line dark 0.8 47 24 38 40 36 62",
            "line dark 0.8 47 24 64 40 68 62",
            "oval accent 0 44 20 51 25",
            "curve accent 0 12 64 45 54 80 60 99 76 60 74",
            "line deep 0.8 16 65.5 45 60 78 65 93 72",
        ),
        "37 32 66 56",
    ),
}

# One design per label group, the largest groups first. Some designs are similar on purpose.
DESIGNS = tuple(
    Design(*fields)
    for fields in (
        ("bottle", "#3d9a5b", "#1f6b3c", "#f4f1e2", "leaf", "ALAMI"),
        ("bottle", "#4aa39b", "#1d5c66", "#f2f6f4", "waves", "SEGAR"),
        ("bottle", "#4d7fc4", "#23408c", "#f7f7fb", "stripes", "MURNI", 0.86),
        ("pump", "#f2a9bd", "#c2466f", "#fff4f6", "heart", "LEMBUT"),
        ("pump", "#f4b59a", "#c7683c", "#fff6ec", "dots", "HARUM", 0.9),
        ("jar", "#e0a030", "#7a4a1c", "#fff3cf", "ring", "MADU"),
        ("jar", "#c9502f", "#7a1f1a", "#ffe9cf", "checks", "PEDAS"),
        ("box", "#3f6fd1", "#f0b429", "#f6f8ff", "diagonal", "VITA C"),
        ("box", "#7a58c9", "#e8588f", "#fbf6ff", "dots", "SUSU+", 0.9),
        ("pouch", "#6b432b", "#d09a4e", "#f3e6cf", "star", "KOPI"),
        ("pouch", "#7da33c", "#3f6420", "#f5f3dc", "leaf", "TEH HIJAU"),
        ("tube", "#f3f0ee", "#e05c86", "#fbe3ea", "waves", "GLOW"),
        ("shirt", "#2a2b33", "#e9e4d8", "#2a2b33", "ring", "SANTAI"),
        ("shirt", "#27406b", "#f1c75b", "#27406b", "star", "JUARA"),
        ("shoe", "#d2373b", "#2b2b30", "#f3efe9", "columns", "LARI"),
        ("shoe", "#4c5666", "#f08a24", "#e7e9ec", "diagonal", "JALAN"),
        ("case", "#58b8b4", "#1f6f78", "#8fd3cf", "waves", "laut"),
        ("case", "#9b7fd0", "#5a3c96", "#c9b5ea", "checks", "ungu"),
        ("mug", "#f5f2ea", "#d8433f", "#f5f2ea", "heart", "NGOPI"),
        ("bag", "#b5794a", "#8c5530", "#c98f60", "plain", "kulit"),
        ("watch", "#33353d", "#c9a24a", "#f6f3ea", "plain", "JAM"),
        ("cap", "#2f7d8c", "#f0d9a8", "#2f7d8c", "star", "SURF"),
        ("cap", "#b8323a", "#2a2a30", "#b8323a", "ring", "KLUB"),
        ("lipstick", "#2d2630", "#b3202f", "#2d2630", "plain", "MERAH"),
        ("lipstick", "#e9c7bd", "#c9706a", "#e9c7bd", "plain", "NUDE"),
        ("watch", "#8a5a3c", "#b9bcc4", "#2d3a52", "plain", "JAM"),
        ("mug", "#3f5f9a", "#f2c84b", "#3f5f9a", "star", "PAGI"),
        ("bag", "#d98aa4", "#b85f80", "#e7aabf", "dots", "MANIS", 0.9),
        ("tube", "#cfe6d4", "#3f8f63", "#f3faf2", "leaf", "ALOE"),
        ("shirt", "#f0ece2", "#c9583a", "#f0ece2", "stripes", "PANTAI"),
        ("jar", "#cdb7e0", "#6c4f93", "#f8f2fc", "dots", "KRIM"),
        ("shoe", "#f1ede6", "#4a8fd0", "#dbe7f3", "waves", "PUTIH"),
        ("case", "#2c2f38", "#e05252", "#3b3f4b", "diagonal", "sport"),
    )
)
# Product names that sellers use for each shape.
GOODS = {
    "bottle": ("Botol Sabun Cair", "Shampo Botol 250ml", "Cairan Pembersih Serbaguna"),
    "pump": ("Body Lotion Pump", "Hand Wash Botol Pump", "Sabun Mandi Cair 500ml"),
    "jar": ("Toples Selai", "Bumbu Dapur Toples Kaca", "Camilan Toples 250gr"),
    "box": ("Suplemen Harian Isi 30", "Susu Bubuk Dus 400gr", "Vitamin Kotak"),
    "pouch": ("Bubuk Minuman Pouch", "Minuman Seduh 200gr", "Serbuk Instan Kemasan Pouch"),
    "tube": ("Facial Wash Tube", "Krim Wajah 100ml", "Gel Pelembab Wajah"),
    "shirt": ("Kaos Oblong Katun 30s", "Kaos Distro Pria Wanita", "T-Shirt Lengan Pendek"),
    "shoe": ("Sepatu Sneakers", "Sepatu Olahraga Pria", "Sepatu Casual Wanita"),
    "case": ("Softcase HP", "Casing Handphone", "Case Silikon Anti Crack"),
    "mug": ("Gelas Mug Keramik", "Cangkir Kopi", "Mug Custom 330ml"),
    "lipstick": ("Lipstik Matte", "Lip Cream Tahan Lama", "Lipstick Velvet"),
    "bag": ("Tas Tangan Wanita", "Tas Selempang Kulit Sintetis", "Hand Bag Fashion"),
    "watch": ("Jam Tangan Pria", "Jam Tangan Analog", "Jam Casual Tali Kulit"),
    "cap": ("Topi Baseball", "Topi Pria Wanita", "Topi Distro Bordir"),
}
