"""``python -m tests.architectures FILE.md [TYPE ...]``: the table of all model types, with train and estimate.

``PROBES=only`` leaves the two commands out, which take most of the time.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

from transformers.utils import logging as transformers_logging

from tests.architectures.examine import COLUMNS, commands, examine, faults, write_pairs
from tests.architectures.families import ALL, build


def main(file: Path, kinds: list[str]) -> None:
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    logging.disable(logging.ERROR)
    head = ["type", *COLUMNS, "silently wrong"]
    with file.open("w", encoding="utf-8") as table, tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_pairs()
        print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", file=table, flush=True)
        for kind in kinds:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                try:
                    row = examine(kind)
                    if os.environ.get("PROBES") != "only":
                        build(kind, rate=0.3).save_pretrained(Path(folder, kind))
                        row |= commands(Path(folder, kind))
                except Exception as error:
                    row = {"refused": f"cannot be built or run here: {type(error).__name__}: {str(error)[:80]}"}
            shown = {n: f"{v:.0e}" if isinstance(v, float) else str(v) for n, v in row.items()}
            wrong = ", ".join(faults(row)) or "no"
            first = shown.get("layout", f"**refused**, {shown.get('refused', '')}")
            cells = [kind, first, *(shown.get(name, "") for name in COLUMNS[1:]), wrong]
            print(
                "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |",
                file=table,
                flush=True,
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2:] or ALL)
