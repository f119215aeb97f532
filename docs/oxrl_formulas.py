"""Compare losses with oxRL's on the same log-probs: ``python docs/oxrl_formulas.py FOLDER``.

FOLDER is where ``python -m pip install --no-deps --target FOLDER oxrl==1.7.2`` put it. 16 random pairs in float64;
prints the mean loss of both, equal or not.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

import torch

from caldpo.types import PairLogps

# our option, its keys, oxRL's file, its keys
SAME: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("dpo", {"beta": 0.1}, "dpo", {"beta": 0.1}),
    ("dpo", {"beta": 0.1, "label_smoothing": 0.1}, "cdpo", {"beta": 0.1, "label_smoothing": 0.1}),
    ("cal_dpo", {"beta": 0.1}, "caldpo", {"beta": 0.1}),
    ("sppo", {"beta": 0.1}, "sppo", {"beta": 0.1}),
    ("ipo", {"beta": 0.1, "length_normalize": False}, "ipo", {"beta": 0.1}),
    ("rso", {"beta": 0.1}, "hinge", {"beta": 0.1}),
    ("simpo", {"beta": 2.0, "gamma": 0.5}, "simpo", {"beta": 2.0, "gamma": 0.5}),
    ("exo", {"beta": 0.1}, "exo", {"beta": 0.1}),
    ("nca", {"beta": 0.1}, "nca", {"beta": 0.1}),
    ("dpop", {"beta": 0.1, "penalty_weight": 5.0}, "dpop", {"beta": 0.1, "dpop_lambda": 5.0}),
    ("dpo_shift", {"beta": 0.1, "shift": 0.75}, "dposhift", {"beta": 0.1, "shift_lambda": 0.75}),
    ("bpo", {"beta": 0.1, "k": 0.3}, "bpo", {"beta": 0.1, "balance_factor": 0.3}),
    ("c2_dpo", {"beta": 0.1}, "c2dpo", {"beta": 0.1}),
    ("h_dpo", {"beta": 0.1, "alpha": 0.9}, "hdpo", {"beta": 0.1, "hdpo_alpha": 0.9}),
    ("minor_dpo", {"beta": 0.1}, "minor_dpo", {"beta": 0.1}),
    ("discopop", {"beta": 0.05, "tau": 0.05}, "discopop", {"beta": 0.05, "discopop_tau": 0.05}),
    ("chi_po", {"beta": 0.1, "clip": None}, "chipo", {"beta": 0.1}),
    ("gpo", {"beta": 0.1, "function": "exponential"}, "gpo", {"beta": 0.1, "gpo_loss_type": "exponential"}),
    ("gpo", {"beta": 0.1, "function": "savage"}, "gpo", {"beta": 0.1, "gpo_loss_type": "savage"}),
    ("aot", {"beta": 0.1, "variant": "unpaired"}, "aot", {"beta": 0.1}),
    ("alpha_po", {"beta": 2.0, "gamma": 0.5, "alpha": 0.25}, "alphapo", {"beta": 2.0, "gamma": 0.5, "alpha": 0.25}),
    ("apo_zero", {"beta": 0.1}, "apo", {"beta": 0.1, "apo_mode": "zero"}),
    ("apo_down", {"beta": 0.1}, "apo", {"beta": 0.1, "apo_mode": "down"}),
    ("robust", {"beta": 0.1, "label_noise": 0.1}, "robust_dpo", {"beta": 0.1, "label_smoothing": 0.1}),
    ("r_dpo", {"beta": 0.1, "length_weight": 0.01}, "rdpo", {"beta": 0.1, "alpha": 0.01}),
    ("f_dpo", {"beta": 0.1, "divergence": "forward_kl"}, "fdpo", {"beta": 0.1, "fdpo_divergence": "forward_kl"}),
    ("f_dpo", {"beta": 0.1, "divergence": "js"}, "fdpo", {"beta": 0.1, "fdpo_divergence": "js_divergence"}),
]
MEANS = ("simpo", "alphapo")  # called with mean log-probs per token, as their training steps do


def pairs(count: int = 16) -> PairLogps:
    """Random log-probs of the order of short responses', nats."""
    torch.manual_seed(0)
    reference = -10 - 20 * torch.rand(2, count, dtype=torch.float64)
    policy = torch.minimum(reference + 3 * torch.randn(2, count, dtype=torch.float64), torch.tensor(-0.1))
    tokens = torch.randint(5, 30, (2, count)).to(torch.float64)
    return PairLogps(*policy, *reference, *tokens)


def ours(option: str, keys: dict[str, Any], logps: PairLogps) -> float:
    """Our mean loss; of a whole-step loss, these pairs are the step."""
    module = importlib.import_module(f"caldpo.losses.{option}")
    loss = next(c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__)
    return float(loss(**keys)(logps).loss.mean())


def theirs(file: Path, keys: dict[str, Any], logps: PairLogps) -> float:
    """Their mean loss, by the arguments that its method names."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loss = next(c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == file.stem)
    signature = inspect.signature(loss).parameters.values()
    made = loss(**{p.name: None for p in signature if p.default is p.empty}, **keys)
    values = {
        "pi_logps_w": logps.policy_chosen, "pi_logps_l": logps.policy_rejected,
        "ref_logps_w": logps.reference_chosen, "ref_logps_l": logps.reference_rejected,
        "len_w": logps.chosen_tokens, "len_l": logps.rejected_tokens,
    }  # fmt: skip
    if file.stem in MEANS:
        values["pi_logps_w"] = logps.policy_chosen / logps.chosen_tokens
        values["pi_logps_l"] = logps.policy_rejected / logps.rejected_tokens
    found = made.compute_loss(**{name: values[name] for name in inspect.signature(made.compute_loss).parameters})
    return float(found[0] if isinstance(found, tuple) else found)


def main(folder: Path) -> None:
    """Print the table."""
    logps = pairs()
    for option, keys, file, their_keys in SAME:
        mine, other = ours(option, keys, logps), theirs(folder / f"oxrl/algs/{file}.py", their_keys, logps)
        said = "equal" if abs(mine - other) < 1e-6 * max(1, abs(mine)) else f"differs by {other - mine:+.4f}"
        print(f"{option:10} {keys}  {mine:.4f}  {other:.4f}  {said}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
