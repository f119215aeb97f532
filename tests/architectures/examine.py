"""Compare one model type with its unchanged model, one sequence at a time: what holds, is refused, or is wrong."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caldpo.data.collate import collate
from caldpo.data.pair import TokenizedPair
from caldpo.errors import CaldpoError
from caldpo.logprobs import LogprobEngine
from caldpo.logprobs.layout import choose_layout
from caldpo.models.architecture import require_decoder
from caldpo.models.model_probes import require_valid_logprobs
from caldpo.models.model_source import prepare_for_training
from tests.architectures.families import ORIGINAL, POSITIONS, VOCABULARY, build, long_rope, small_config
from tests.helpers.tiny import sample_responses, tiny_tokenizer

CLOSE, CLOSE_GRADIENTS = 2e-5, 2e-4  # relative; hybrids with long sums of exponentials are the furthest off
_LENGTHS = ((5, 6, 3), (1, 1, 1), (8, 10, 13), (3, 1, 19))  # prompt, chosen, rejected; two rows beyond ORIGINAL
PROBES = ("layout", "log-probs", "gradients", "noise", "causal", "long rows", "generation", "checkpointing")
COLUMNS = (*PROBES, "train", "estimate")


def examine(kind: str) -> dict[str, Any]:
    """Verdicts by probe: a difference, ``-`` where it does not apply, or words; ``refused`` alone of a refused type."""
    config = small_config(kind, rate=0.3)
    try:
        require_decoder(config, key="model.path", path=kind)
        plain = build(kind, rate=0.3)
        policy = prepare_for_training(copy.deepcopy(plain), gradient_checkpointing=False, dropout=False)
        require_valid_logprobs(policy, training=True, max_length=POSITIONS)
    except CaldpoError as error:
        return {"refused": f"{error.key}: {error.message}"}
    pairs = some_pairs()
    weights = torch.linspace(-1, 1.3, 2 * len(pairs))
    expected = one_by_one(plain, pairs)
    expected_gradients = gradients((expected * weights).sum(), plain)
    expected = expected.detach()
    layout, why = choose_layout("auto", policy, POSITIONS)
    batch = collate(pairs, 0, layout=layout)

    def off(model: Any) -> tuple[float, float]:
        actual = torch.cat(LogprobEngine(model)(batch))
        return relative(actual, expected), apart(gradients((actual * weights).sum(), model), expected_gradients)

    row: dict[str, Any] = {"layout": layout if layout == "packed" else f"padded: {why}"}
    row["log-probs"], row["gradients"] = off(policy.eval())
    policy.train()
    row["noise"] = 0.0
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.no_grad():
            row["noise"] = max(row["noise"], relative(torch.cat(LogprobEngine(policy)(batch)), expected))
    row["causal"] = causality(plain)
    row["long rows"] = long_rows(kind)
    row["generation"] = generation(kind)
    if not plain.supports_gradient_checkpointing:
        row["checkpointing"] = "no support"
    else:
        checkpointed = prepare_for_training(copy.deepcopy(plain), gradient_checkpointing=True, dropout=False)
        choose_layout("auto", checkpointed, POSITIONS)
        row["checkpointing"] = max(off(checkpointed.train()))
    return row


def faults(row: dict[str, Any]) -> list[str]:
    """What is silently wrong of a row of :func:`examine`."""
    if "refused" in row:
        return []
    limits = dict.fromkeys(("log-probs", "noise", "causal", "long rows"), CLOSE)
    limits |= dict.fromkeys(("gradients", "checkpointing"), CLOSE_GRADIENTS)
    actual = [n for n, limit in limits.items() if isinstance(row[n], float) and not row[n] <= limit]
    return actual + [n for n in COLUMNS if isinstance(row.get(n), str) and row[n].startswith("WRONG")]


def some_pairs() -> list[TokenizedPair]:
    draw = random.Random(0)
    ids = [[[draw.randrange(3, VOCABULARY) for _ in range(n)] for n in lengths] for lengths in _LENGTHS]
    return [TokenizedPair(*three, None, None, i, "") for i, three in enumerate(ids)]


def one_by_one(model: Any, pairs: list[TokenizedPair], *, fresh: bool = False) -> Tensor:
    """Log-probs of chosen responses, then of rejected ones, nats, from whole float32 logits of each sequence alone.

    Args:
        model: in evaluation mode.
        pairs: see :func:`some_pairs`.
        fresh: each by a model that has seen nothing before.
    """
    actual = []
    for pair, response in [(p, p.chosen_ids) for p in pairs] + [(p, p.rejected_ids) for p in pairs]:
        ids = torch.tensor([pair.prompt_ids + response])
        asked = copy.deepcopy(model) if fresh else model
        logits = asked(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].float()
        rows = torch.log_softmax(logits[len(pair.prompt_ids) - 1 : -1], dim=-1)
        actual.append(rows[range(len(response)), response].sum())
    return torch.stack(actual)


def causality(model: Any) -> float:
    """How far logits lie apart that a sequence has with and without tokens behind it, relative to the largest."""
    ids = torch.tensor([some_pairs()[2].prompt_ids + some_pairs()[2].chosen_ids])
    with torch.no_grad():
        part, whole = (
            model(input_ids=x, attention_mask=torch.ones_like(x), use_cache=False).logits[0, :7]
            for x in (ids[:, :7], ids)
        )
    return float((part - whole).abs().max() / whole.abs().max())


def long_rows(kind: str) -> float | str:
    """The same as for log-probs where rows of the batch lie on both sides of LongRoPE's original length."""
    keys = long_rope(kind)
    if keys is None:
        return "-"
    try:
        model = build(kind, **keys)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        return f"- ({type(error).__name__})"
    pairs = some_pairs()
    with torch.no_grad():
        expected = one_by_one(model, pairs, fresh=True)
        prepare_for_training(model, gradient_checkpointing=False, dropout=False)
        require_valid_logprobs(model, training=False, max_length=POSITIONS)
        layout, _ = choose_layout("auto", model, POSITIONS)
        actual = torch.cat(LogprobEngine(model)(collate(pairs, 0, layout=layout)))
    assert max(p + max(c, r) for p, c, r in _LENGTHS) > ORIGINAL
    return relative(actual, expected)


