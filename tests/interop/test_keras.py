"""Keras: its own layers swapped, against their results and their documented formulas.

Skipped if Keras is not installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.inputs import F64
from helpers.interop_peers import QUIET, installed
from helpers.interop_swap import tensors
from torch import Tensor

from attnkernels.interop import load_state_dict_from, replace_attention
from attnkernels.interop.core.live import Fused
from attnkernels.nn import AdditiveAttention
from attnkernels.testing import assert_within_budget
from benchmarks.suite import peers

pytestmark = QUIET


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    return installed(peers.keras)


SOURCES = {
    "additive": "Keras, AdditiveAttention",
    "concat": 'Keras, Attention(score_mode="concat")',
}
KINDS = pytest.mark.parametrize("kind", SOURCES)
QUERY_MASK = torch.tensor([[True, True, False, True], [True, False, True, True]])
VALUE_MASK = torch.tensor([[True, False, True, True, True], [True, True, True, False, False]])
PAIRS = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.6
PAIRS[..., 0] = True
CALLS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    # number of inputs, options of the layer, options of the call
    "two": (2, {}, {}),
    "three": (3, {}, {}),
    "nothing learned": (3, {"use_scale": False}, {"return_attention_scores": True}),
    "weights": (3, {}, {"return_attention_scores": True}),
    "a mask of the values": (3, {}, {"mask": [None, VALUE_MASK], "return_attention_scores": True}),
    "a mask of the queries": (2, {}, {"mask": [QUERY_MASK, None]}),
    "a mask of each query": (3, {}, {"mask": [QUERY_MASK, VALUE_MASK.unsqueeze(1)]}),
    "masks of pairs": (2, {}, {"mask": [None, PAIRS], "return_attention_scores": True}),
    "both masks": (3, {}, {"mask": [QUERY_MASK, VALUE_MASK], "return_attention_scores": True}),
    "three masks": (3, {}, {"mask": [QUERY_MASK, VALUE_MASK, None]}),
    "causal": (3, {}, {"use_causal_mask": True, "return_attention_scores": True}),
    "causal, masked": (2, {}, {"use_causal_mask": True, "mask": [QUERY_MASK, VALUE_MASK]}),
    "dropout, not in training": (2, {"dropout": 0.5}, {"return_attention_scores": True}),
}


def made(keras: Any, kind: str, **options: Any) -> Any:
    """Return a new layer; by default it learns all that it can."""
    if kind == "additive":
        return keras.layers.AdditiveAttention(**options)
    return keras.layers.Attention(score_mode="concat", **{"use_scale": True, **options})


def keras_formula(
    kind: str,
    inputs: list[Tensor],
    learned: list[Tensor],
    mask: Any = (None, None),
    use_causal_mask: bool = False,
    return_attention_scores: bool = False,
) -> tuple[Tensor, ...]:
    """Compute the documented formula of a layer in torch."""
    (query, value), key, (query_mask, value_mask) = inputs[:2], inputs[-1], mask[:2]
    hidden = query.unsqueeze(2) + key.unsqueeze(1)
    if kind == "additive":
        scores = torch.tanh(hidden).mul(*learned or [1.0]).sum(-1)
    else:
        *scale, weight = learned
        scores = weight * torch.tanh(hidden.mul(*scale or [1.0])).sum(-1)
    if value_mask is not None:
        value_mask = value_mask.unsqueeze(1) if value_mask.dim() == 2 else value_mask
        scores = scores.masked_fill(~value_mask, -torch.inf)
    if use_causal_mask:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1) == 1, -torch.inf)
    weights = scores.softmax(-1)
    context = weights @ value
    if query_mask is not None:
        context = context * query_mask.unsqueeze(2)
    return (context, weights) if return_attention_scores else (context,)


def right_in_all_releases(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a call with the value mask as (B, 1, Tv).

    Releases before 3.12 apply a mask (B, Tv) as if it were (Tq, Tv).
    """
    query_mask, value_mask, *rest = options.get("mask", [None, None])
    if value_mask is None or options.get("use_causal_mask") or value_mask.dim() == 3:
        return options
    return options | {"mask": [query_mask, value_mask.unsqueeze(1), *rest]}


