"""Tensor-parallel AdditiveAttention: each rank has the parameters of its own heads."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle

from ..functional.results import Pair
from ..nn import AdditiveAttention
from ..nn.projections import split_heads


class HeadsParallel(ParallelStyle):
    """Give each rank some heads of an `attnkernels.nn.AdditiveAttention`, for `parallelize_module`.

    Parameters become DTensors: rows of the projections, and the score vector and bias of the heads.
    Inputs and results of `forward` stay plain tensors, the same on all ranks. Projections, scores
    and contexts are computed for the heads of the rank; the contexts, and the weights if requested,
    are then gathered. `prepare` and `step` are not available.

    Raises:
        TypeError: the module is no AdditiveAttention, or is one of another class.
        ValueError: the mesh has several dimensions, its size does not divide num_heads, or the
            module has dropout, whose mask is not that of one process.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if type(module) is not AdditiveAttention:
            raise TypeError(f"module must be an AdditiveAttention, got {type(module).__name__}")
        if device_mesh.ndim != 1 or module.num_heads % device_mesh.size():
            raise ValueError(
                "the mesh must have one dimension whose size divides num_heads,"
                f" {module.num_heads}, got {tuple(device_mesh.shape)}"
            )
        if module.dropout:
            raise ValueError(f"dropout must be 0 with heads on several ranks, got {module.dropout}")
        for projection in (module.query_proj, module.key_proj):
            ColwiseParallel()._apply(projection, device_mesh)
        for name, parameter in list(module.named_parameters(recurse=False)):
            placement = Replicate() if name == "gain" else Shard(0)
            whole = distribute_tensor(parameter.detach(), device_mesh, [placement])
            wanted = parameter.requires_grad
            module.register_parameter(name, nn.Parameter(whole, requires_grad=wanted))
        module.num_heads //= device_mesh.size()
        module.__class__ = _HeadsOfRank
        module.mesh = device_mesh  # type: ignore[assignment]
        return module


class _HeadsOfRank(AdditiveAttention):
    """The module on one rank; num_heads counts the heads of the rank."""

    mesh: DeviceMesh

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        *,
        attn_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor | Pair:
        """Return the contexts of all heads, as `AdditiveAttention.forward`."""
        value = self._part(key if value is None else value, -1)
        if attn_mask is not None and attn_mask.ndim == query.ndim + 1 and attn_mask.shape[1] > 1:
            attn_mask = self._part(attn_mask, 1)
        found = super().forward(query, key, value, attn_mask=attn_mask, **options)
        if isinstance(found, Tensor):
            return self._whole(found, -1)
        context, weights = found
        if weights.ndim == query.ndim:  # one head per rank
            weights = weights.unsqueeze(1)
        return self._whole(context, -1), self._whole(weights, 1)

    def prepare(self, *args: Any, **options: Any) -> NoReturn:
        """Raise: a memory of some heads would have to be gathered at every step."""
        raise NotImplementedError("prepare() is not available with heads on several ranks")

    def score_weight(self) -> Tensor:
        """Return w of (E1) for the heads of the rank."""
        weight = _local(super().score_weight())
        return weight if self.num_heads > 1 else weight[0]

    def _queries(self, query: Tensor, one: bool = False) -> Tensor:
        projected = self.query_proj(query)
        if self.bias is not None:
            projected = projected + _local(self.bias)
        return split_heads(projected.unsqueeze(-2) if one else projected, self.num_heads)

    def _part(self, x: Tensor, dim: int) -> Tensor:
        """Return the part of the rank of what all ranks have."""
        whole = DTensor.from_local(x, self.mesh, [Replicate()], run_check=False)
        return whole.redistribute(placements=[Shard(dim % x.ndim)]).to_local()

    def _whole(self, x: Tensor, dim: int) -> Tensor:
        """Return the parts of all ranks, on every rank."""
        part = DTensor.from_local(x, self.mesh, [Shard(dim % x.ndim)], run_check=False)
        return part.redistribute(placements=[Replicate()]).to_local()


def _local(x: Any) -> Tensor:
    return x.to_local()
