"""The garbage collector rests during imports, and is afterwards as it was before."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from caldpo.utils.collector import exempt_from_collection


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    yield
    gc.enable()


@pytest.mark.parametrize("enabled", [True, False])
def test_it_is_afterwards_as_it_was(enabled: bool) -> None:
    if not enabled:
        gc.disable()
    with exempt_from_collection():
        assert not gc.isenabled()
    assert gc.isenabled() == enabled
    with pytest.raises(ImportError), exempt_from_collection():
        raise ImportError
    assert gc.isenabled() == enabled


_BEGINNING = """
import gc, sys
from caldpo.utils.collector import exempt_from_collection
passes, counts, made = [], [], []
gc.callbacks.append(lambda phase, details: passes.append(details))
for round in range(4):
    with exempt_from_collection():
        passes.clear()
        made.append([[] for _ in range(10_000)])
        assert not passes
        if {torch} == round:
            sys.modules["torch"] = None
    counts.append(gc.get_freeze_count())
print(*(later - earlier > 10_000 for earlier, later in zip([0, *counts], counts)))
"""


@pytest.mark.parametrize(
    ("torch", "exempted"), [(-1, "True True False False"), (0, "True False False False"), (1, "True True False False")]
)
def test_what_a_process_begins_with_is_exempt_and_nothing_later(torch: int, exempted: str) -> None:
    code = _BEGINNING.format(torch=torch)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == exempted