def with_gradients(outputs: tuple[Tensor, ...], leaves: list[Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    total = sum(
        (torch.randn(x.shape, generator=generator, dtype=F64).to(x) * x).sum() for x in outputs
    )
    found = {f"output {i}": x for i, x in enumerate(outputs)}
    gradients = torch.autograd.grad(total, leaves)
    return found | {f"gradient {i}": x for i, x in enumerate(gradients)}


@KINDS
@pytest.mark.parametrize("count, of_layer, of_call", CALLS.values(), ids=CALLS)
def test_keras(
    keras: Any, kind: str, count: int, of_layer: dict[str, Any], of_call: dict[str, Any]
) -> None:
    sizes = [(2, 4, 9), (2, 5, 9 if count == 2 else 3), (2, 5, 9)][:count]
    inputs = [torch.randn(size, requires_grad=True) for size in sizes]
    module, own = (made(keras, kind, **of_layer) for _ in range(2))
    for layer in (module, own):
        layer.build(sizes)
    if kind == "concat":  # both numbers are 1 at first
        module.set_weights([torch.tensor(x) for x in (0.7, -1.3)[-len(module.weights) :]])
    own.set_weights(module.get_weights())
    assert replace_attention(module).swapped == {"": SOURCES[kind]}
    results = []
    for layer, options in (module, of_call), (own, right_in_all_releases(of_call)):
        outputs = layer(inputs, **options)
        assert isinstance(outputs, tuple) == ("return_attention_scores" in of_call)
        leaves = [*inputs, *(x.value for x in layer.trainable_variables)]
        results.append(with_gradients(tensors(outputs), leaves))
    found, wanted = results
    leaves = [x.detach().double().requires_grad_() for x in leaves]
    outputs = keras_formula(kind, leaves[:count], leaves[count:], **of_call)
    exact = with_gradients(outputs, leaves)
    for name, z in exact.items():
        # w has entries of up to 1, by glorot_uniform or without a scale: scores of up to 9;
        # a gradient sums over 2 batches, 4 queries and 5 keys
        size = 9 * max(1.0, z.abs().max().item()) * (1 if "output" in name else 10)
        assert_within_budget(found[name], wanted[name], z, magnitude=size, name=name)


def functional_model(keras: Any) -> Any:
    """Return a model of embedded tokens, masked where they are 0, with attention between them."""
    query, value = keras.Input((4,), dtype="int32"), keras.Input((5,), dtype="int32")
    embed = keras.layers.Embedding(10, 8, mask_zero=True)
    attended = keras.layers.AdditiveAttention(name="between")([embed(query), embed(value)])
    out = keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(attended))
    return keras.Model([query, value], out)


@KINDS
def test_a_mask_of_the_values_of_as_many_sequences_as_queries(keras: Any, kind: str) -> None:
    """Releases before 3.12 give each query the mask of another sequence, or fail."""
    given = [torch.randn(2, 2, 8), torch.randn(2, 5, 8)]
    layer = made(keras, kind)
    layer(given)
    assert replace_attention(layer).swapped
    options: dict[str, Any] = {"mask": [None, VALUE_MASK], "return_attention_scores": True}
    learned = [x.value.detach() for x in layer.trainable_variables]
    torch.testing.assert_close(
        layer(given, **options), keras_formula(kind, given, learned, **options)
    )


def test_a_model_of_keras(keras: Any, tmp_path: Path) -> None:
    if tuple(int(x) for x in keras.version().split(".")[:2]) < (3, 12):
        pytest.skip("this release cannot mask the values of a model")
    keras.utils.set_random_seed(0)
    model = functional_model(keras)
    tokens = [
        torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]),
        torch.tensor([[7, 8, 9, 1, 2], [3] + [0] * 4]),
    ]
    before = model(tokens).detach()
    report = replace_attention(model, only=["dense*"])
    assert not report.swapped and report.left == {"between": "not in only"}
    report = replace_attention(model)
    assert report.swapped == {"between": "Keras, AdditiveAttention"} and not report.left
    layer = model.get_layer("between")
    assert isinstance(layer, Fused) and isinstance(layer, keras.layers.AdditiveAttention)
    torch.testing.assert_close(model(tokens), before)
    assert replace_attention(model).left == {"between": "it is swapped already"}

    model.compile(optimizer="sgd", loss="mse")
    scale = layer.scale.numpy().copy()
    model.fit([x.numpy() for x in tokens], torch.ones(2, 1).numpy(), verbose=0)
    assert (layer.scale.numpy() != scale).all()

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.get_layer("between")) is keras.layers.AdditiveAttention
    torch.testing.assert_close(loaded(tokens), model(tokens))
    assert replace_attention(loaded).swapped
    torch.testing.assert_close(loaded(tokens), model(tokens))


def test_layers_inside_layers_of_keras(keras: Any) -> None:
    """Each layer is found once, even if torch sees it too or two have the same name."""

    class AttentionBlock(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="block")
            self.attention = keras.layers.AdditiveAttention(name="attention")

        def call(self, inputs: Any) -> Any:
            return self.attention(inputs)

    given = [torch.randn(2, 4, 8), torch.randn(2, 5, 8)]
    for around in (lambda x: x, lambda x: keras.Sequential([x])):
        block = around(AttentionBlock())
        before = block(given)
        report = replace_attention(block)
        assert [name[-15:] for name in report.swapped] == ["block/attention"] and report.left == {}
        torch.testing.assert_close(block(given), before)

    def tower(name: str) -> Any:
        inputs = [keras.Input((4, 8)), keras.Input((5, 8))]
        return keras.Model(inputs, keras.layers.AdditiveAttention(name="same")(inputs), name=name)

    inputs, towers = [keras.Input((4, 8)), keras.Input((5, 8))], [tower("left"), tower("right")]
    model = keras.Model(inputs, keras.layers.Add()([each(inputs) for each in towers]))
    report = replace_attention(model)
    assert list(report.swapped) == ["same", "same:2"] and report.left == {}
    assert all(isinstance(each.get_layer("same"), Fused) for each in towers)


