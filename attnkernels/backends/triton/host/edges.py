"""One call over edges as its kernels see it: every argument by the name the kernels give it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ....ops.shapes import by_row, leading_shape
from ..device.edge_dropout import edge_dropout_kernel
from ..device.rows import Dropout, Kept
from . import call as pairs
from . import configs
from .geometry import lead_of, merged, scaled
from .launch import launch, on, power_of_two

Given = Mapping[str, Tensor | None]
T = TypeVar("T", Tensor, Tensor | None)


class Shares(NamedTuple):
    """The nodes of one side, divided among `programs` programs: see device/edges.py."""

    begin: Tensor
    n: int
    share: int
    programs: int
    cuts: Tensor  # (programs, 2): the last node of each share, and its parts

    def parts(self, call: EdgeCall, width: int) -> Tensor:
        """Return an unset tensor for the parts of cut nodes."""
        return call.new(2 * self.programs, call.leads, width)


class EdgeCall:
    """Sizes, tensors and options of a call. `arguments` are those that every kernel may name."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None,
        weight: Tensor,
        *,
        edge_key: Tensor | None,
        edge_bias: Tensor | None,
        target_begin: Tensor,
        source: Tensor,
        order: Tensor,
        source_begin: Tensor,
        target: Tensor,
        place: Tensor,
        seed: Tensor | None,
        dropout_p: float,
        activation: int,
        negative_slope: float,
        scale: float,
    ) -> None:
        self.lead = leading_shape(
            query.shape[:-2],
            key.shape[:-2],
            weight.shape[:-1],
            () if value is None else value.shape[:-2],
            () if edge_key is None else edge_key.shape[:-2],
            () if edge_bias is None else edge_bias.shape[:-1],
        )
        self.leads = prod(self.lead)
        (self.n, self.d), self.m, self.edges = query.shape[-2:], key.shape[-2], source.shape[0]
        self.dv = (key if value is None else value).shape[-1]
        self.query = query
        self.rows: Given = {
            "query": in_rows(query),
            "key": in_rows(key),
            "value": in_rows(value),
            "edge_key": in_rows(edge_key),
        }
        self.numbers: Given = {"weight": weight, "edge_bias": edge_bias}
        self.target_begin, self.source_begin = target_begin, source_begin
        self.gpu = pairs.target(query.device)
        BD, BV = (min(power_of_two(width), configs.EDGE_ROW) for width in (self.d, self.dv))
        widest = max(BD, BV)
        self.BH = min(power_of_two(self.leads), max(configs.EDGE_COLUMNS // widest, 1))
        self.warps = max(self.BH * widest // configs.EDGE_COLUMNS, 1)
        most = configs.EDGE_TILE * self.warps // (self.BH * widest)
        self.head_blocks = -(-self.leads // self.BH)
        self.columns = max(-(-self.d // BD), -(-self.dv // BV), 1)
        self.arguments: dict[str, Any] = {
            "source": source,
            "order": order,
            "target": target,
            "place": place,
            "kept": None if seed is None else self._kept(pairs.dropout_of(seed, dropout_p)),
            "edges": self.edges,
            "leads": self.leads,
            "head_blocks": self.head_blocks,
            "columns": self.columns,
            "d": self.d,
            "dv": self.dv,
            "scale": scale,
            "negative_slope": negative_slope,
            "ACTIVATION": activation,
            "BH": self.BH,
            "BE": min(most, configs.EDGES),
            "BD": BD,
            "BV": BV,
            "WHOLE": self.columns == 1,
            "TARGET": self.gpu.name,
        }

    def operands(self, rows: Given, numbers: Given) -> dict[str, Any]:
        """Return these tensors and the inputs as kernels take them.

        Those with rows become a Matrix, those with one number per row a Vector. Their strides are
        over the leading dimensions that all broadcast to.
        """
        rows, numbers = {**self.rows, **rows}, {**self.numbers, **numbers}
        owned = [lead_of(x, 2) for x in rows.values()] + [lead_of(x, 1) for x in numbers.values()]
        sizes, *strides = merged(self.lead, owned)
        arguments: dict[str, Any] = {"sizes": scaled(sizes)}
        for (name, x), each in zip(rows.items(), strides, strict=False):
            arguments[name] = pairs.matrix(x, each)
        for (name, x), each in zip(numbers.items(), strides[len(rows) :], strict=True):
            arguments[name] = pairs.vector(x, each, 1 if x is None else x.stride(-1))
        return self.arguments | arguments

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return an unset tensor on the device of the call."""
        return self.query.new_empty(shape, dtype=dtype)

    def by_row(self, *shape: int, trailing: int) -> Tensor:
        """Return an unset float32 tensor (*lead, *shape) that lies by row."""
        return by_row(self.query, (*self.lead, *shape), trailing, torch.float32)

    def shares(self, begin: Tensor) -> Shares:
        """Return how programs share the nodes whose edges `begin` there."""
        nodes = begin.shape[0] - 1
        units = self.edges + nodes if self.leads else 0
        blocks = self.head_blocks * self.columns
        wanted = configs.EDGE_SHARES * self.gpu.room(self.warps) // max(blocks, 1)
        share = max(-(-units // max(wanted, 1)), configs.EDGE_SHARE)
        programs = -(-units // share)
        return Shares(begin, nodes, share, programs, begin.new_empty(programs, 2))

    def _kept(self, dropout: Dropout) -> Kept:
        """Return the edges that dropout keeps."""
        kept = Kept(self.new(self.edges, self.leads, dtype=torch.uint8), dropout.keep_scale)
        block = max(1024 // self.BH, 1)
        programs = -(-self.edges // (4 * block)) * self.head_blocks
        given = {"dropout": dropout, "kept": kept, "edges": self.edges, "leads": self.leads}
        given |= {"head_blocks": self.head_blocks, "BH": self.BH, "BE": block}
        with on(self.query):
            launch(edge_dropout_kernel, programs, given | {"TARGET": self.gpu.name}, warps=4)
        return kept

    def launch(self, kernel: Any, shares: Shares, arguments: dict[str, Any], **more: Any) -> None:
        """Start a kernel over all shares."""
        programs = shares.programs * self.head_blocks * arguments["columns"]
        launch(kernel, programs, arguments | shares._asdict() | more, more.pop("warps", self.warps))

    def merge(self, kernel: Any, shares: Shares, arguments: dict[str, Any], **more: Any) -> None:
        """Start a kernel over the ends of all shares but the last, in larger tiles."""
        width = self.BH * arguments["BD"]
        tile = {"BE": max(min(4096 // width, 64), 1)}
        programs = max(shares.programs - 1, 0) * self.head_blocks * arguments["columns"]
        launch(kernel, programs, arguments | shares._asdict() | more | tile, warps=4)


def in_rows(x: T) -> T:
    """Return x, or a copy by row if the elements of its rows are not next to each other."""
    if x is None or x.shape[-1] == 1 or x.stride(-1) == 1:
        return x
    return by_row(x, tuple(x.shape), 2).copy_(x)
