"""Photos in any form: which cells of a table hold none, and the phash of each form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import draw_photo

from shopee_mlflow.data.photo_forms import is_missing


@pytest.mark.parametrize("cell", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, ""])
def test_cells_without_a_photo(cell: Any) -> None:
    assert is_missing(cell) is True


@pytest.mark.parametrize(
    "cell",
    [np.zeros((4, 4, 3), np.uint8), [[0, 1]], [], draw_photo(0, 0), Path("a.jpg"), "a.jpg", b"", 5],
)
def test_cells_that_hold_something(cell: Any) -> None:
    assert is_missing(cell) is False
