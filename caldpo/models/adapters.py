"""Adapters by PEFT (the extra ``peft``): a few trainable weights on a frozen base.

LoRA, Hu et al. 2021: ``W x + (alpha / rank) B A x``, where B starts at 0, so that the policy starts as its base.
DoRA, Liu et al. 2024, trains magnitudes and directions of the matrices' rows apart.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from caldpo.config.bounds import NonNegativeInt, PositiveInt, Rate
from caldpo.config.extras import require_package
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.models.adapted_policy import set_dora_magnitudes
from caldpo.models.adapter_folder import (
    MergedAdapter,
    load_adapter,
    named_with_digest,
    require_adapter_folder,
)
from caldpo.models.model_source import ModelSource


class AdapterSource:
    """Puts an adapter on a policy: what ``adapter=`` chooses."""

    @property
    def keeps_reference(self) -> bool:
        """Whether the policy holds the reference's own adapter, so that the reference cannot be had without it."""
        return False

    def identity(self, policy: str) -> str:
        """Describe in one line what is trained; ``policy`` is the base's identity."""
        return policy

    def started_from(self, policy: str) -> str:
        """Describe the weights that policy and reference start from; ``policy`` is the base's identity."""
        return policy

    def check(self) -> None:
        """Refuse before weights load an adapter whose packages or files are missing."""

    def base(self, source: ModelSource) -> ModelSource:
        """Wrap the source of the weights into that of the model under the adapter; nothing is loaded yet."""
        return source

    def apply(self, policy: PreTrainedModel) -> PreTrainedModel:
        """Put the adapter on a policy from :meth:`base`."""
        raise NotImplementedError

    def restore(self, policy: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """Put an adapter saved in ``folder`` on a policy from :meth:`base`."""
        return load_adapter(policy, folder)


class NoAdapter(AdapterSource):
    """``adapter=none``: every weight of the policy is trained."""

    @validated
    def __init__(self) -> None:
        pass

    def apply(self, policy: PreTrainedModel) -> PreTrainedModel:
        """Return the policy; refuse one of a quantised checkpoint, most of whose weights would take no gradient."""
        if getattr(policy, "is_quantized", False):
            raise CaldpoError(
                "its weights are quantised (quantization_config in config.json), and such weights take no gradient",
                key="model.path",
                value=policy.config.name_or_path,
                remedy="train an adapter on it (adapter=lora), or name the checkpoint that it was quantised from",
            )
        return policy


@validated
@dataclass
class Lora(AdapterSource):
    """``adapter=lora``: low-rank updates of linear layers; the base is frozen.

    Args:
        rank: of the update of each layer.
        alpha: the update is scaled by alpha / rank.
        dropout: on the input of the update while training; noise in the policy's log-probs.
        target_modules: ``all-linear`` (all but the output head), or the last parts of the layers' names.
        seed: of the initial weights; runs with other training seeds start from the same adapter.
        init_from: folder of an adapter that was trained on this base before; None: start at 0.
        init_mode: ``merged``: the earlier adapter is added to the base's weights, and a new one begins at 0 on them.
            ``reference``: the policy continues training a copy of it, and it stays, frozen, as the reference's
            adapter; rank and alpha then have to be its own, and its layers are taken.
    """

    kind, option, decomposed = "LoRA", "lora", False

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: Rate = 0.0
    target_modules: str | list[str] = "all-linear"
    seed: NonNegativeInt = 0
    init_from: str | None = None
    init_mode: Literal["merged", "reference"] = "merged"

    def identity(self, policy: str) -> str:
        where = self.target_modules if isinstance(self.target_modules, str) else ", ".join(self.target_modules)
        if self.keeps_reference:
            trained = named_with_digest(str(self.init_from))
            return f"{self.kind} (rank {self.rank}, alpha {self.alpha}) continuing {trained} on {policy}"
        return f"{self.kind} (rank {self.rank}, alpha {self.alpha}, {where}, seed {self.seed}) on {policy}"

    def started_from(self, policy: str) -> str:
        return f"{named_with_digest(str(self.init_from))}, frozen, on {policy}" if self.keeps_reference else policy

    @property
    def keeps_reference(self) -> bool:
        return self.init_from is not None and self.init_mode == "reference"

    def check(self) -> None:
        require_package("peft", "adapter", self.option)
        if self.init_from is not None:
            require_adapter_folder(self.init_from)

    def base(self, source: ModelSource) -> ModelSource:
        return source if self.init_from is None or self.keeps_reference else MergedAdapter(source, self.init_from)

    def apply(self, policy: PreTrainedModel) -> PreTrainedModel:
        """Wrap the policy in PEFT's model; the base's weights no longer take gradients."""
        self.check()
        from peft import LoraConfig, get_peft_model

        _enable_input_gradients(policy)
        if self.keeps_reference:
            return self._with_reference(policy, Path(str(self.init_from)))

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            task_type="CAUSAL_LM",
            use_dora=self.decomposed,
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            for message in (
                "fan_in_fan_out",  # GPT-2 keeps its matrices transposed, which PEFT handles
                "`is_gradient_checkpointing`",  # PEFT asks by a name of transformers 4
                "The following .* keys did not match",  # no modules, but parameters
                "target_parameters=.* were set but",  # the coverage printed at the start names what is left out
            ):
                warnings.filterwarnings("ignore", message)
            torch.manual_seed(self.seed)
            try:
                adapted: Any = get_peft_model(policy, config)
            except ValueError as error:
                if "ParamWrapper" in str(error):
                    raise self._experts_error(policy) from error
                remedy = "name linear layers of the model, such as [q_proj, v_proj], or take all-linear"
                if self.target_modules == "all-linear":
                    remedy = "train this model with adapter=none: it has no linear layer but its output head"
                raise CaldpoError(
                    f"cannot be put on {type(policy).__name__}: {str(error).splitlines()[0].rstrip('.')}",
                    key="adapter.target_modules",
                    value=self.target_modules,
                    remedy=remedy,
                ) from error
        set_dora_magnitudes(adapted)
        if self.init_from is not None:  # merged into the base, which no longer is the model of this name
            adapted.peft_config["default"].base_model_name_or_path = None
        return adapted.train(policy.training)  # the new modules, too

    def _experts_error(self, policy: PreTrainedModel) -> CaldpoError:
        alternative = "or leave the experts out by adapter.target_modules=[q_proj,k_proj,v_proj,o_proj]"
        key, value, first = "adapter.dropout", str(self.dropout), "set adapter.dropout=0"
        if self.decomposed:
            key, value, first = "adapter", self.option, "set adapter=lora"
        return CaldpoError(
            f"the experts of {type(policy).__name__} are single tensors, for which PEFT has LoRA without dropout only",
            key=key,
            value=value,
            remedy=f"{first}, {alternative}",
        )

    def restore(self, policy: PreTrainedModel, folder: Path) -> PreTrainedModel:
        return self._with_reference(policy, folder) if self.keeps_reference else super().restore(policy, folder)

    def _with_reference(self, policy: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """Load a trainable copy of the adapter in ``folder``, and the earlier one, frozen, beside it."""
        kind = "dora" if self.decomposed else "lora"
        expected = {"adapter.rank": self.rank, "adapter.alpha": self.alpha, "adapter": kind}
        return load_adapter(
            policy, folder, trained=True, dropout=self.dropout, expected=expected, reference=Path(str(self.init_from))
        ).train(policy.training)


class Dora(Lora):
    """``adapter=dora``: ``m * V / |V|`` with ``V = W + (alpha / rank) B A``, whose magnitudes ``m`` are trained, too.

    They start as ``|W|``. The arguments are :class:`Lora`'s.
    """

    kind, option, decomposed = "DoRA", "dora", True


def _enable_input_gradients(policy: PreTrainedModel) -> None:
    if any(getattr(module, "gradient_checkpointing", False) for module in policy.modules()):
        # where checkpointing is reentrant, a segment whose inputs take no gradient gives its weights none
        policy.enable_input_require_grads()
