"""Modules under torch.compile, torch.export and torch.func, which never break the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._functorch.config
from torch import Tensor, nn
from torch.export import Dim, export
from torch.func import functional_call, grad, vmap

from attnkernels.models import ConvEncoder, RNNsearch, ShowAttendTell
from attnkernels.nn import AdditiveAttention, AttentionRNN, HardAttention, MonotonicAttention

LENGTHS = torch.tensor([9, 4])


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch.compiler.reset()


def made(**options: Any) -> tuple[AttentionRNN, Tensor, Tensor]:
    """Return a decoder that defers its gradients, with its inputs and memory."""
    decoder = AttentionRNN(nn.GRUCell(5 + 6, 7), AdditiveAttention(7, 6, 8), **options)
    return decoder, torch.randn(2, 3, 5), torch.randn(2, 9, 6, requires_grad=True)


def test_a_learning_decoder_is_one_graph() -> None:
    decoder, inputs, memory = made()
    found = []
    for module in (decoder, torch.compile(decoder, fullgraph=True, backend="aot_eager")):
        outputs, contexts, _, weights = module(inputs, memory, LENGTHS, return_weights=True)
        loss = outputs.sum() + contexts.square().sum() + weights.square().sum()
        found.append([outputs, *torch.autograd.grad(loss, (memory, *decoder.parameters()))])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_learning_decoder_under_torch_func(compiled: bool) -> None:
    decoder, inputs, memory = made()
    parameters = dict(decoder.named_parameters())
    first = torch.randn(2, 7)  # torch.nn.GRUCell cannot map over examples with a state of its own

    def loss(parameters: dict[str, Tensor], *example: Tensor) -> Tensor:
        inputs, memory, state = (x.reshape(-1, *x.shape[-2:]) for x in example)
        arguments = inputs, memory, None, state.flatten(0, 1)
        outputs, contexts, _ = functional_call(decoder, parameters, arguments)
        return outputs.sum() + contexts.square().sum()

    def samples(*examples: Tensor) -> Any:
        return vmap(grad(loss), (None, 0, 0, 0))(parameters, *examples)

    if compiled:
        samples = torch.compile(samples, fullgraph=True, backend="aot_eager")
    found = samples(inputs, memory.detach(), first.unsqueeze(1))
    whole = loss(parameters, inputs, memory, first.unsqueeze(1))
    expected = torch.autograd.grad(whole, tuple(parameters.values()))
    for name, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[name].sum(0), gradient)


@pytest.mark.parametrize("budget", [0.5, 0.0])
@pytest.mark.parametrize("kind", [HardAttention, MonotonicAttention])
def test_the_backward_sees_what_the_forward_drew(kind: type[nn.Module], budget: float) -> None:
    """A choice or a noise that is drawn again in the backward would give another gradient."""
    attention, inputs = kind(6, 5, 4), (torch.randn(2, 3, 6), torch.randn(2, 9, 5))

    def call(query: Tensor, key: Tensor) -> Tensor:
        found = attention(query, key)
        return found if isinstance(found, Tensor) else found.log_prob.unsqueeze(-1) + found.context

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    gradients = []
    for each in (call, compiled):
        torch.manual_seed(7)
        with torch._functorch.config.patch(activation_memory_budget=budget):
            loss = each(*inputs).square().sum()
            gradients.append(torch.autograd.grad(loss, tuple(attention.parameters())))
    torch.testing.assert_close(*gradients)


def test_models_have_second_derivatives() -> None:
    sizes = {"embedding_dim": 4, "encoder_dim": 3, "hidden_dim": 5, "align_dim": 4, "maxout_dim": 3}
    tokens = torch.tensor([[3, 4, 2]])
    images = torch.randn(1, 1, 12, 12)

    def described(**options: Any) -> tuple[nn.Module, Any]:
        encoder = ConvEncoder(1, 4)
        model = ShowAttendTell(encoder, 6, begin=1, end=2, annotation_dim=4, **options)
        return model, lambda: model(images, tokens).logits

    def translated(**options: Any) -> tuple[nn.Module, Any]:
        model = RNNsearch(6, 6, **sizes, **options)
        return model, lambda: model(tokens, torch.tensor([3]), tokens)

    for model in (described, translated):
        _, call = model()
        with pytest.raises(RuntimeError, match="the model that holds it, with defer_"):
            twice(call(), _)
        module, call = model(defer_gradients=False)
        assert any((x != 0).any() for x in twice(call(), module))
        with pytest.raises(TypeError, match="defer_gradients must be a bool, got int"):
            model(defer_gradients=1)


def twice(logits: Tensor, module: nn.Module) -> list[Tensor]:
    parameters = list(module.decoder.attention.parameters())
    first = torch.autograd.grad(logits.square().sum(), parameters, create_graph=True)
    total = sum(x.square().sum() for x in first)
    return [x for x in torch.autograd.grad(total, parameters, allow_unused=True) if x is not None]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("batch", [Dim("b", min=1, max=64), Dim.AUTO], ids=["named", "auto"])
def test_export_with_a_dynamic_batch(heads: int, batch: Any) -> None:
    """The example's batch may be the number of heads: sizes of different meaning are not one."""
    attention = AdditiveAttention(12, 10, 8, num_heads=heads)

    def inputs(batch: int) -> tuple[Tensor, Tensor]:
        return torch.randn(batch, 5, 12), torch.randn(batch, 7, 10)

    for example in (2, 3):
        dims = {"query": {0: batch}, "key": {0: batch}}
        program = export(attention, inputs(example), dynamic_shapes=dims).module()
        for other in (2, 3, 5, 8):
            given = inputs(other)
            torch.testing.assert_close(program(*given), attention(*given))


def test_a_dynamic_batch_compiles_once() -> None:
    attention, graphs = AdditiveAttention(12, 10, 8, num_heads=2), []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(attention, dynamic=True, fullgraph=True, backend=count)
    for batch in (3, 2, 5, 8):
        query, key = torch.randn(batch, 5, 12), torch.randn(batch, 7, 10)
        mask = torch.rand(batch, 1, 5, 7) < 0.9
        torch.testing.assert_close(
            compiled(query, key, attn_mask=mask), attention(query, key, attn_mask=mask)
        )
    assert len(graphs) == 1
