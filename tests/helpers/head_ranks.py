"""AdditiveAttention with its heads on two ranks, beside the whole module."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module

from attnkernels.distributed import HeadsParallel
from attnkernels.nn import AdditiveAttention, HardAttention
from attnkernels.testing import assert_within_budget

from . import ranks
from .inputs import F64

D, H = 8, 4
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one head per rank": {"num_heads": 2},
    "normalized": {"normalize": True},
    "weights and a mask": {"return_weights": True, "mask": (2, H, 3, 5)},
    "one query": {"return_weights": True, "one": True, "num_heads": 2},
    "lengths and values": {"value": True, "key_lengths": torch.tensor([5, 2])},
}
WRONG = {
    "heads": lambda: AdditiveAttention(4, 8, 9, num_heads=3),
    "dropout": lambda: AdditiveAttention(4, 8, 8, num_heads=2, dropout=0.1),
    "class": lambda: HardAttention(4, 8, 8),
}


def _gradients(module: nn.Module, inputs: list[Tensor], **options: Any) -> dict[str, Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    found = module(*leaves, **options)
    found = found if isinstance(found, tuple) else (found,)
    torch.manual_seed(2)
    sum((x * torch.randn(x.shape, dtype=F64)).sum() for x in found).backward()
    results = dict(zip(("context", "weights"), found, strict=False))
    results |= {f"gradient of input {i}": x.grad for i, x in enumerate(leaves)}
    for name, parameter in module.named_parameters():
        grad: Any = parameter.grad
        results[name] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    return results


def _case(name: str) -> Any:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if name in WRONG:
        try:
            parallelize_module(WRONG[name](), mesh, HeadsParallel())
        except (TypeError, ValueError) as error:
            return str(error)
        return "no error"
    options = dict(CASES[name])
    torch.manual_seed(0)
    heads, normalize = options.pop("num_heads", H), options.pop("normalize", False)
    one = AdditiveAttention(4, D, D, num_heads=heads, normalize=normalize, dtype=F64)
    many = parallelize_module(copy.deepcopy(one), mesh, HeadsParallel())
    query = (2, 4) if options.pop("one", False) else (2, 3, 4)
    shapes = [query, (2, 5, D), *[(2, 5, 12)] * options.pop("value", False)]
    inputs = [torch.randn(shape, dtype=F64) for shape in shapes]
    if "mask" in options:
        options["attn_mask"] = torch.randn(options.pop("mask")) > -1
    wanted, found = (_gradients(each, inputs, **options) for each in (one, many))
    assert isinstance(many, AdditiveAttention) and wanted.keys() == found.keys()
    for each, x in wanted.items():
        terms = D * max(1.0, x.abs().max().item())
        assert_within_budget(found[each], x, x, magnitude=terms, name=each)
    try:
        many.prepare(inputs[1])
    except NotImplementedError as error:
        assert "heads on several ranks" in str(error)
    else:
        raise AssertionError("prepare() must raise")
    return None


def worker(rank: int, folder: Path) -> None:
    """Run all cases as one of the processes."""
    ranks.run(rank, folder, (*CASES, *WRONG), _case)
