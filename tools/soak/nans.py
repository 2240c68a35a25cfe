"""Calls with a NaN among their inputs: it reaches the results in which it takes part, no others.

A NaN must be in every output that the formula computes from the NaN over the keys that take part.
It may be in what else the naive formula reaches: zero times NaN at a masked pair, and gradients of
the same entry, where max(x, 0) passes a NaN on or not. All other results are those without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Call = Callable[..., Any]
Given = dict[str, Any]


def shielded(
    tested: Call,
    naive: Call,
    reference: Call,
    inputs: Given,
    options: Given,
) -> Call:
    """Return a call for the inputs without NaN, computed by `tested` from the inputs with it.

    Its results are those of `tested`, but for the entries that a NaN may reach: these are what
    `tested` gives without NaN. `inputs` and `options` have the NaN. `naive` is the formula over the
    keys that take part.
    """

    def call(*clean: Tensor, **clean_options: Any) -> Any:
        everything = {**dict(zip(inputs, clean, strict=True)), **clean_options}
        names = [name for name, x in everything.items() if isinstance(x, Tensor)]
        fixed = {name: x for name, x in everything.items() if name not in names}

        state = torch.get_rng_state()

        def run(function: Call, values: Any, **other: Any) -> tuple[Tensor, ...]:
            torch.set_rng_state(state)  # the same dropout each time
            by_name = {**fixed, **dict(zip(names, values, strict=True)), **other}
            in_order = [by_name.pop(name) for name in inputs]
            outputs = function(*in_order, **by_name)
            return outputs if isinstance(outputs, tuple) else (outputs,)

        poisoned = [{**inputs, **options}[name] for name in names]
        # gradients of pairs that are masked or dropped may be zero times NaN
        passing = {"activation": "tanh"}  # which passes every NaN on
        all_pairs = {"is_causal": False, "window_size": (-1, -1), "dropout_p": 0.0}
        passing |= {name: x for name, x in all_pairs.items() if name in fixed}
        clean = [everything[name] for name in names]
        calls = tested, naive, reference
        outputs = _Shielded.apply(run, calls, passing, poisoned, *clean)
        return outputs if len(outputs) > 1 else outputs[0]

    return call


class _Shielded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        run: Call,
        calls: Any,
        passing: Given,
        poisoned: Any,
        *clean: Tensor,
    ) -> Any:
        tested, naive, reference = calls
        wants = [x.requires_grad for x in clean]
        every = [_unmasked(x) for x in poisoned]
        ctx.clean, ctx.poisoned, ctx.dense = (
            [x.detach().requires_grad_(want) for x, want in zip(values, wants, strict=True)]
            for values in (clean, poisoned, every)
        )
        with torch.enable_grad():
            ctx.of_clean = run(tested, ctx.clean)
            ctx.of_poisoned = run(tested, ctx.poisoned)
            ctx.of_dense = run(reference, ctx.dense, **passing)
        with torch.no_grad():
            masks = ("is_causal", "window_size")
            may = run(reference, poisoned, **{k: x for k, x in passing.items() if k not in masks})
            must = run(naive, poisoned)
        ctx.set_materialize_grads(False)
        return tuple(
            _shield("output", a, b, may, must)
            for a, b, may, must in zip(ctx.of_poisoned, ctx.of_clean, may, must, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> Any:
        def gradients(outputs: Any, inputs: Any) -> Any:
            used = [k for k, g in enumerate(incoming) if g is not None and outputs[k].requires_grad]
            leaves = [x for x in inputs if x.requires_grad]
            if not used:
                return iter([torch.zeros_like(x) for x in leaves])
            into = [incoming[k] for k in used]
            roots = [outputs[k] for k in used]
            return iter(torch.autograd.grad(roots, leaves, into, materialize_grads=True))

        poisoned, clean, dense = (
            gradients(outputs, inputs)
            for outputs, inputs in (
                (ctx.of_poisoned, ctx.poisoned),
                (ctx.of_clean, ctx.clean),
                (ctx.of_dense, ctx.dense),
            )
        )
        found: list[Tensor | None] = []
        for x in ctx.clean:
            if not x.requires_grad:
                found.append(None)
                continue
            may = next(dense)
            found.append(_shield("gradient", next(poisoned), next(clean), may))
        return *(None,) * 4, *found


def _unmasked(x: Tensor) -> Tensor:
    """Return a mask with every pair taking part, and another tensor as it is."""
    if x.dtype == torch.bool:
        return torch.ones_like(x)
    return torch.where(x == float("-inf"), 0.0, x) if x.is_floating_point() else x


def _shield(name: str, a: Tensor, b: Tensor, may: Tensor, must: Tensor | None = None) -> Tensor:
    """Return `a` where `may` is finite, otherwise `b`; check that NaN is where it must be alone."""
    a, b, may = a.detach(), b.detach(), may.detach()
    if must is not None and not a[must.isnan()].isnan().all():
        raise AssertionError(f"the {name} lacks NaN where a NaN takes part")
    if a[~may.isnan()].isnan().any():
        at = torch.nonzero(a.isnan() & ~may.isnan())[0].tolist()
        raise AssertionError(f"a NaN reaches the {name} at {at}, where it does not take part")
    return torch.where(may.isnan(), b, a)
