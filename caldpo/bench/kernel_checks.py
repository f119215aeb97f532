"""How far log-probs, gradients and attention in 16 bits are from float64 on a device, and what attention costs."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from caldpo.bench.benchmark_data import synthetic_pairs
from caldpo.bench.measure import now
from caldpo.data.collate import Layout, collate
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.logprobs import LogprobEngine
from caldpo.logprobs.packed_attention import attend_by_response, use_packed_attention
from caldpo.logprobs.varlen_attention import (
    Attention,
    Spans,
    attend_in_two_calls,
    flash_attention,
    why_not_flash,
    written_out_attention,
)

Record = dict[str, Any]

BETA = 0.1  # of the loss whose gradients are compared
NARROW = torch.bfloat16
WORSE = 2.0  # most times the error of transformers' own computation in the same dtype
CLOSE = 0.02  # relative; errors below it are rounding, whatever transformers' own are
SIZES = {
    "cuda": {"pairs": 16, "max_length": 512, "hidden": 512, "layers": 4, "heads": 8, "vocabulary": 32_000},
    "cpu": {"pairs": 3, "max_length": 48, "hidden": 64, "layers": 2, "heads": 4, "vocabulary": 128},
}
ROWS = {  # of attention: those of mistral_7b on a GPU
    "cuda": {"pairs": 16, "max_length": 1024, "heads": 32, "key_heads": 8, "size": 128},
    "cpu": {"pairs": 3, "max_length": 48, "heads": 4, "key_heads": 2, "size": 16},
}
REPEATS = 20  # timed calls of attention


def compare_logprobs(device: str) -> Record:
    """Compare log-probs and gradients in bfloat16 with float64, of padded, packed and streamed ways and transformers'.

    All have the same weights, rounded to bfloat16. Errors are relative: the largest of a log-prob, and of gradients the
    norm of the difference over that of all gradients.
    """
    size = SIZES[device]
    pairs = _pairs(size["pairs"], size["vocabulary"], size["max_length"])
    model = _mistral(size, device)
    wide = copy.deepcopy(model).double()
    wide.set_attn_implementation("eager")
    exact = _by_transformers(wide, pairs, device)
    ways = {"transformers": _errors(_by_transformers(model, pairs, device), exact)}
    packed = copy.deepcopy(model)
    use_packed_attention(packed)
    policies: dict[Layout, Any] = {"padded": model, "packed": packed}
    for layout, policy in policies.items():
        for streamed in (False, True):
            name = f"{layout}, streamed head" if streamed else layout
            ways[name] = _errors(_by_engine(policy, pairs, layout, device, streamed=streamed), exact)
    own = ways["transformers"]
    reached = {
        name: all(error <= max(WORSE * own[what], CLOSE) for what, error in errors.items())
        for name, errors in ways.items()
    }
    return {"sizes": size, "relative errors": ways, "reached": all(reached.values())}


def compare_attention(device: str) -> Record:
    """Compare the two-call attention of a packed row with a call for each response: values, gradients, seconds.

    Without a GPU the two calls are written out in plain PyTorch, and nothing is timed.
    """
    size = ROWS[device]
    lengths = _pairs(size["pairs"], 128, size["max_length"]).lengths().tolist()
    spans: Spans = tuple((p, c, r) for p, c, r in lengths)
    tokens = sum(map(sum, spans))
    generator = torch.Generator().manual_seed(0)
    heads = (size["heads"], size["key_heads"], size["key_heads"], size["heads"])
    inputs = [torch.randn(1, n, tokens, size["size"], generator=generator).to(device, NARROW) for n in heads]
    query, key, value, _ = inputs
    obstacle = why_not_flash(query, key, value, softcap=None, dropout=0.0)
    kernel: Attention = flash_attention if obstacle is None else written_out_attention
    scale = size["size"] ** -0.5

    def two_calls(attention: Attention) -> Callable[..., Tensor]:
        return lambda q, k, v: attend_in_two_calls(q, k, v, spans, scale, attention)

    ways: dict[str, Callable[..., Tensor]] = {
        "a call for each response": lambda q, k, v: attend_by_response(q, k, v, spans, scale),
        "two calls": two_calls(kernel),
    }
    exact = _attended(two_calls(written_out_attention), [x.float() for x in inputs])
    errors, seconds = {}, {}
    for name, attend in ways.items():
        results = zip(_attended(attend, inputs), exact, strict=True)
        errors[name] = max(float((one.float() - other).norm() / other.norm()) for one, other in results)
        if device == "cuda":
            seconds[name] = _seconds(lambda attend=attend: _attended(attend, inputs), device)  # type: ignore[misc]
    one, two = errors.values()
    return {
        "sizes": size | {"tokens": tokens},
        "kernel": "variable-length flash attention" if obstacle is None else f"written out: {obstacle}",
        "relative errors": errors,
        "seconds, forward and backward": seconds or "no GPU: not measured",
        "times faster": seconds["a call for each response"] / seconds["two calls"] if seconds else None,
        "reached": two <= max(WORSE * one, CLOSE),
    }


def _pairs(count: int, vocabulary: int, max_length: int) -> TokenizedPairs:
    keys = {"vocab_size": vocabulary, "max_length": max_length, "max_prompt_length": max_length // 2}
    return synthetic_pairs(count, **keys, seed=0)


def _mistral(size: dict[str, int], device: str) -> Any:
    config = MistralConfig(
        vocab_size=size["vocabulary"],
        hidden_size=size["hidden"],
        intermediate_size=2 * size["hidden"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["heads"] // 2,
        max_position_embeddings=size["max_length"],
        sliding_window=None,
        initializer_range=size["hidden"] ** -0.5,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MistralForCausalLM(config)
    return torch.nn.Module.to(model.eval(), device, NARROW)


Result = tuple[Tensor, list[Tensor]]  # log-probs of chosen, then rejected responses, and gradients of all parameters


def _loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    return -F.logsigmoid(BETA * (chosen - rejected)).sum()


def _by_transformers(model: Any, pairs: TokenizedPairs, device: str) -> Result:
    """Compute with the model's own logits, a sequence at a time; their softmax in float32 at least."""
    sides: list[list[Tensor]] = [[], []]
    for pair in pairs:
        for side, response in zip(sides, (pair.chosen_ids, pair.rejected_ids), strict=True):
            ids = torch.tensor([[*pair.prompt_ids, *response]], device=device)
            logits = model(input_ids=ids).logits[0, len(pair.prompt_ids) - 1 : -1]
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
            side.append(wide.gather(1, ids[0, len(pair.prompt_ids) :, None]).sum())
    chosen, rejected = map(torch.stack, sides)
    return _with_gradients(torch.cat([chosen, rejected]), _loss(chosen, rejected), model)


