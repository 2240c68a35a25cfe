"""Keras: its own AdditiveAttention swapped, against its results and its documented formula.

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


QUERY_MASK = torch.tensor([[True, True, False, True], [True, False, True, True]])
VALUE_MASK = torch.tensor([[True, False, True, True, True], [True, True, True, False, False]])
CALLS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    # number of inputs, options of the layer, options of the call
    "two": (2, {}, {}),
    "three": (3, {}, {}),
    "nothing learned": (3, {"use_scale": False}, {"return_attention_scores": True}),
    "weights": (3, {}, {"return_attention_scores": True}),
    "a mask of the values": (3, {}, {"mask": [None, VALUE_MASK], "return_attention_scores": True}),
    "a mask of the queries": (2, {}, {"mask": [QUERY_MASK, None]}),
    "both masks": (3, {}, {"mask": [QUERY_MASK, VALUE_MASK], "return_attention_scores": True}),
    "three masks": (3, {}, {"mask": [QUERY_MASK, VALUE_MASK, None]}),
    "causal": (3, {}, {"use_causal_mask": True, "return_attention_scores": True}),
    "causal, masked": (2, {}, {"use_causal_mask": True, "mask": [QUERY_MASK, VALUE_MASK]}),
    "dropout, not in training": (2, {"dropout": 0.5}, {"return_attention_scores": True}),
}


def keras_formula(
    inputs: list[Tensor],
    scale: Tensor | None,
    mask: Any = (None, None),
    use_causal_mask: bool = False,
    return_attention_scores: bool = False,
) -> tuple[Tensor, ...]:
    """Compute the documented formula of AdditiveAttention in torch."""
    (query, value), key, (query_mask, value_mask) = inputs[:2], inputs[-1], mask[:2]
    hidden = torch.tanh(query.unsqueeze(2) + key.unsqueeze(1))
    scores = (hidden if scale is None else hidden * scale).sum(-1)
    if value_mask is not None:
        scores = scores.masked_fill(~value_mask.unsqueeze(1), -torch.inf)
    if use_causal_mask:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1) == 1, -torch.inf)
    weights = scores.softmax(-1)
    context = weights @ value
    if query_mask is not None:
        context = context * query_mask.unsqueeze(2)
    return (context, weights) if return_attention_scores else (context,)


def with_gradients(outputs: tuple[Tensor, ...], leaves: list[Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    total = sum(
        (torch.randn(x.shape, generator=generator, dtype=F64).to(x) * x).sum() for x in outputs
    )
    found = {f"output {i}": x for i, x in enumerate(outputs)}
    gradients = torch.autograd.grad(total, leaves)
    return found | {f"gradient {i}": x for i, x in enumerate(gradients)}


@pytest.mark.parametrize("count, of_layer, of_call", CALLS.values(), ids=CALLS)
def test_keras(keras: Any, count: int, of_layer: dict[str, Any], of_call: dict[str, Any]) -> None:
    sizes = [(2, 4, 9), (2, 5, 9 if count == 2 else 3), (2, 5, 9)][:count]
    inputs = [torch.randn(size, requires_grad=True) for size in sizes]
    module, own = (keras.layers.AdditiveAttention(**of_layer) for _ in range(2))
    for layer in (module, own):
        layer.build(sizes)
        layer.set_weights(module.get_weights())
    assert replace_attention(module).swapped == {"": "Keras, AdditiveAttention"}
    results = []
    for layer in (module, own):
        outputs = layer(inputs, **of_call)
        assert isinstance(outputs, tuple) == ("return_attention_scores" in of_call)
        leaves = [*inputs, *(x.value for x in layer.trainable_variables)]
        results.append(with_gradients(tensors(outputs), leaves))
    found, wanted = results
    leaves = [x.detach().double().requires_grad_() for x in leaves]
    scale = leaves[count] if module.use_scale else None
    exact = with_gradients(keras_formula(leaves[:count], scale, **of_call), leaves)
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


def test_a_model_of_keras(keras: Any, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("policy", ["float64", "mixed_bfloat16"])
def test_other_dtypes_of_keras(keras: Any, policy: str) -> None:
    layer = keras.layers.AdditiveAttention(dtype=policy)
    given = [torch.randn(2, 4, 8), torch.randn(2, 5, 8)]
    before = layer(given)
    assert replace_attention(layer).swapped
    found = layer(given)
    close = {"rtol": 0.02, "atol": 0.02} if policy == "mixed_bfloat16" else {}
    torch.testing.assert_close(found, before, check_dtype=policy != "float64", **close)


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
    report = replace_attention(other)
    assert not report.swapped and list(report.left) == [""]


def test_errors_of_keras_stay(keras: Any) -> None:
    layer = keras.layers.AdditiveAttention()
    inputs = [torch.randn(2, 3, 4), torch.randn(2, 5, 4)]
    layer(inputs)
    replace_attention(layer)
    with pytest.raises(ValueError, match="AdditiveAttention layer must be called on a list"):
        layer(inputs[0])
    with pytest.raises(ValueError, match="AdditiveAttention layer mask must be a list"):
        layer(inputs, mask=VALUE_MASK)


def test_the_tables_names_are_those_of_keras(keras: Any) -> None:
    layer = keras.layers.AdditiveAttention()
    inputs = [torch.randn(2, 3, 4), torch.randn(2, 5, 4)]
    _, wanted = layer(inputs, return_attention_scores=True)
    state = {x.path: x.numpy() for x in layer.variables}
    module = AdditiveAttention(4, 4, 4, bias=False)
    prefix = next(iter(state)).removesuffix("scale")
    load_state_dict_from(module, state, convention="keras", prefix=prefix)
    torch.testing.assert_close(module(*inputs, return_weights=True)[1], wanted)
