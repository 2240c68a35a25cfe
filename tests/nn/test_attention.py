"""Compare AdditiveAttention, AttentionPooling and PointerHead with plain float64 twins."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F32, F64, normal
from torch import Tensor, nn

from attnkernels.nn import AdditiveAttention, AttentionPooling, PointerHead
from attnkernels.testing import assert_within_budget

B, N, M, QUERY, KEY, HIDDEN, VALUE = 3, 4, 37, 6, 10, 12, 8
LENGTHS = torch.tensor([M, 0, 11])
MODULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False, "scale": 0.5},
    "normalised": {"normalize": True},
    "heads": {"num_heads": 2, "normalize": True},
    "leaky": {"num_heads": 4, "activation": "leaky_relu", "negative_slope": 0.4},
}


def twin_scores(module: Any, query: Tensor, key: Tensor) -> Tensor:
    """Return scores (B, H, n, m) by the formula of the class, without its code."""
    heads = module.num_heads
    hidden = nn.functional.linear(query, module.query_proj.weight, module.query_proj.bias)[
        :, :, None
    ]
    hidden = hidden + (key @ module.key_proj.weight.T)[:, None]
    weight = module.weight.reshape(heads, -1)
    if module.normalize:
        hidden = hidden + module.bias
        weight = module.gain * weight / weight.square().sum(-1, keepdim=True).sqrt()
    f = getattr(module, "activation", "tanh")
    hidden = torch.tanh(hidden) if f == "tanh" else nn.functional.leaky_relu(hidden, 0.4)
    return module.scale * torch.einsum("bnmhd,hd->bhnm", hidden.unflatten(-1, (heads, -1)), weight)


def twin(
    module: Any, query: Tensor, key: Tensor, value: Tensor | None, lengths: Any, mask: Any
) -> tuple[Tensor, Tensor]:
    value = key if value is None else value
    scores = twin_scores(module, query, key)
    if mask is not None:
        scores = (
            scores + mask.double()
            if mask.is_floating_point()
            else torch.where(mask, scores, -torch.inf)
        )
    if lengths is not None:
        scores = scores.masked_fill(torch.arange(M) >= lengths[:, None, None, None], -1e300)
        scores = scores.softmax(-1) * (lengths > 0)[:, None, None, None]
    else:
        scores = scores.softmax(-1)
    split = value.unflatten(-1, (module.num_heads, -1))
    context = torch.einsum("bhnm,bmhd->bnhd", scores, split).flatten(-2)
    return context, scores.squeeze(1) if module.num_heads == 1 else scores


def leaves(module: nn.Module, *inputs: Tensor | None) -> list[Tensor]:
    return [*module.parameters(), *(x for x in inputs if x is not None)]


def gradients(outputs: Any, at: list[Tensor]) -> list[Tensor]:
    outputs = [x for x in outputs if x is not None]
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(x.shape, generator=generator, dtype=F64).to(x) for x in outputs]
    return list(torch.autograd.grad(outputs, at, directions, materialize_grads=True))


def double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().double().requires_grad_()


def compare(found: list[Tensor], reference: list[Tensor], exact: list[Tensor]) -> None:
    for at, (x, y, z) in enumerate(zip(found, reference, exact, strict=True)):
        size = 30 * max(1.0, z.abs().max().item())  # sums of up to B * m terms of projections
        assert_within_budget(x, y, z, magnitude=size, name=f"result {at}")


@pytest.mark.parametrize("options", MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("masks", ["none", "lengths", "float mask"])
def test_attention_against_a_twin(options: dict[str, Any], dtype: torch.dtype, masks: str) -> None:
    module = AdditiveAttention(QUERY, KEY, HIDDEN, **options, dtype=dtype)
    reference, exact = copy.deepcopy(module), copy.deepcopy(module).double()
    reference.backend = "reference"
    query, key = normal(B, N, QUERY, dtype=dtype), normal(B, M, KEY, dtype=dtype)
    value = normal(B, M, VALUE, dtype=dtype)
    lengths = LENGTHS if masks == "lengths" else None
    around = [1] * (1 if module.num_heads == 1 else 2)
    mask = normal(*around, N, M, dtype=dtype, grad=False) if masks == "float mask" else None
    call: dict[str, Any] = {"key_lengths": lengths, "attn_mask": mask, "return_weights": True}

    def run(module: Any) -> list[Tensor]:
        outputs = module(query, key, value, **call)
        return [*outputs, *gradients(outputs, leaves(module, query, key, value))]

    twins = [double(x) for x in (query, key, value)]
    outputs = twin(exact, *twins, lengths, mask)  # type: ignore[arg-type]
    compare(run(module), run(reference), [*outputs, *gradients(outputs, leaves(exact, *twins))])


@pytest.mark.parametrize("heads", [1, 2])
def test_one_query_and_prepared_steps_equal_a_plain_call(heads: int) -> None:
    """Values default to the keys as given; steps take one query or several beams."""
    module = AdditiveAttention(QUERY, KEY, HIDDEN, num_heads=heads, dtype=F64)
    query, key = normal(B, N, QUERY, dtype=F64), normal(B, M, KEY, dtype=F64)
    lengths = torch.tensor([M, 3, 11])
    wanted, weights = module(query, key, key_lengths=lengths, return_weights=True)
    prepared = module.prepare(key, lengths)
    assert (prepared.batch, prepared.value_dim) == (B, KEY)
    steps = [module.step(query[:, i], prepared, return_weights=True) for i in range(N)]
    torch.testing.assert_close(torch.stack([c for c, _ in steps], 1), wanted)
    torch.testing.assert_close(torch.stack([a for _, a in steps], -2), weights)
    torch.testing.assert_close(module.step(query, prepared), wanted)
    one = module(query[:, 0], key, key_lengths=lengths, attn_mask=weights[..., 0, :] >= 0)
    torch.testing.assert_close(one, wanted[:, 0])
    index = torch.tensor([2, 0, 0])
    torch.testing.assert_close(
        module.step(query[index], prepared.index_select(index)), wanted[index]
    )


@pytest.mark.parametrize("heads", [1, 2])
def test_a_window_is_a_mask_of_positions(heads: int) -> None:
    module = AdditiveAttention(QUERY, KEY, HIDDEN, num_heads=heads, dtype=F64)
    query, key = normal(B, N, QUERY, dtype=F64), normal(B, M, KEY, dtype=F64)
    ahead = torch.arange(M) - torch.arange(N).unsqueeze(-1)
    options: dict[str, Any] = {"key_lengths": LENGTHS, "return_weights": True}
    near = ((ahead >= -1) & (ahead <= 5))[(None,) * heads]
    wanted = module(query, key, attn_mask=near, **options)
    torch.testing.assert_close(module(query, key, window_size=(1, 5), **options), wanted)
    alone = module(query[:, 0], key, window_size=(1, 5), **options)  # at the first position
    torch.testing.assert_close(alone, (wanted[0][:, 0], wanted[1][..., 0, :]))


def test_dropout_is_for_training() -> None:
    module = AdditiveAttention(QUERY, KEY, HIDDEN, dropout=0.9)
    query, key = normal(B, N, QUERY), normal(B, M, KEY)
    dropped = [module(query, key, return_weights=True)[1]]
    dropped.append(module.step(query, module.prepare(key), return_weights=True)[1])
    assert all((a == 0).float().mean() > 0.7 for a in dropped)
    _, kept = module.eval()(query, key, return_weights=True)
    assert (kept > 0).all()


@pytest.mark.parametrize("heads", [1, 2])
def test_pooling_against_a_twin(heads: int) -> None:
    module = AttentionPooling(KEY, HIDDEN, num_heads=heads, dtype=F64)
    nn.init.normal_(module.query)
    key = normal(B, M, KEY, dtype=F64)
    hidden = torch.tanh(key @ module.key_proj.weight.T + module.query).unflatten(-1, (heads, -1))
    scores = (hidden * module.weight.view(heads, -1)).sum(-1)
    beyond = (torch.arange(M) >= LENGTHS[:, None]).unsqueeze(-1)
    weights = scores.masked_fill(beyond, -1e300).softmax(1) * (LENGTHS > 0)[:, None, None]
    wanted = (weights.unsqueeze(-1) * key.unflatten(-1, (heads, -1))).sum(1).flatten(1)
    found, a = module(key, key_lengths=LENGTHS, return_weights=True)
    weights = weights.mT if heads > 1 else weights.squeeze(-1)
    exact = [wanted, weights, *gradients([wanted, weights], leaves(module, key))]
    actual = [found, a, *gradients([found, a], leaves(module, key))]
    compare(actual, exact, exact)


@pytest.mark.parametrize("normalize", [False, True])
def test_pointer_against_a_twin(normalize: bool) -> None:
    """Masked positions have -inf, as does a whole row with nothing left; no gradient is NaN."""
    module = PointerHead(QUERY, KEY, HIDDEN, normalize=normalize, scale=2.0, dtype=F64)
    query, key = normal(B, N, QUERY, dtype=F64), normal(B, M, KEY, dtype=F64)
    taken = torch.rand(B, N, M) < 0.5
    allowed = ~taken & (torch.arange(M) < LENGTHS[:, None, None])
    allowed[0, 1] = taken[0, 1] = True
    taken[0, 1], allowed[0, 1] = True, False
    scores = twin_scores(module, query, key).squeeze(1)
    p = scores.exp() * allowed
    wanted = torch.where(allowed, scores - p.sum(-1, keepdim=True).clamp_min(1e-300).log(), 0.0)
    found = module(query, key, key_lengths=LENGTHS, attn_mask=~taken)
    assert torch.equal(found.isneginf(), ~allowed)
    actual = found.masked_fill(~allowed, 0.0)
    at = leaves(module, query, key)
    exact = [wanted, *gradients([wanted], at)]
    compare([actual, *gradients([actual], at)], exact, exact)
    added = torch.zeros(taken.shape, dtype=F64).masked_fill(taken, -torch.inf)
    assert torch.equal(module(query, key, key_lengths=LENGTHS, attn_mask=added), found)
    one = module(query[:, 2], key, key_lengths=LENGTHS, attn_mask=~taken[:, 2])
    torch.testing.assert_close(one, found[:, 2])


MADE = {
    "attention": lambda: AdditiveAttention(QUERY, KEY, HIDDEN, num_heads=2, normalize=True),
    "pointer": lambda: PointerHead(QUERY, KEY, HIDDEN, normalize=True),
    "pooling": lambda: AttentionPooling(KEY, HIDDEN, num_heads=2),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_copies_states_and_dtypes(make: Any) -> None:
    module = make()
    inputs = [normal(B, M, KEY, grad=False)]
    if not isinstance(module, AttentionPooling):
        inputs.insert(0, normal(B, N, QUERY, grad=False))
    wanted = module(*inputs)
    stored = io.BytesIO()
    torch.save(module.state_dict(), stored)
    stored.seek(0)
    fresh = make()
    assert not torch.equal(fresh(*inputs), wanted)
    fresh.load_state_dict(torch.load(stored))
    for other in (fresh, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(*inputs), wanted)
    narrow = module.to(BF16)(*[x.to(BF16) for x in inputs])
    assert narrow.dtype == BF16
    torch.testing.assert_close(narrow.float(), wanted, atol=0.05, rtol=0.05)
    with torch.autocast("cpu", BF16):
        assert make()(*inputs).isfinite().all()


def test_initial_values() -> None:
    module = AdditiveAttention(QUERY, KEY, HIDDEN, normalize=True)
    assert module.gain is not None and module.gain.item() == pytest.approx(HIDDEN**-0.5)
    assert module.score_weight().norm().item() == pytest.approx(HIDDEN**-0.5)
    assert set(module.state_dict()) == {
        "weight",
        "gain",
        "bias",
        "query_proj.weight",
        "query_proj.bias",
        "key_proj.weight",
    }
    assert module.query_proj.weight.abs().max() <= (6 / (QUERY + HIDDEN)) ** 0.5


def test_compiles() -> None:
    module = AdditiveAttention(QUERY, KEY, HIDDEN, num_heads=2, normalize=True)
    query, key = normal(B, N, QUERY), normal(B, M, KEY)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    at = leaves(module, query, key)
    found, wanted = (each(query, key, key_lengths=LENGTHS) for each in (compiled, module))
    torch.testing.assert_close(found, wanted)
    for x, y in zip(gradients([found], at), gradients([wanted], at), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"hidden_dim": 0}, "hidden_dim must be an int of at least 1, got 0"),
        ({"query_dim": 2.0}, "query_dim must be an int of at least 1, got 2.0"),
        ({"num_heads": 5}, "hidden_dim must be a multiple of num_heads, 5, got 12"),
        ({"dropout": 1.5}, r"dropout must lie in \[0, 1\], got 1.5"),
        ({"activation": "nonesuch"}, "activation"),
        ({"scale": float("inf")}, "scale"),
        ({"negative_slope": -1.0}, "negative_slope"),
    ],
)
def test_refuses_to_be_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdditiveAttention(**({"query_dim": QUERY, "key_dim": KEY, "hidden_dim": HIDDEN} | options))


QUERIES, KEYS = torch.zeros(B, N, QUERY), torch.zeros(B, M, KEY)


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        ((torch.zeros(B, N, 5), KEYS), {}, ValueError, r"query must .*query_dim\) = \(3, \*, 6\)"),
        (
            (torch.zeros(2, N, QUERY), KEYS),
            {},
            ValueError,
            r"query must .* = \(3, \*, 6\), got \(2, 4, 6\)",
        ),
        ((QUERIES, torch.zeros(B, M, 3)), {}, ValueError, r"key must .* = \(\*, \*, 10\)"),
        ((QUERIES, torch.zeros(M, KEY)), {}, ValueError, "key must have shape"),
        ((QUERIES, None), {}, TypeError, "key must be a tensor .*, got NoneType"),
        ((QUERIES, KEYS, torch.zeros(B, 5, 4)), {}, ValueError, "value must have shape"),
        (
            (QUERIES, KEYS, torch.zeros(B, M, 3)),
            {},
            ValueError,
            "last dimension of value must be a multiple of num_heads, 2",
        ),
        (
            (QUERIES, KEYS),
            {"key_lengths": torch.tensor([1, 2])},
            ValueError,
            "key_lengths must have shape",
        ),
        (
            (QUERIES, KEYS),
            {"key_lengths": [1, 2, 3]},
            TypeError,
            "key_lengths must be a tensor .*, got list",
        ),
        ((QUERIES, KEYS), {"attn_mask": torch.ones(9, 9)}, ValueError, "attn_mask must broadcast"),
    ],
)
def test_refuses_arguments(
    arguments: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    module = AdditiveAttention(QUERY, KEY, HIDDEN, num_heads=2)
    with pytest.raises(error, match=message):
        module(*arguments, **options)


def test_other_refusals() -> None:
    module = AdditiveAttention(QUERY, KEY, HIDDEN)
    with pytest.raises(TypeError, match="what prepare"):
        module.step(QUERIES, KEYS)  # type: ignore[arg-type]
    pointer = PointerHead(QUERY, KEY, HIDDEN)
    with pytest.raises(TypeError, match="attn_mask must be bool or .*, got torch.int64"):
        pointer(QUERIES, KEYS, attn_mask=torch.ones(1, N, M, dtype=torch.int64))
    with pytest.raises(ValueError, match="attn_mask must broadcast"):
        pointer(QUERIES, KEYS, attn_mask=torch.ones(9, 9))
    with pytest.raises(ValueError, match="key_dim must be a multiple of num_heads, 3, got 10"):
        AttentionPooling(KEY, HIDDEN, num_heads=3)


@pytest.mark.parametrize(
    "module",
    [AdditiveAttention(QUERY, KEY, HIDDEN), AttentionPooling(KEY, HIDDEN)],
    ids=lambda module: type(module).__name__,
)
def test_padding_may_be_nan(module: nn.Module) -> None:
    """Content beyond the length has no effect, not even on the gradients of projections."""
    key = normal(B, M, KEY, grad=False)
    key[1], key[2, 11:] = torch.nan, torch.nan
    query = [normal(B, N, QUERY, grad=False)] if isinstance(module, AdditiveAttention) else []
    context = module(*query, key, key_lengths=LENGTHS)
    gradients = torch.autograd.grad(context.sum(), list(module.parameters()))
    assert all(x.isfinite().all() for x in (context, *gradients))


def test_padding_of_a_pointer_may_be_nan() -> None:
    module, key = PointerHead(QUERY, KEY, HIDDEN), normal(B, M, KEY, grad=False)
    key[1], key[2, 11:] = torch.nan, torch.nan
    log_p = module(normal(B, N, QUERY, grad=False), key, key_lengths=LENGTHS)
    there = log_p > -torch.inf
    assert there.sum(-1).tolist() == [[M] * N, [0] * N, [11] * N]
    gradients = torch.autograd.grad(log_p[there].sum(), list(module.parameters()))
    assert all(x.isfinite().all() for x in gradients)
