"""``python -m tests.golden [RUN ...]``: record the golden runs anew, all of them or the named ones.

Only for a change that is meant to alter numbers, and only where the others still agree: say in the commit which numbers
changed and why. Where machine or libraries differ from the recording's, all have to be recorded.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.golden.observe import RECORDED, differences, inputs, machine, observe, observe_comparison, record
from tests.golden.scenarios import RUNS

COMPARISON = "comparison"


def main(wanted: list[str]) -> None:
    recorded = json.loads(RECORDED.read_text()) if wanted else {}
    if wanted and recorded["machine"] != machine():
        sys.exit("recorded on another machine, or with other versions: record all (no arguments)")
    wanted = wanted or [*RUNS, COMPARISON]
    if unknown := sorted({*wanted} - {*RUNS, COMPARISON}):
        sys.exit(f"no such run: {', '.join(unknown)}; there are: {', '.join([*RUNS, COMPARISON])}")
    recorded["machine"] = machine()
    for name in wanted:
        with tempfile.TemporaryDirectory() as place:
            recorded["inputs"] = inputs(Path(place))
            if name == COMPARISON:
                recorded["comparison"] = observe_comparison(Path(place))
                continue
            observed = observe(RUNS[name], Path(place))
        if RUNS[name].same_as is None:
            recorded.setdefault("runs", {})[name] = observed
        elif unlike := differences(recorded["runs"][RUNS[name].same_as], observed, exact=True):
            sys.exit(f"{name} is not the same as {RUNS[name].same_as}:\n" + "\n".join(unlike))
        print(name, flush=True)
    record(recorded)


if __name__ == "__main__":
    main(sys.argv[1:])
