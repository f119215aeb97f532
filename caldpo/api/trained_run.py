"""A training run as an object: its folder, and what is read from it when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caldpo.config.find_runs import find_one_run
from caldpo.config.signatures import validated
from caldpo.config.summary_file import read_summary
from caldpo.errors import CaldpoError

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from caldpo.evaluation.evaluation_target import Target


@validated
@dataclass(frozen=True)
class Run:
    """A training run by its folder, finished or not.

    Everything is read when it is first asked for, and kept.

    Args:
        folder: of the run, with ``config.yaml``, ``summary.json``, ``metrics.csv`` and ``policy/``.
        allow_untrusted_code: build classes outside caldpo that its files name; only for a run whose code you know.

    Raises:
        CaldpoError: the folder holds no run, or several.
    """

    folder: Path
    allow_untrusted_code: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", find_one_run(Path(self.folder).expanduser().absolute()))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """All of ``summary.json``."""
        return read_summary(self.folder)

    @cached_property
    def final(self) -> dict[str, float]:
        """The final metrics by their logged names, those of the held-out pairs under ``val/``; see docs/metrics.md."""
        return dict(self.summary.get("metrics", {}))

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """All metrics that were logged: a row per optimiser step, a column per metric, NaN where it was not logged."""
        import pandas as pd

        from caldpo.report.read_curves import read_curves
        from caldpo.utils.notes import print_notes

        notes: list[str] = []
        curves = read_curves(self.folder / "metrics.csv", notes)
        print_notes(notes)
        frame = pd.DataFrame({name: pd.Series(curve.numbers, index=curve.steps) for name, curve in curves.items()})
        return frame.sort_index().rename_axis("step")

    @cached_property
    def policy(self) -> PreTrainedModel:
        """The trained policy: ``policy/``, else the last checkpoint; frozen, in evaluation mode, on the CPU.

        Raises:
            CaldpoError: the run saved no weights.
        """
        from caldpo.components import build_model
        from caldpo.evaluation.model_loading import find_weights, load_weights

        source, adapter = build_model(self._sections())
        return load_weights(find_weights(self._target, "final"), source, adapter, self._target)

    @cached_property
    def reference(self) -> PreTrainedModel:
        """The reference, likewise: the weights that training started from, unless ``reference.path`` named others.

        Raises:
            CaldpoError: it is an adapter in the policy (``adapter.init_mode=reference``), and no model of its own.
        """
        from caldpo.components import build_model
        from caldpo.evaluation.model_loading import REFERENCE_KEY, load_reference

        source, adapter = build_model(self._sections())
        if adapter.keeps_reference:
            raise CaldpoError(
                "the reference of this run is an adapter in its policy, and no model of its own",
                key=str(self.folder),
                remedy="compare them by caldpo.evaluate(run), which switches adapters",
            )
        dtype = str(self._target.of_run("reference.dtype", "same"))
        return load_reference(self._target.of_run(REFERENCE_KEY, None), dtype, source)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with the chat template that the run used."""
        from caldpo.components import build_model
        from caldpo.exporting.export_run import tokenizer_of

        return tokenizer_of(self._target, build_model(self._sections())[0])

    @cached_property
    def _target(self) -> Target:
        from omegaconf import OmegaConf

        from caldpo.evaluation.evaluation_target import read_target

        trusted = self.allow_untrusted_code
        keys = {"run": str(self.folder), "output": None, "allow_untrusted_code": trusted}
        return read_target(OmegaConf.create(keys), self.folder)

    def _sections(self) -> Any:
        from omegaconf import OmegaConf

        return OmegaConf.create({name: self._target.config[name] for name in ("model", "adapter")})
