"""The garbage collector rests during imports, and is afterwards as it was before."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from caldpo.utils.collector import collector_paused, lasting_imports


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    yield
    gc.enable()


@pytest.mark.parametrize("enabled", [True, False])
def test_it_is_afterwards_as_it_was(enabled: bool) -> None:
    if not enabled:
        gc.disable()
    with collector_paused():
        assert not gc.isenabled()
    assert gc.isenabled() == enabled
    with pytest.raises(ImportError), collector_paused():
        raise ImportError
    assert gc.isenabled() == enabled


def test_what_is_imported_first_is_exempt_and_what_comes_later_is_not() -> None:
    code = """
import gc, sys
from caldpo.utils.collector import lasting_imports
passes = []
with lasting_imports():
    gc.callbacks.append(lambda phase, details: passes.append(details))
    sys.modules["torch"] = kept = [[] for _ in range(10_000)]
print(len(passes), gc.get_freeze_count() > 10_000)
first = gc.get_freeze_count()
with lasting_imports():
    more = [[] for _ in range(10_000)]
print(gc.get_freeze_count() == first)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True", "True"]


def test_a_failed_import_exempts_nothing() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(ImportError), lasting_imports():
        raise ImportError
    assert gc.get_freeze_count() == before and gc.isenabled()
