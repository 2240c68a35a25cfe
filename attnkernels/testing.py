"""The float64 oracle, and the one error budget that every backend is held to.

    error against float64 <= 2 * (error of the reference in the same dtype + one rounding band)

Errors are the largest over a tensor. The band is one rounding of the result in its own dtype and
one of each of its terms in the dtype of the arithmetic (float32, or float64 for float64):

    band = eps(dtype) * max |exact| + eps(arithmetic) * magnitude

In float64 the reference is the oracle itself: its error is unknown and counts as one band. What the
oracle sums counts eight times there, which is what its long sums are off by in float32.

The magnitude is that of the terms, in float64: the roots of sums of squares, because cancellation
between terms is not the backend's fault, but the roundings of many terms differ in sign, and add up
to the root of their number. Write S for that of a score,

    S^2 = scale^2 sum_t (w_t f)^2 + mask^2

where |f| and |f'| count as twice their largest values for logistic activations, as r is rounded
several times on the way to (E9) and occurs twice in (E8), and as |q + k| and 1 for pointwise ones.

    scores     S
    lse        max(S, |lse|)
    weights    a
    context    sqrt sum_j (a u)^2
    gradients  (E5), (E6) in squares, with ds_ij^2 = a_ij^2 (g_ij^2 + sum_j a_ij g_ij^2 + dlse_i^2),
               g_ij^2 = sum (dc_i u_j)^2 + da_ij^2

exp turns an absolute error of the scores into a relative error of a, which everything linear in a
inherits: the magnitudes of weights, context and gradients are multiplied by 1 + max S. They include
dropout's factor 1 / (1 - p), but not its zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .functional.attention import additive_attention, additive_attention_varlen, additive_scores
from .functional.checks import NO_WINDOW, window
from .ops import formula
from .ops.codes import ACTIVATIONS
from .ops.shapes import accumulate_dtype
from .ops.signature import Options

Tensors = dict[str, Tensor]
Function = Callable[..., Any]  # additive_attention, or a function with its signature
Given = dict[str, Any]  # keyword arguments
_SEED = 20  # of dropout and of the incoming gradients


def assert_within_budget(
    actual: Tensor,
    reference: Tensor,
    exact: Tensor,
    *,
    magnitude: float | None = None,
    name: str = "result",
) -> float:
    """Assert that `actual` is within the budget of this module.

    Args:
        actual: the result under test, of any floating dtype.
        reference: the reference's result in the same dtype.
        exact: the float64 result, of the same shape.
        magnitude: that of the terms summed; by default the largest entry of `exact`.
        name: the name of the result, for the message.

    Returns:
        The largest error over what is allowed, in [0, 1].

    Raises:
        AssertionError: the shape or dtype differs, NaN or infinities are not where `exact` has
            them, or the error exceeds the budget. The message says where and by how much.
    """
    found, wanted = (tuple(actual.shape), actual.dtype), (tuple(exact.shape), reference.dtype)
    assert found == wanted, f"{name} has shape and dtype {found}, not {wanted}"
    actual, reference, exact = (x.detach().cpu() for x in (actual, reference, exact))
    rounded = exact.to(actual.dtype)
    finite = rounded.isfinite()
    _assert_same_places(actual, rounded, exact, name)

    info = torch.finfo(actual.dtype)
    largest = _largest(exact)
    terms = largest if magnitude is None else magnitude
    band = info.eps * (largest + info.tiny)  # with tiny: a rounding below the normal numbers
    band += torch.finfo(accumulate_dtype(actual.dtype)).eps * terms
    inexact = _largest(reference.double() - exact)
    if actual.dtype == torch.float64:  # `exact` has an unknown error as well
        inexact = max(inexact, band)
    allowed = 2 * (inexact + band)
    error = torch.where(finite, (actual.double() - exact).abs(), 0.0)
    if not error.numel():
        return 0.0
    if not error.max() <= allowed:
        at = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
        raise AssertionError(
            f"{name} has an error of {error[at]:.3g} at {at}: {actual[at]} where float64 gives "
            f"{exact[at]}. Allowed is {allowed:.3g}, twice the reference's {inexact:.3g} and the "
            f"band {band:.3g} (largest entry {largest:.3g}, magnitude {terms:.3g})"
        )
    return error.max().item() / allowed


def _assert_same_places(actual: Tensor, rounded: Tensor, exact: Tensor, name: str) -> None:
    """Assert that NaN and infinities are in the same places."""
    same = torch.where(rounded.isfinite(), actual.isfinite(), actual == rounded) | (
        actual.isnan() & rounded.isnan()
    )
    if not same.all():
        at = tuple(torch.nonzero(~same)[0].tolist())
        raise AssertionError(f"{name} is {actual[at]} at {at}, where float64 gives {exact[at]}")


def check_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    backend: str | Function,
    through: tuple[str, ...] = ("context", "weights", "lse"),
    **options: Any,
) -> dict[str, float]:
    """Assert that `additive_attention` is within the budget: all outputs and all gradients.

    Gradients are checked for the inputs that require them (attn_mask included). A random gradient
    enters through each output of `through` that the call returns. Strides are kept.

    Args:
        query, key, value, weight, options: as for `additive_attention`.
        backend: its name, or a function to be tested, with the signature of `additive_attention`.
        through: some of "context", "weights", "lse".

    Returns:
        The error of each output and gradient over what is allowed, by name.

    Raises:
        AssertionError: as `assert_within_budget`.
    """
    inputs = {"query": query, "key": key, "value": value, "weight": weight}
    names = _outputs(**options)
    magnitudes = partial(_attention_magnitudes, **options)
    return _check(additive_attention, backend, inputs, options, names, through, magnitudes)


def check_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    backend: str | Function,
    through: tuple[str, ...] = ("context", "lse"),
    **options: Any,
) -> dict[str, float]:
    """Assert that `additive_attention_varlen` is within the budget; see `check_attention`."""
    inputs = {"query": query, "key": key, "value": value, "weight": weight}
    inputs |= {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    names = _outputs(**options)

    def magnitudes(inputs: Tensors, directions: Tensors) -> dict[str, float]:
        """Return the magnitudes of one attention over all rows, masked to pairs of one sequence."""
        inputs, dense = dict(inputs), dict(options)
        (s, i), (r, j) = (
            _positions(inputs.pop(name), inputs[of].shape[-2])
            for name, of in (("cu_seqlens_q", "query"), ("cu_seqlens_k", "key"))
        )
        pairs = s.unsqueeze(-1) == r
        (left, right), ahead = _window(dense), j - i.unsqueeze(-1)
        if left is not None:
            pairs &= -ahead <= left
        if right is not None:
            pairs &= ahead <= right
        return _attention_magnitudes(inputs, directions, attn_mask=pairs, **dense)

    return _check(additive_attention_varlen, backend, inputs, options, names, through, magnitudes)


def check_scores(
    query: Tensor,
    key: Tensor,
    weight: Tensor,
    *,
    backend: str | Function,
    **options: Any,
) -> dict[str, float]:
    """Assert that `additive_scores` is within the budget; see `check_attention`."""
    inputs = {"query": query, "key": key, "weight": weight}

    def magnitudes(inputs: Tensors, directions: Tensors) -> dict[str, float]:
        query, key, weight = inputs.values()
        s, leaves = _score_magnitudes(query, key, weight, Options(**options))
        gradients = torch.autograd.grad(s, list(leaves.values()), directions["scores"].square())
        squares = {"scores": _largest(s)} | _largest_gradients(leaves, gradients)
        return {name: x**0.5 for name, x in squares.items()}

    return _check(additive_scores, backend, inputs, options, ("scores",), ("scores",), magnitudes)


def oracle(
    function: Function,
    inputs: Tensors,
    options: Given,
    names: tuple[str, ...],
    directions: Tensors,
) -> Tensors:
    """Return outputs and gradients of the reference in float64, for copies of the inputs.

    Args:
        function: additive_attention, additive_attention_varlen or additive_scores.
        inputs: its positional arguments, in order.
        options: its keyword arguments. Floating tensors in both are converted to float64.
        names: the names of its outputs.
        directions: the incoming gradient of each output, by name; outputs left out have none.

    Returns:
        The outputs by name, and "gradient of query" and so on for the inputs that require one.
    """
    inputs, options = ({n: _to_double(x) for n, x in each.items()} for each in (inputs, options))
    outputs = _call(partial(function, backend="reference"), inputs, options, names)
    return outputs | _gradients(outputs, inputs | options, directions)


def _check(
    function: Function,
    backend: str | Function,
    inputs: Tensors,
    options: Given,
    names: tuple[str, ...],
    through: tuple[str, ...],
    magnitudes: Callable[[Tensors, Tensors], dict[str, float]],
) -> dict[str, float]:
    tested = partial(function, backend=backend) if isinstance(backend, str) else backend
    reference = _call(partial(function, backend="reference"), inputs, options, names)
    generator = torch.Generator().manual_seed(_SEED)
    directions = {
        name: torch.randn(x.shape, generator=generator).to(x)
        for name, x in reference.items()
        if name in through
    }
    actual = _call(tested, inputs, options, names)
    exact = oracle(function, inputs, options, names, directions)
    actual |= _gradients(actual, inputs | options, directions)
    reference |= _gradients(reference, inputs | options, directions)
    doubles = {name: _to_double(x.detach()) for name, x in inputs.items()}
    magnitude = magnitudes(doubles, {name: x.double() for name, x in directions.items()})
    long = 8 if reference[names[0]].dtype == torch.float64 else 1
    assert actual.keys() == exact.keys(), f"got {list(actual)}, not {list(exact)}"
    return {
        name: assert_within_budget(
            actual[name], reference[name], x, magnitude=long * magnitude[name], name=name
        )
        for name, x in exact.items()
    }


def _call(function: Function, inputs: Tensors, options: Given, names: tuple[str, ...]) -> Tensors:
    if options.get("dropout_p"):
        with torch.random.fork_rng():
            torch.manual_seed(_SEED)  # all compared calls draw the same dropout
            outputs = function(*inputs.values(), **options)
    else:  # seeding takes longer than a small call
        outputs = function(*inputs.values(), **options)
    return dict(zip(names, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))


def _gradients(outputs: Tensors, arguments: Given, directions: Tensors) -> Tensors:
    leaves = {n: x for n, x in arguments.items() if isinstance(x, Tensor) and x.requires_grad}
    through = [name for name in directions if outputs[name].requires_grad]
    if not directions:
        return {}
    if not through:  # of the reference, say, whose weights do not depend on values
        return {_gradient(name): torch.zeros_like(x) for name, x in leaves.items()}
    gradients = torch.autograd.grad(
        [outputs[name] for name in through],
        list(leaves.values()),
        [directions[name].to(outputs[name]) for name in through],
        materialize_grads=True,
    )
    return {_gradient(name): x for name, x in zip(leaves, gradients, strict=True)}


def _score_magnitudes(
    query: Tensor, key: Tensor, weight: Tensor, options: Options
) -> tuple[Tensor, Tensors]:
    """Return S squared (*L, n, m) and leaves, whose gradients are (E5), (E6) of squares.

    query and key enter through leaves of zeros, with what |f'| counts as for their derivative.
    """
    q, k, w = (_finite(x) for x in (query, key, weight))
    leaves = {
        "query": torch.zeros_like(q).requires_grad_(),
        "key": torch.zeros_like(k).requires_grad_(),
        "weight": w.square().requires_grad_(),
    }
    f, slope = q.unsqueeze(-2) + k.unsqueeze(-3), 1.0
    activation = ACTIVATIONS[options.activation]
    if activation.family == "logistic":  # f' = span gain r (1 - r), (E8), at most a quarter of that
        f, slope = torch.full_like(f, 2.0), activation.span * activation.gain / 2
    f = f.square() + slope**2 * (leaves["query"].unsqueeze(-2) + leaves["key"].unsqueeze(-3))
    s = options.scale**2 * torch.einsum("...ijt,...t->...ij", f, leaves["weight"])
    mask = options.attn_mask
    if mask is not None and mask.is_floating_point():
        leaves["attn_mask"] = _finite(mask).square().requires_grad_()
        s = s + leaves["attn_mask"]
    return s, leaves


def _attention_magnitudes(
    inputs: Tensors, directions: Tensors, *, return_lse: bool = False, **given: Any
) -> dict[str, float]:
    """Return the magnitudes of the outputs and gradients of `additive_attention`, by name.

    Everything up to the last lines is squared.
    """
    query, key, value, weight = inputs.values()
    left, right = _window(given)
    options = Options(window_left=left, window_right=right, **given)
    p = options.dropout_p
    options = options._replace(
        attn_mask=_to_double(options.attn_mask), dropout_p=0.0, return_weights=True
    )
    _, weights, lse = formula.attention(query, key, value, weight, options)
    assert weights is not None
    a = _finite(weights.detach())
    s, leaves = _score_magnitudes(query, key, weight, options)
    s = s.expand_as(a)
    leaves["value"] = _finite(value).square().requires_grad_()
    kept = 0.0 if p == 1 else 1 / (1 - p)
    squares = (kept * a).square()
    context = squares @ leaves["value"]

    incoming = {"context": context, "weights": a, "lse": lse}
    dc, da, dlse = (directions.get(n, torch.zeros_like(x)).square() for n, x in incoming.items())
    g = kept**2 * (dc @ leaves["value"].mT + da)
    ds = a.square() * (g + (a * g).sum(-1, keepdim=True) + dlse.unsqueeze(-1))
    gradients = torch.autograd.grad([s, context], list(leaves.values()), [ds, dc])

    size = _largest(torch.where(a > 0, s, 0.0)) ** 0.5
    linear = {"context": _largest(context), "weights": _largest(squares)}
    linear |= _largest_gradients(leaves, gradients)
    roots = {n: (1 + size) * x**0.5 for n, x in linear.items()}
    return {"lse": max(size, _largest(lse))} | roots


def _window(options: Given) -> tuple[int | None, int | None]:
    """Take is_causal and window_size out of the options; return the sides they leave."""
    return window(options.pop("is_causal", False), options.pop("window_size", NO_WINDOW))


def _positions(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Return the sequence of each row, and its position in that sequence."""
    rows = torch.arange(total, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens[1:].long(), rows, right=True)
    return sequence, rows - cu_seqlens[sequence]


def _outputs(return_weights: bool = False, return_lse: bool = False, **_: Any) -> tuple[str, ...]:
    return ("context", *["weights"] * return_weights, *["lse"] * return_lse)


def _gradient(name: str) -> str:
    return f"gradient of {name}"


def _largest_gradients(leaves: Tensors, gradients: tuple[Tensor, ...]) -> dict[str, float]:
    return {_gradient(name): _largest(x) for name, x in zip(leaves, gradients, strict=True)}


def _largest(x: Tensor) -> float:
    return _finite(x.detach()).abs().max().item() if x.numel() else 0.0


def _finite(x: Tensor) -> Tensor:
    return x.nan_to_num(0.0, 0.0, 0.0)


def _to_double(x: Any) -> Any:
    if isinstance(x, Tensor) and x.is_floating_point():
        return x.detach().double().requires_grad_(x.requires_grad)
    return x
