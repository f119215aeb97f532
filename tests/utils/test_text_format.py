"""Numbers and counts as text."""

from __future__ import annotations

import pytest

from caldpo.utils.text_format import counted


@pytest.mark.parametrize(("count", "text"), [(0, "0 pairs"), (1, "1 pair"), (2, "2 pairs"), (2000, "2,000 pairs")])
def test_one_has_no_plural(count: int, text: str) -> None:
    assert counted(count, "pair") == text
