"""Attention over edges against float64, held to the one error budget, and graphs to try it on."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnkernels import Edges, additive_attention_sparse, prepare_edges
from attnkernels.ops import edge_formula
from attnkernels.ops.codes import ACTIVATIONS
from attnkernels.ops.signature import EdgeOptions
from attnkernels.testing import Function, Tensors
from attnkernels.testing import _check as check
from attnkernels.testing import _finite as finite
from attnkernels.testing import _largest as largest
from attnkernels.testing import _outputs as outputs
from attnkernels.testing import _to_double as to_double


def graph(n: int, m: int, count: int, seed: int = 0) -> Edges:
    """Return a random graph with edges that occur twice, a hub, and nodes without edges."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(0, m, (count,), generator=generator)
    target = (torch.rand(count, generator=generator) ** 3 * n).long()
    return prepare_edges(torch.stack([source, target]), n, m)


def operands(
    edges: Edges,
    lead: tuple[int, ...],
    d: int,
    dv: int | None,
    dtype: torch.dtype = torch.float32,
    edge_key: bool = False,
    edge_bias: bool = False,
    scale: float = 1.0,
) -> dict[str, Any]:
    """Return the arguments of `check_sparse` that are tensors, all wanting gradients.

    dv None: the keys are the values.
    """

    def draw(*shape: int) -> Tensor:
        return (scale * torch.randn(*shape)).to(dtype).requires_grad_()

    found = {
        "query": draw(*lead, edges.n, d),
        "key": draw(*lead, edges.m, d),
        "value": None if dv is None else draw(*lead, edges.m, dv),
        "weight": draw(*lead[-1:], d),
        "edges": edges,
    }
    if edge_key:
        found["edge_key"] = draw(*lead, edges.num_edges, d)
    if edge_bias:
        found["edge_bias"] = draw(*lead, edges.num_edges)
    return found


def check_sparse(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    weight: Tensor,
    *,
    backend: str | Function,
    through: tuple[str, ...] = ("context", "weights", "lse"),
    **options: Any,
) -> dict[str, float]:
    """Assert that `additive_attention_sparse` is within the budget, as `check_attention` does.

    Without a value, the keys are the values.
    """
    inputs = {"query": query, "key": key, "weight": weight}
    if value is not None:
        inputs["value"] = value

    def in_order(function: Function) -> Function:
        def call(q: Tensor, k: Tensor, w: Tensor, u: Tensor | None = None, **given: Any) -> Any:
            return function(q, k, k if u is None else u, w, **given)

        return call

    function = in_order(additive_attention_sparse)
    tested = backend if isinstance(backend, str) else in_order(backend)
    names = outputs(**options)
    return check(function, tested, inputs, options, names, through, partial(_sizes, **options))


def _sizes(
    inputs: Tensors, directions: Tensors, *, edges: Edges, return_lse: bool = False, **given: Any
) -> dict[str, float]:
    """Return the magnitudes of the outputs and gradients, by name: `attnkernels.testing`."""
    query, key, weight = (inputs[name] for name in ("query", "key", "weight"))
    value, p = inputs.get("value"), given.pop("dropout_p", 0.0)
    own = {name: to_double(given.pop(name, None)) for name in ("edge_key", "edge_bias")}
    given |= {"return_weights": True}
    options = EdgeOptions(own["edge_key"], own["edge_bias"], **edges._asdict(), **given)
    _, weights, lse = edge_formula.attention(query, key, value, weight, options)
    assert weights is not None
    a, (source, target) = finite(weights.detach()), edges.edge_index()

    leaves = {
        "query": torch.zeros_like(finite(query)).requires_grad_(),
        "key": torch.zeros_like(finite(key)).requires_grad_(),
        "weight": finite(weight).abs().requires_grad_(),
        "value": finite(key if value is None else value).abs().requires_grad_(),
    }
    f, slope = finite(query)[..., target, :] + finite(key)[..., source, :], 1.0
    if own["edge_key"] is not None:
        f = f + finite(own["edge_key"])
        leaves["edge_key"] = torch.zeros_like(own["edge_key"]).requires_grad_()
    activation = ACTIVATIONS[options.activation]
    if activation.family == "logistic":
        f, slope = torch.ones_like(f), activation.span * activation.gain / 4
    small = leaves["query"][..., target, :] + leaves["key"][..., source, :]
    small = small + leaves["edge_key"] if "edge_key" in leaves else small
    s = abs(options.scale) * ((f.abs() + slope * small) * leaves["weight"].unsqueeze(-2)).sum(-1)
    if own["edge_bias"] is not None:
        leaves["edge_bias"] = finite(own["edge_bias"]).abs().requires_grad_()
        s = s + leaves["edge_bias"]
    s = s.expand_as(a)
    kept = 0.0 if p == 1 else 1 / (1 - p)
    moved = kept * a.unsqueeze(-1) * leaves["value"][..., source, :]
    context = moved.new_zeros(*a.shape[:-1], edges.n, moved.shape[-1]).index_add(-2, target, moved)

    incoming = {"context": context, "weights": a, "lse": lse}
    dc, da, dlse = (directions.get(n, torch.zeros_like(x)).abs() for n, x in incoming.items())
    g = kept * ((dc[..., target, :] * leaves["value"][..., source, :]).sum(-1) + da)
    total = torch.zeros_like(lse).index_add(-1, target, a * g)
    ds = a * (g + total[..., target] + dlse[..., target])
    found = torch.autograd.grad([s, context], list(leaves.values()), [ds, dc])
    gradients = dict(zip(leaves, found, strict=True))
    if value is None:
        gradients["key"] = gradients["key"] + gradients.pop("value")

    size = largest(torch.where(a > 0, s, 0.0))
    linear = {"context": largest(context), "weights": largest(kept * a)}
    linear |= {f"gradient of {name}": largest(x) for name, x in gradients.items()}
    return {"lse": max(size, largest(lse))} | {n: x * (1 + size) for n, x in linear.items()}
