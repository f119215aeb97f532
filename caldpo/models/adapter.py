"""Adapters of the policy by PEFT (the extra ``peft``): a few trainable weights on a frozen base.

LoRA, Hu et al. 2021: ``W x + (alpha / rank) B A x``, where B starts at 0, so that the policy starts as its base.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from caldpo.config.bounds import NonNegativeInt, PositiveInt, Rate
from caldpo.config.explain import install
from caldpo.config.signature import validated
from caldpo.errors import CaldpoError


class AdapterSource(Protocol):
    """What ``adapter=`` chooses."""

    def identity(self, policy: str) -> str:
        """One line that says what is trained; ``policy`` is the base's own."""
        ...

    def check(self) -> None:
        """Look whether it can be had, before anything dear is loaded.

        Raises:
            CaldpoError: it cannot.
        """
        ...

    def apply(self, policy: PreTrainedModel) -> PreTrainedModel:
        """The policy with the adapter in place."""
        ...


class NoAdapter:
    """``adapter=none``: every weight of the policy is trained."""

    @validated
    def __init__(self) -> None:
        pass

    def identity(self, policy: str) -> str:
        return policy

    def check(self) -> None:
        """Nothing to look for."""

    def apply(self, policy: PreTrainedModel) -> PreTrainedModel:
        return policy


class Lora:
    """``adapter=lora``: low-rank updates of linear layers; the base is frozen.

    Args:
        rank: of the update of each layer.
        alpha: the update is scaled by alpha / rank.
        dropout: on the input of the update while training; noise in the policy's log-probs.
        target_modules: ``all-linear`` (all but the output head), or the last parts of the layers' names.
        seed: of the initial weights; runs with other training seeds start from the same adapter.
    """

    @validated
    def __init__(
        self,
        rank: PositiveInt = 16,
        alpha: PositiveInt = 32,
        dropout: Rate = 0.0,
        target_modules: str | list[str] = "all-linear",
        seed: NonNegativeInt = 0,
    ) -> None:
        self.rank, self.alpha, self.dropout, self.seed = rank, alpha, dropout, seed
        self.target_modules = target_modules

    def identity(self, policy: str) -> str:
        where = self.target_modules if isinstance(self.target_modules, str) else ", ".join(self.target_modules)
        return f"LoRA (rank {self.rank}, alpha {self.alpha}, {where}, seed {self.seed}) on {policy}"

    def check(self) -> None:
        """Look whether PEFT is installed.

        Raises:
            CaldpoError: it is not.
        """
        if importlib.util.find_spec("peft") is None:
            raise CaldpoError("not installed", key="adapter", value="lora", remedy=install("adapter", "lora"))

    def apply(self, policy: PreTrainedModel) -> PreTrainedModel:
        """The policy as PEFT's model around its base, whose weights no longer take gradients.

        Raises:
            CaldpoError: PEFT is not installed, or the policy has no such layers.
        """
        self.check()
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            task_type="CAUSAL_LM",
        )
        if any(getattr(module, "gradient_checkpointing", False) for module in policy.modules()):
            # where checkpointing is reentrant, a segment whose inputs take no gradient gives its weights none
            policy.enable_input_require_grads()
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out")  # GPT-2 keeps its matrices transposed; PEFT sees to it
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`")  # PEFT asks by a name of transformers 4
            torch.manual_seed(self.seed)
            try:
                adapted: Any = get_peft_model(policy, config)
            except ValueError as error:
                everything = self.target_modules == "all-linear"
                raise CaldpoError(
                    f"cannot be put on {type(policy).__name__}: {str(error).splitlines()[0].rstrip('.')}",
                    key="adapter.target_modules",
                    value=self.target_modules,
                    remedy="train this model with adapter=none: it has no linear layer but its output head"
                    if everything
                    else "name linear layers of the model, such as [q_proj, v_proj], or take all-linear",
                ) from error
        return adapted.train(policy.training)  # the new modules, too


def is_adapted(policy: PreTrainedModel) -> bool:
    """Whether an adapter lies on the policy that can be switched off."""
    return hasattr(policy, "disable_adapter")


@contextmanager
def adapter_off(policy: Any) -> Iterator[PreTrainedModel]:
    """The policy without its adapter, which comes back at the end of the context."""
    with policy.disable_adapter():
        yield policy


def base_model(policy: Any) -> PreTrainedModel:
    """The model under the adapter, or the policy itself."""
    return policy.get_base_model() if is_adapted(policy) else policy


def base_copy(policy: Any) -> PreTrainedModel:
    """A copy of the policy without its adapter."""
    return copy.deepcopy(policy).unload() if is_adapted(policy) else copy.deepcopy(policy)


def base_weights(policy: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the weights without the adapter, the same as if it had never been put there."""
    adapted = is_adapted(policy)
    for name, value in base_model(policy).state_dict().items():
        if not adapted:
            yield name, value
        elif ".lora_" not in name:
            yield name.replace(".base_layer.", "."), value
