"""Errors of a backend over those of the plain formula in float32, as a table.

    python -m benchmarks.accuracy [--backend native] [--device cpu] [--seeds 5]

A ratio of 1 is as accurate as PyTorch itself. `--scales` are those of queries and keys.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from attnkernels import additive_attention

NAMES = ("context", "query", "key", "value", "weight")  # the context, and the gradients
SHAPES = ((2, 7, 33, 65), (1, 64, 200, 128), (3, 1, 129, 31), (1, 40, 40, 256))  # B, n, m, d = dv
SCALES = (0.3, 1.0, 3.0, 10.0, 100.0, 1e4)

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
Function = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def plain(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """Return the context as a few lines of PyTorch compute it."""
    scores = torch.tanh(query.unsqueeze(-2) + key.unsqueeze(-3)) @ weight
    return torch.softmax(scores, -1) @ value


def draw(shape: Sequence[int], scale: float, seed: int) -> tuple[Inputs, Tensor]:
    """Return query, key, value and weight of normal numbers, and a gradient of the context.

    Query and key have standard deviation `scale`; scores have size 1.
    """
    batch, n, m, d = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    query, key, value = (
        normal(batch, n, d) * scale,
        normal(batch, m, d) * scale,
        normal(batch, m, d),
    )
    return (query, key, value, normal(d) * d**-0.5), normal(batch, n, d)


def results(function: Function, inputs: Inputs, gradient: Tensor) -> list[Tensor]:
    """Return the context and the gradients of all inputs, in float64 on the CPU."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    context = function(*leaves)
    gradients = torch.autograd.grad(context, leaves, gradient.to(context))
    return [x.detach().double().cpu() for x in (context, *gradients)]


def error_ratios(
    shape: Sequence[int],
    scale: float,
    *,
    backend: str,
    seeds: Iterable[int] = range(5),
    device: str = "cpu",
) -> dict[str, float]:
    """Return the norms of errors against float64 over the plain formula's, mean over seeds.

    Args:
        shape: (B, n, m, d); values have d columns.
        scale: the standard deviation of queries and keys.
        backend: its name.
        seeds: of the inputs.
        device: where backend and plain formula run.

    Returns:
        The ratios by name: the context, and the gradients of query, key, value and weight.
    """

    def fused(*inputs: Tensor) -> Tensor:
        return additive_attention(*inputs, backend=backend)

    ratios = []
    for seed in seeds:
        inputs, gradient = draw(shape, scale, seed)
        query, key, value, weight = (x.to(device) for x in inputs)
        here = query, key, value, weight
        exact = results(
            plain, (query.double(), key.double(), value.double(), weight.double()), gradient
        )
        found, close = results(fused, here, gradient), results(plain, here, gradient)
        ratios.append(
            [
                ((x - z).norm() / (y - z).norm()).item()
                for x, y, z in zip(found, close, exact, strict=True)
            ]
        )
    return {
        name: sum(each) / len(ratios)
        for name, each in zip(NAMES, zip(*ratios, strict=True), strict=True)
    }


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--backend", default="native")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    given = parser.parse_args(arguments)
    print("| B x n x m x d | scale | context | dq | dk | dv | dw |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for shape in SHAPES:
        for scale in given.scales:
            ratios = error_ratios(
                shape, scale, backend=given.backend, seeds=range(given.seeds), device=given.device
            )
            cells = " | ".join(f"{ratios[name]:.2f}" for name in NAMES)
            print(f"| {'x'.join(map(str, shape))} | {scale:g} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