def generation(kind: str) -> str:
    """Whether greedy responses to prompts of several lengths, asked for together, are those of each prompt alone."""
    model, draw = build(kind), random.Random(1)
    prompts = [[draw.randrange(3, VOCABULARY) for _ in range(n)] for n in (1, 4, 9, 4, 2)]

    def answers(asked: list[list[int]]) -> list[list[int]]:
        return sample_responses(model, tiny_tokenizer(), asked, max_new_tokens=5, temperature=0, seed=0)

    try:
        alone = [answers([prompt])[0] for prompt in prompts]
    except Exception as error:  # of transformers' own: nothing is generated, and nothing wrong
        return f"fails ({type(error).__name__})"
    same = sum(one == other for one, other in zip(answers(prompts), alone, strict=True))
    return "same" if same == len(prompts) else f"WRONG: {same} of {len(prompts)} the same"


def gradients(value: Tensor, model: Any) -> dict[str, Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(
        zip(
            named,
            torch.autograd.grad(value, list(named.values()), allow_unused=True, materialize_grads=True),
            strict=True,
        )
    )


def relative(actual: Tensor, expected: Tensor) -> float:
    return float(((actual - expected).abs() / expected.abs().clamp_min(1)).max())


def apart(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference relative to the parameter's largest entry; to that of all where its own is rounding."""
    top = max(float(g.abs().max()) for g in expected.values())
    sizes = {name: float(g.abs().max()) for name, g in expected.items()}
    return max(
        float((actual[name] - g).abs().max()) / (sizes[name] if sizes[name] > 1e-4 * top else top)
        for name, g in expected.items()
    )


def write_pairs() -> None:
    """Pairs of single words, in the current folder."""
    rows = [{"prompt": f"w{i} w2 w3", "chosen": f" w{i % 7} w9", "rejected": f" w{i % 5} w8"} for i in range(10, 26)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def commands(folder: Path) -> dict[str, str]:
    """How train and estimate end, as a user starts them on a saved folder; in the current folder lie pairs."""
    from caldpo.estimate import main as estimate
    from caldpo.train import main as train

    words = folder.with_name("words")  # beside a config.json, transformers would read them by the type's own class
    tiny_tokenizer().save_pretrained(words)
    run = [
        f"model.path={folder}",
        f"model.tokenizer={words}",
        "model=zephyr",
        "data=local",
        "data.train=pairs.jsonl",
        "data.max_length=24",
    ]
    run += [
        "trainer=cpu",
        "trainer.max_steps=2",
        "trainer.val_check_interval=null",
        "trainer.accumulate_grad_batches=1",
    ]
    run += ["data.max_prompt_length=12", "callbacks.samples.max_new_tokens=3", "logger=csv", "loss=dpo"]
    run += ["trainer.progress_bar=false", "data.micro_batch_size=4", "trainer.precision=32-true"]
    actual = {}
    for name, main in (("train", train), ("estimate", estimate)):
        try:
            main([*run, f"hydra.run.dir={folder}/{name}"])
            actual[name] = "ok"
        except SystemExit as ended:
            message = folder / name / "error.txt"
            why = message.read_text().strip().splitlines()[-1][:90] if message.is_file() else ""
            actual[name] = f"refused ({ended.code}) {why}"
        except BaseException as error:
            actual[name] = f"WRONG: {type(error).__name__}: {str(error)[:60]}"
    return actual
