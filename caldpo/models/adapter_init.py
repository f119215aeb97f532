"""Starting from an adapter that was trained before (usually by SFT), merged into its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caldpo.errors import CaldpoError
from caldpo.models.adapter_folder import CONFIG, WEIGHTS, load_adapter
from caldpo.models.model_source import ModelSource
from caldpo.utils.atomic_io import file_digest


class MergedStart:
    """A model source whose weights have an earlier adapter added to them: the start of policy and reference alike.

    Args:
        source: of the base that the earlier adapter was trained on.
        folder: of that adapter.
    """

    def __init__(self, source: ModelSource, folder: str) -> None:
        self.source, self.folder = source, folder

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.source.load_tokenizer()

    def load_policy(self) -> PreTrainedModel:
        """The base with the adapter's updates added to its weights, in its own dtype.

        Raises:
            CaldpoError: the folder holds no adapter that is trained here, or one of another base.
        """
        adapted: Any = load_adapter(self.source.load_policy(), Path(self.folder))
        merged: PreTrainedModel = adapted.merge_and_unload()
        return merged.requires_grad_(True)  # PEFT has frozen the base

    def skeleton(self) -> PreTrainedModel:
        return self.source.skeleton()  # merging changes values, no shapes

    def identity(self) -> str:
        return f"{self.source.identity()} with {named(self.folder)} merged into it"


def named(folder: str) -> str:
    """The adapter's folder with the first digits of its weights' SHA-256: the folder may be written to again."""
    file = Path(folder) / WEIGHTS
    return f"{folder} ({file_digest(file)[:12]})" if file.is_file() else folder


def check_start(folder: str) -> None:
    """Look whether an earlier adapter is there, before anything dear is loaded.

    Raises:
        CaldpoError: it is not.
    """
    if not (Path(folder) / CONFIG).is_file():
        raise CaldpoError(
            f"holds no adapter: there is no {CONFIG}",
            key="adapter.init_from",
            value=folder,
            remedy="name the policy/ of a run with adapter=lora or dora, and its base by model.path",
        )
