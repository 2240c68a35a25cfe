"""Compare modules with plain PyTorch in float64: their results and every gradient."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attnkernels.testing import assert_within_budget

from .inputs import normal

Formula = Callable[..., tuple[Tensor, ...]]
SIZES = (6, 5, 9)  # of query, key, hidden
GRADIENT_TERMS = 50
COPIES = [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]


def memory_and_query(batch: int, n: int, m: int) -> dict[str, Tensor]:
    """Return random query, key and value of SIZES, by name."""
    return {
        "query": normal(batch, n, SIZES[0]),
        "key": normal(batch, m, SIZES[1]),
        "value": normal(batch, m, 7),
    }


def with_weights(module: nn.Module, *inputs: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """Call a module, and return the contexts and weights."""
    return module(*inputs, **options, return_weights=True)


def check_twin(
    module: nn.Module,
    formula: Formula,
    inputs: dict[str, Tensor],
    *,
    call: Formula | None = None,
    **options: Any,
) -> None:
    """Assert that a module is within the budget of its formula, as are its gradients.

    Args:
        module: in float32; its copy in float64 serves as the oracle.
        formula: (module, *inputs, **options) -> tensors, from the module's parameters and plain
            operations.
        inputs: floating leaves, by name.
        call: the same for the module; by default module(*inputs, **options).
    """
    call = call or (lambda module, *inputs, **options: module(*inputs, **options))
    doubles = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    twin = copy.deepcopy(module).double()
    found = results(call, module, inputs, options)
    plain = results(formula, module, inputs, options)
    exact = results(formula, twin, doubles, options)
    assert found.keys() == exact.keys()
    for name, x in exact.items():
        # Outputs are about 1; a gradient is a sum over steps and positions, with cancellation.
        size = 1.0
        if not name.startswith("output"):
            size = GRADIENT_TERMS * max(1.0, x.abs().max().item())
        assert_within_budget(found[name], plain[name], x, magnitude=size, name=name)


def results(
    call: Formula, module: nn.Module, inputs: dict[str, Tensor], options: dict[str, Any]
) -> dict[str, Tensor]:
    """Return the outputs, and the gradients of a fixed sum of them."""
    outputs = call(module, *inputs.values(), **options)
    generator = torch.Generator().manual_seed(3)
    total = sum(
        (torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) * x).sum()
        for x in outputs
    )
    leaves = inputs | dict(module.named_parameters())
    gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    found = {f"output {i}": x.detach() for i, x in enumerate(outputs)}
    return found | {f"gradient of {n}": g for n, g in zip(leaves, gradients, strict=True)}


def weight_of(module: nn.Module) -> Tensor:
    """Return the vector that scores, normalised if there is a gain."""
    v = module.weight
    return v if module.gain is None else module.gain * v / v.square().sum().sqrt()


def scores_of(module: nn.Module, query: Tensor, key: Tensor, added: Tensor | float = 0) -> Tensor:
    """Return w . tanh(W q + V k + added + b) of query (B, n, .) and key (B, m, .): (B, n, m)."""
    q, k = module.query_proj(query), key @ module.key_proj.weight.mT + added
    bias = 0 if module.bias is None else module.bias
    return torch.tanh(q.unsqueeze(2) + k.unsqueeze(1) + bias) @ weight_of(module)


def masked(
    scores: Tensor, key_lengths: Tensor | None = None, attn_mask: Tensor | None = None
) -> Tensor:
    """Return scores (B, n, m) plus a floating mask, and -inf beyond the lengths."""
    if attn_mask is not None:
        scores = scores + attn_mask.to(scores)
    within = present(key_lengths, len(scores), scores.shape[-1])
    return scores.masked_fill(~within.unsqueeze(1), float("-inf"))


def present(lengths: Tensor | None, batch: int, m: int) -> Tensor:
    """Return bool (B, m), True within the length."""
    return torch.tensor(
        [[lengths is None or j < lengths[b] for j in range(m)] for b in range(batch)]
    )
