#!/usr/bin/env bash
# A column of a JSON-lines file, declared as Value("string") in `features`, would be expected to arrive as it was written.
# The JSON reader makes timestamps of a column whose values are all ISO 8601 dates or times within a file, or within 10 MB of a
# larger one, and only then makes strings of them: a "T" or "Z" goes, a time zone is converted, a time of day is added.
# datasets 5.2.0 with pyarrow 26.0.1, no warning.
# Pairs that differ in the format of a date become pairs of equal responses, from which no preference loss learns, and one and
# the same response is two token sequences, depending on what stands near it in the file. Seen:
#   dates only, features=string      chosen '2026-03-01 00:00:00'   rejected '2026-03-01 00:00:00'
#   dates only, features=string      chosen '2026-03-01 14:30:00'   rejected '2026-03-01 12:30:00'
#   other texts in the same file     chosen '2026-03-01'            rejected '2026-03-01T00:00:00Z'
#   26 MB, 100,000 times 2026-03-01: 40,330 read as written, 59,670 as '2026-03-01 00:00:00'
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet datasets==5.2.0 pyarrow==26.0.1
export HF_HOME="$dir/hf" HF_HUB_OFFLINE=1
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import collections
import json
from pathlib import Path

import datasets

datasets.disable_progress_bars()
columns = datasets.Features({name: datasets.Value("string") for name in ("prompt", "chosen", "rejected")})
dates = [
    {"prompt": "Which day?", "chosen": "2026-03-01", "rejected": "2026-03-01T00:00:00Z"},
    {"prompt": "When?", "chosen": "2026-03-01 14:30", "rejected": "2026-03-01T14:30:00+02:00"},
]
other = [{"prompt": "When?", "chosen": "Tomorrow", "rejected": "Never"}]
for name, rows in (("dates", dates), ("other", other), ("mixed", dates + other)):
    Path(f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def responses(title, files, features):
    data = datasets.load_dataset("json", data_files=files, features=features, split="train")
    seen = [(row["chosen"], row["rejected"]) for row in data if row["chosen"] != "Tomorrow"]
    for chosen, rejected in seen:
        print(f"{title:32} chosen {chosen!r:23} rejected {rejected!r}")
    return seen


rewritten = [("2026-03-01 00:00:00", "2026-03-01 00:00:00"), ("2026-03-01 14:30:00", "2026-03-01 12:30:00")]
written = [(row["chosen"], row["rejected"]) for row in dates]
assert responses("dates only, features=string", "dates.jsonl", columns) == rewritten
assert responses("a file of other texts before it", ["other.jsonl", "dates.jsonl"], None) == rewritten
assert responses("other texts in the same file", "mixed.jsonl", None) == written

row = {"prompt": "p" * 200, "chosen": "2026-03-01", "rejected": "Never"}
Path("long.jsonl").write_text("\n".join(json.dumps(row) for row in [*other, *[row] * 100_000]))
long = datasets.load_dataset("json", data_files="long.jsonl", features=columns, split="train")
counts = collections.Counter(long["chosen"])
size = Path("long.jsonl").stat().st_size / 1e6
print(f"{size:.0f} MB, 100,000 times 2026-03-01: {counts['2026-03-01']:,} read as written,", end=" ")
print(f"{counts['2026-03-01 00:00:00']:,} as '2026-03-01 00:00:00'")
assert counts["2026-03-01"] > 10_000 and counts["2026-03-01 00:00:00"] > 10_000
PY
