"""A benchmark that ends with an error."""

from __future__ import annotations

import pytest

from caldpo.benchmark import main


def stopped(capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
    """Run a benchmark; returns its exit code and all that it prints, which holds no traceback."""
    with pytest.raises(SystemExit) as end:
        main(list(overrides))
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    return end.value.code, printed.out + printed.err
