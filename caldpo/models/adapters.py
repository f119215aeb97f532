"""Adapters of the policy by PEFT (the extra ``peft``): a few trainable weights on a frozen base.

LoRA, Hu et al. 2021: ``W x + (alpha / rank) B A x``, where B starts at 0, so that the policy starts as its base.
DoRA, Liu et al. 2024, trains lengths and directions of the matrices' rows apart.
"""

from __future__ import annotations

import copy
import importlib.util
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from caldpo.config.bounds import NonNegativeInt, PositiveInt, Rate
from caldpo.config.hydra_errors import install
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.models.adapter_folder import REFERENCE, load_adapter
from caldpo.models.adapter_init import MergedStart, check_start, named
from caldpo.models.dora import measure_lengths
from caldpo.models.model_source import ModelSource


class AdapterSource(Protocol):
    """What ``adapter=`` chooses."""

    @property
    def keeps_reference(self) -> bool:
        """Whether the policy holds the reference's own adapter, so that without the policy there is no reference."""
        ...

    def identity(self, policy: str) -> str:
        """One line that says what is trained; ``policy`` is the base's own."""
        ...

    def started_from(self, policy: str) -> str:
        """The weights that policy and reference begin as, where ``policy`` names the base's."""
        ...

    def check(self) -> None:
        """Look whether it can be had, before anything dear is loaded.

        Raises:
            CaldpoError: it cannot.
        """
        ...

    def base(self, source: ModelSource) -> ModelSource:
        """Where the model under the adapter comes from, given where its weights do; nothing is loaded yet."""
        ...

    def apply(self, policy: PreTrainedModel) -> PreTrainedModel:
        """The policy with the adapter in place; ``policy`` is of :meth:`base`."""
        ...

    def restore(self, policy: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """The policy with an adapter that was saved in ``folder``; ``policy`` is of :meth:`base`."""
        ...


class NoAdapter:
    """``adapter=none``: every weight of the policy is trained."""

    keeps_reference = False

    @validated
    def __init__(self) -> None:
        pass

    def identity(self, policy: str) -> str:
        return policy

    def started_from(self, policy: str) -> str:
        return policy

    def check(self) -> None:
        """Nothing to look for."""

    def base(self, source: ModelSource) -> ModelSource:
        return source

    def apply(self, policy: PreTrainedModel) -> PreTrainedModel:
        """The policy itself.

        Raises:
            CaldpoError: its checkpoint is quantised, so that most of its weights would take no gradient.
        """
        if getattr(policy, "is_quantized", False):
            raise CaldpoError(
                "its weights are quantised (quantization_config in config.json), and such weights take no gradient",
                key="model.path",
                value=policy.config.name_or_path,
                remedy="train an adapter on it (adapter=lora), or name the checkpoint that it was made of",
            )
        return policy

    def restore(self, policy: PreTrainedModel, folder: Path) -> PreTrainedModel:
        return load_adapter(policy, folder)


class Lora:
    """``adapter=lora``: low-rank updates of linear layers; the base is frozen.

    Args:
        rank: of the update of each layer.
        alpha: the update is scaled by alpha / rank.
        dropout: on the input of the update while training; noise in the policy's log-probs.
        target_modules: ``all-linear`` (all but the output head), or the last parts of the layers' names.
        seed: of the initial weights; runs with other training seeds start from the same adapter.
        init_from: folder of an adapter that was trained on this base before; None: there is none.
        init_mode: ``merged``: the earlier adapter is added to the base's weights, and a new one begins at 0 on them.
            ``reference``: the policy goes on with a copy of it, and it stays, frozen, as the reference's adapter; rank
            and alpha then have to be its own, and its layers are taken.
    """

    kind, option, decomposed = "LoRA", "lora", False

    @validated
    def __init__(
        self,
        rank: PositiveInt = 16,
        alpha: PositiveInt = 32,
        dropout: Rate = 0.0,
        target_modules: str | list[str] = "all-linear",
        seed: NonNegativeInt = 0,
        init_from: str | None = None,
        init_mode: Literal["merged", "reference"] = "merged",
    ) -> None:
        self.rank, self.alpha, self.dropout, self.seed = rank, alpha, dropout, seed
        self.target_modules, self.init_from, self.init_mode = target_modules, init_from, init_mode

    def identity(self, policy: str) -> str:
        where = self.target_modules if isinstance(self.target_modules, str) else ", ".join(self.target_modules)
        if self.keeps_reference:
            trained = named(str(self.init_from))
            return f"{self.kind} (rank {self.rank}, alpha {self.alpha}) going on from {trained} on {policy}"
        return f"{self.kind} (rank {self.rank}, alpha {self.alpha}, {where}, seed {self.seed}) on {policy}"

    def started_from(self, policy: str) -> str:
        return f"{named(str(self.init_from))}, frozen, on {policy}" if self.keeps_reference else policy

    @property
    def keeps_reference(self) -> bool:
        """Whether an earlier adapter stays beside the one that is trained, as the reference's."""
        return self.init_from is not None and self.init_mode == "reference"

    def check(self) -> None:
        """Look whether PEFT is installed, and the earlier adapter there.

        Raises:
            CaldpoError: it is not.
        """
        if importlib.util.find_spec("peft") is None:
            remedy = install("adapter", self.option)
            raise CaldpoError("not installed", key="adapter", value=self.option, remedy=remedy)
        if self.init_from is not None:
            check_start(self.init_from)

    def base(self, source: ModelSource) -> ModelSource:
        """The source itself, or with the earlier adapter merged into its weights."""
        return source if self.init_from is None or self.keeps_reference else MergedStart(source, self.init_from)

    def apply(self, policy: PreTrainedModel) -> PreTrainedModel:
        """The policy as PEFT's model around its base, whose weights no longer take gradients.

        Raises:
            CaldpoError: PEFT is not installed, the policy has no such layers, or the earlier adapter is another.
        """
        self.check()
        from peft import LoraConfig, get_peft_model

        _let_inputs_take_gradients(policy)
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
            warnings.filterwarnings("ignore", "fan_in_fan_out")  # GPT-2 keeps its matrices transposed; PEFT sees to it
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`")  # PEFT asks by a name of transformers 4
            warnings.filterwarnings("ignore", "The following .* keys did not match")  # modules, but parameters
            warnings.filterwarnings("ignore", "target_parameters=.* were set but")  # the start says what is left out
            torch.manual_seed(self.seed)
            try:
                adapted: Any = get_peft_model(policy, config)
            except ValueError as error:
                if "ParamWrapper" in str(error):
                    raise self._not_on_experts(policy) from error
                everything = self.target_modules == "all-linear"
                raise CaldpoError(
                    f"cannot be put on {type(policy).__name__}: {str(error).splitlines()[0].rstrip('.')}",
                    key="adapter.target_modules",
                    value=self.target_modules,
                    remedy="train this model with adapter=none: it has no linear layer but its output head"
                    if everything
                    else "name linear layers of the model, such as [q_proj, v_proj], or take all-linear",
                ) from error
        measure_lengths(adapted)
        if self.init_from is not None:  # the base has that adapter in it: no model of this name is what it belongs on
            adapted.peft_config["default"].base_model_name_or_path = None
        return adapted.train(policy.training)  # the new modules, too

    def _not_on_experts(self, policy: PreTrainedModel) -> CaldpoError:
        others = "or leave the experts out by adapter.target_modules=[q_proj,k_proj,v_proj,o_proj]"
        key, value, first = "adapter.dropout", str(self.dropout), "set adapter.dropout=0"
        if self.decomposed:
            key, value, first = "adapter", self.option, "set adapter=lora"
        return CaldpoError(
            f"the experts of {type(policy).__name__} are single tensors, on which PEFT has LoRA without dropout alone",
            key=key,
            value=value,
            remedy=f"{first}, {others}",
        )

    def restore(self, policy: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """The policy under the adapter in ``folder``, with its reference's where that has one.

        Raises:
            CaldpoError: the folder holds no adapter that is trained here, or one of another base.
        """
        return self._with_reference(policy, folder) if self.keeps_reference else load_adapter(policy, folder)

    def _with_reference(self, policy: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """A trained copy of the adapter in ``folder``, and the earlier one frozen beside it."""
        expected = {"r": self.rank, "lora_alpha": self.alpha, "use_dora": self.decomposed}
        return load_adapter(
            policy, folder, trained=True, dropout=self.dropout, expected=expected, reference=Path(str(self.init_from))
        ).train(policy.training)


class Dora(Lora):
    """``adapter=dora``: the updated matrix is normalised by row, and the rows' lengths are weights of their own.

    DoRA, Liu et al. 2024: ``m * V / |V|`` with ``V = W + (alpha / rank) B A``, where ``m`` starts as ``|W|``. The
    arguments are :class:`Lora`'s.
    """

    kind, option, decomposed = "DoRA", "dora", True


def _let_inputs_take_gradients(policy: PreTrainedModel) -> None:
    if any(getattr(module, "gradient_checkpointing", False) for module in policy.modules()):
        # where checkpointing is reentrant, a segment whose inputs take no gradient gives its weights none
        policy.enable_input_require_grads()


def is_adapted(policy: PreTrainedModel) -> bool:
    """Whether an adapter lies on the policy that can be switched off."""
    return hasattr(policy, "disable_adapter")


@contextmanager
def adapter_off(policy: Any) -> Iterator[PreTrainedModel]:
    """The policy without its adapter (under the reference's, where there is one); it comes back at the end."""
    if not _has_reference(policy):
        with policy.disable_adapter():
            yield policy
        return
    active = policy.active_adapter
    policy.set_adapter(REFERENCE, inference_mode=True)
    try:
        yield policy
    finally:
        policy.set_adapter(active)


def _has_reference(policy: Any) -> bool:
    return REFERENCE in policy.peft_config


def reference_adapter(policy: Any) -> dict[str, Any] | None:
    """Settings of the frozen adapter under which a policy is its reference, without names; None where there is none."""
    if not is_adapted(policy) or not _has_reference(policy):
        return None
    # which modules it is on is in the names of its weights, and PEFT keeps them as a set
    passing = {"base_model_name_or_path", "revision", "peft_version", "inference_mode", "target_modules"}
    return {k: v for k, v in policy.peft_config[REFERENCE].to_dict().items() if k not in passing}


def base_model(policy: Any) -> PreTrainedModel:
    """The model under the adapter, or the policy itself."""
    return policy.get_base_model() if is_adapted(policy) else policy


def base_copy(policy: Any) -> PreTrainedModel:
    """A copy of the policy without its adapter, or under the reference's, where there is one."""
    copied = copy.deepcopy(policy)
    if not is_adapted(policy):
        return copied
    if not _has_reference(policy):
        return copied.unload()
    copied.set_adapter(REFERENCE, inference_mode=True)
    for name in set(copied.peft_config) - {REFERENCE}:
        copied.delete_adapter(name)
    return copied


def without_wrappers(name: str) -> str:
    """The name that a weight under an adapter has without it; experts in single tensors lie under several wrappers."""
    return re.sub(r"(\.base_layer)+(?=\.)", "", name)


def base_weights(policy: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the weights without the adapter, the same as if it had never been put there.

    Those of the reference's adapter are among them, where there is one.
    """
    adapted = is_adapted(policy)
    for name, value in base_model(policy).state_dict().items():
        if not adapted:
            yield name, value
        elif ".lora_" not in name or f".{REFERENCE}." in name or name.endswith(f".{REFERENCE}"):
            yield without_wrappers(name), value