def _by_engine(model: Any, pairs: TokenizedPairs, layout: Layout, device: str, *, streamed: bool) -> Result:
    engine, batch = LogprobEngine(model), collate(list(pairs), 0, layout=layout).to(device)
    if streamed:
        loss, chosen, rejected = engine.loss(batch, lambda c, r, _: _loss(c, r))
    else:
        chosen, rejected = engine(batch)
        loss = _loss(chosen, rejected)
    return _with_gradients(torch.cat([chosen, rejected]), loss, model)


def _with_gradients(logprobs: Tensor, loss: Tensor, model: Any) -> Result:
    return logprobs.detach(), list(torch.autograd.grad(loss, list(model.parameters())))


def _errors(actual: Result, exact: Result) -> dict[str, float]:
    logprob = ((actual[0].double() - exact[0]).abs() / exact[0].abs()).max()
    squares = [((x.double() - y).square().sum(), y.square().sum()) for x, y in zip(actual[1], exact[1], strict=True)]
    off, whole = (torch.stack(column).sum().sqrt() for column in zip(*squares, strict=True))
    return {"log-probs": float(logprob), "gradients": float(off / whole)}


def _attended(attend: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    *row, weights = inputs
    row = [x.detach().requires_grad_() for x in row]
    output = attend(*row)
    return [output.detach(), *torch.autograd.grad((output.transpose(1, 2) * weights).sum(), row)]


def _seconds(call: Callable[[], object], device: str) -> float:
    """Median seconds of a call, after two that are not timed."""
    seconds = []
    for repeat in range(2 + REPEATS):
        started = now(device)
        call()
        if repeat >= 2:
            seconds.append(now(device) - started)
    return statistics.median(seconds)
