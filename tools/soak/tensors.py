"""The tensors of a case: seeded numbers, in every layout that a caller may pass."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .case import TRAILING, Case, Operand

_NAN = float("nan")


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Return the numbers of `x` in a layout; expanded, the first row, or the first of each row."""
    x = x.detach()
    if x.dim() == 0 or not x.numel():
        return x
    match layout:
        case "transposed" if x.dim() > 1:
            return x.mT.contiguous().mT
        case "batch last" if x.dim() > 1:
            return x.movedim(0, -1).contiguous().movedim(-1, 0)
        case "rows expanded" if x.dim() > 1:
            return x[..., :1, :].expand(x.shape)
        case "columns expanded":
            return x[..., :1].expand(x.shape)
        case "sliced":  # an offset, every second element, and NaN between them
            store = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 3), _poison(x.dtype))
            view = store[..., 1 : 2 * x.shape[-1] + 1 : 2]
            view.copy_(x)
            return view
    return x


def _poison(dtype: torch.dtype) -> Any:
    return _NAN if dtype.is_floating_point else dtype == torch.bool


class Tensors:
    """The inputs of one case, always the same.

    Attributes:
        inputs: query, key, value, weight by name, and cu_seqlens_q, cu_seqlens_k of packed calls.
        options: the other keyword arguments, with attn_mask and key_lengths.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self._generator = torch.Generator().manual_seed(case.tensor_seed)
        self._dtype: torch.dtype = getattr(torch, case.dtype)
        made = {name: self._operand(name, x) for name, x in case.operands.items()}
        self.options: dict[str, Any] = dict(case.options)
        if case.lengths is not None:
            lengths = self._lengths(case.lengths)
            self.options["key_lengths"] = lengths
            if case.padding == "nan":
                for name in ("key", "value"):
                    made[name] = self._without_padding(made[name], lengths)
        for name, x in case.operands.items():
            made[name] = laid_out(made[name], x.layout).requires_grad_(x.wants_gradient)
        if "attn_mask" in made:
            self.options["attn_mask"] = made.pop("attn_mask")
        self.inputs = made
        if case.call == "varlen":
            for name, lengths_of in zip("qk", _columns(case.sequences), strict=True):
                ends = torch.tensor([0, *accumulate(lengths_of)], dtype=self._lengths_dtype())
                self.inputs[f"cu_seqlens_{name}"] = ends

    def _lengths_dtype(self) -> torch.dtype:
        return torch.int32 if self._case.lengths_dtype == "int32" else torch.int64

    def _uniform(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=self._generator)

    def _operand(self, name: str, x: Operand) -> Tensor:
        case = self._case
        numbers = torch.randn(x.shape, generator=self._generator, dtype=torch.float64)
        if name == "attn_mask":
            taking_part = self._taking_part(x.shape)
            if case.mask == "bool":
                return taking_part
            numbers = torch.where(taking_part, numbers * x.size, float("-inf"))
        else:
            numbers = numbers * x.size + x.shift
        made = numbers.to(self._dtype)
        if case.nan == name and made.numel():
            at = case.tensor_seed % made.numel()
            made.view(-1)[at] = _NAN
        return made

    def _taking_part(self, shape: tuple[int, ...]) -> Tensor:
        match self._case.excluded:
            case "none":
                return torch.ones(shape, dtype=torch.bool)
            case "rows":  # half of the rows see nothing
                rows = self._uniform((*shape[:-1], 1)) < 0.5
                return rows.expand(shape).clone()
        return self._uniform(shape) < (0.7 if self._case.excluded == "some" else 0.05)

    def _lengths(self, x: Operand) -> Tensor:
        m = self._case.sizes[1]
        lengths = (self._uniform(x.shape) * (m + 1)).floor().clamp(max=m).to(self._lengths_dtype())
        return laid_out(lengths, x.layout)

    def _without_padding(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return `x` with NaN in the rows that are padding in every entry that shares them."""
        lead, m = self._case.lead, self._case.sizes[1]
        if not x.numel() or not lengths.expand(lead).numel():
            return x
        shared = lengths.expand(lead)
        of_x = x.shape[: -TRAILING["key"]]
        for dim, size in enumerate((1,) * (len(lead) - len(of_x)) + tuple(of_x)):
            if size == 1:
                shared = shared.amax(dim, keepdim=True)
        padding = torch.arange(m) >= shared.reshape(of_x).unsqueeze(-1)
        return torch.where(padding.unsqueeze(-1), _NAN, x)


def _columns(pairs: tuple[tuple[int, int], ...]) -> tuple[list[int], list[int]]:
    return [n for n, _ in pairs], [m for _, m in pairs]