@KINDS
@pytest.mark.parametrize("policy", ["float32", "float64", "mixed_bfloat16", "bfloat16"])
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_dtypes_of_keras(keras: Any, kind: str, policy: str, autocast: bool) -> None:
    layer = made(keras, kind, dtype=policy)
    given = [torch.randn(2, 4, 8), torch.randn(2, 5, 8)]
    layer(given)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before = layer(given, return_attention_scores=True)
        assert replace_attention(layer).swapped
        found = layer(given, return_attention_scores=True)
    close = {"rtol": 0.02, "atol": 0.02} if autocast or "bfloat16" in policy else {}
    torch.testing.assert_close(found, before, **close)


def test_dropout_of_keras(keras: Any) -> None:
    """In training the given share of weights is zero, and the others are scaled."""
    layer = keras.layers.AdditiveAttention(dropout=0.4, seed=0)
    inputs = [torch.randn(2, 50, 8), torch.randn(2, 60, 8)]
    layer(inputs)
    assert replace_attention(layer).swapped
    _, weights = layer(inputs, training=True, return_attention_scores=True)
    _, whole = layer(inputs, return_attention_scores=True)
    dropped = weights == 0
    assert abs(dropped.double().mean() - 0.4) < 0.02 and (whole > 0).all()  # 3 sigma of 6000
    torch.testing.assert_close(weights[~dropped], whole[~dropped] / 0.6)
    again = layer(inputs, training=True, return_attention_scores=True)[1]
    assert not torch.equal(weights, again)


def test_what_stays_kerass(keras: Any) -> None:
    layer = keras.layers.AdditiveAttention()
    assert replace_attention(layer).left == {"": "it is not built yet: call it once before"}
    other = keras.layers.Attention()
    other([torch.randn(2, 3, 4), torch.randn(2, 5, 4)])
    why = "score_mode is 'dot': not additive attention"
    assert replace_attention(other).left == {"": why}


@KINDS
@pytest.mark.parametrize("batch", [3, 2], ids=["as many as queries", "another number"])
@pytest.mark.parametrize(
    "shape, causal",
    [((1, 5), True), ((3, 5), True), ((1, 1, 3, 5), False)],
    ids=str,
)
def test_masks_that_keras_refuses_or_takes_for_others(
    keras: Any, kind: str, batch: int, shape: tuple[int, ...], causal: bool
) -> None:
    """Shapes and errors are its own, also those of a mask of pairs beside the causal one."""
    layer = made(keras, kind)
    given = [torch.randn(batch, 3, 8), torch.randn(batch, 5, 8)]
    layer(given)
    options = {
        "mask": [None, torch.ones(batch, *shape, dtype=torch.bool)],
        "use_causal_mask": causal,
    }
    results: list[Any] = []
    for _ in range(2):
        try:
            results.append(layer(given, **options))
        except Exception as error:
            results.append((type(error), str(error)))
        replace_attention(layer)
    assert type(results[0]) is type(results[1])
    if isinstance(results[0], Tensor):
        torch.testing.assert_close(results[1], results[0])
    else:
        assert results[0] == results[1]


def test_a_layer_in_a_graph_that_is_made_after_the_swap(keras: Any) -> None:
    """Keras asks for shapes, in some releases by a call without numbers."""
    layer = keras.layers.AdditiveAttention()
    given = [torch.randn(2, 3, 4), torch.randn(2, 5, 4)]
    before = layer(given)
    assert replace_attention(layer).swapped
    inputs = [keras.Input((3, 4)), keras.Input((5, 4))]
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, 3, 4)
    torch.testing.assert_close(model(given), before)


def test_errors_of_keras_stay(keras: Any) -> None:
    layer = keras.layers.AdditiveAttention()
    inputs = [torch.randn(2, 3, 4), torch.randn(2, 5, 4)]
    layer(inputs)
    replace_attention(layer)
    with pytest.raises(ValueError, match="AdditiveAttention layer must be called on a list"):
        layer(inputs[0])
    with pytest.raises(ValueError, match="AdditiveAttention layer mask must be a list"):
        layer(inputs, mask=VALUE_MASK)


@KINDS
def test_the_tables_names_are_those_of_keras(keras: Any, kind: str) -> None:
    layer = made(keras, kind, use_scale=kind == "additive")
    inputs = [torch.randn(2, 3, 4), torch.randn(2, 5, 4)]
    _, wanted = layer(inputs, return_attention_scores=True)
    state = {x.path: x.numpy() for x in layer.variables}
    module = AdditiveAttention(4, 4, 4, bias=False)
    prefix = next(iter(state)).rpartition("/")[0] + "/"
    convention = {"additive": "keras", "concat": "keras-concat"}[kind]
    load_state_dict_from(module, state, convention=convention, prefix=prefix)
    torch.testing.assert_close(module(*inputs, return_weights=True)[1], wanted)
