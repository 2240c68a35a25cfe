"""One call as its kernels see it: every argument by the name the kernels give it."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from ....ops.shapes import leading_shape
from ..device.prepare import CHUNK, WEIGHT_TAIL, prepare_kernel
from . import configs
from .configs import Tile
from .geometry import Owned, contiguous, lead_of, merged, scaled
from .launch import launch, power_of_two, precision, target

_BY_ROWS = ("query", "key", "value")  # their strides are not scaled: see kernels/rows.py


class Call:
    """Sizes, tensors, strides and options. `arguments` is what launch() hands to kernels."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        weight: Tensor,
        activation: int,
        negative_slope: float,
        scale: float,
        value: Tensor | None = None,
        attn_mask: Tensor | None = None,
        key_lengths: Tensor | None = None,
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
        seed: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
    ) -> None:
        query, key = _near(query), _near(key)
        value = None if value is None else _near(value)
        self.query, self.key, self.weight = query, key, weight
        self.varlen = cu_seqlens_q is not None
        self.sequences = cu_seqlens_q.shape[0] - 1 if cu_seqlens_q is not None else 1
        self.lead = leading_shape(
            query.shape[:-2],
            key.shape[:-2],
            weight.shape[:-1],
            () if value is None else value.shape[:-2],
            () if attn_mask is None else attn_mask.shape[:-2],
            () if key_lengths is None else key_lengths.shape,
        )
        self.leads = prod(self.lead)
        (self.n, self.d), self.m = query.shape[-2:], key.shape[-2]
        self.dv = 0 if value is None else value.shape[-1]
        self.lengths = key_lengths
        self.target = target(query.device)
        mask = _pairwise(attn_mask, self.n, self.m)
        self._owned = {
            "query": lead_of(query, 2),
            "key": lead_of(key, 2),
            "value": lead_of(value, 2),
            "weight": lead_of(weight, 1),
            "mask": lead_of(mask, 2),
            "length": lead_of(key_lengths, 0),
        }
        self.arguments: dict[str, Any] = {
            "query": query,
            "query_row": query.stride(-2),
            "query_unit": query.stride(-1),
            "key": key,
            "key_row": key.stride(-2),
            "key_unit": key.stride(-1),
            "value": query if value is None else value,
            "value_row": 0 if value is None else value.stride(-2),
            "value_unit": 0 if value is None else value.stride(-1),
            "weight": weight,
            "weight_unit": weight.stride(-1),
            "mask": query if mask is None else mask,
            "mask_row": 0 if mask is None else mask.stride(-2),
            "mask_column": 0 if mask is None else mask.stride(-1),
            "lengths": query if key_lengths is None else key_lengths,
            "cu_seqlens_q": query if cu_seqlens_q is None else cu_seqlens_q,
            "cu_seqlens_k": query if cu_seqlens_k is None else cu_seqlens_k,
            "sequences": self.sequences,
            "seed": query if seed is None else seed,
            "threshold": int(dropout_p * 2**32),
            "keep_scale": 0.0 if dropout_p == 1 else 1 / (1 - dropout_p),
            "leads": self.leads,
            "n": self.n,
            "m": self.m,
            "d": self.d,
            "dv": self.dv,
            "scale": scale,
            "negative_slope": negative_slope,
            "ACTIVATION": activation,
            "MASK": 0 if mask is None else 1 if mask.dtype == torch.bool else 2,
            "CAUSAL": is_causal,
            "LENGTHS": key_lengths is not None,
            "DROPOUT": seed is not None,
            "VARLEN": self.varlen,
            "TARGET": self.target.name,
            "PRECISION": precision(self.target),
            "BV": configs.VALUE_COLUMNS,
        }

    def strides(self, **made: Owned) -> dict[str, Any]:
        """The leading dimensions, and strides over them of the inputs and of what was made."""
        owned = self._owned | made
        sizes, *strides = merged(self.lead, list(owned.values()))
        arguments = {"sizes": scaled(sizes)}
        for name, each in zip(owned, strides, strict=True):
            arguments[f"{name}_strides"] = each if name in _BY_ROWS else scaled(each)
        return arguments

    def new(self, *shape: int) -> Tensor:
        """float32 on the device of the call."""
        return self.query.new_empty(shape, dtype=torch.float32)

    @property
    def step(self) -> bool:
        """So few queries that preparing the keys would cost more than it saves."""
        return not self.varlen and self.n <= configs.STEP_QUERIES

    def tiles(self, rows: int, block: int) -> int:
        """Tiles of all sequences of a leading index; see rows.sequence_of for varlen."""
        return rows // block + self.sequences if self.varlen else -(-rows // block)

    def tile(self, tiles: tuple[Tile, ...]) -> Tile:
        """Of the tiles that give every processor four warps, the one that costs least.

        The last of `tiles`, the smallest, where none does.
        """
        n, m = (-(-rows // max(self.sequences, 1)) for rows in (self.n, self.m))

        def programs(tile: Tile) -> int:
            return self.leads * self.sequences * -(-n // tile.BI) * -(-m // tile.BJ)

        def cost(tile: Tile) -> float:
            loads = 1 + 8 / tile.BI  # a larger tile shares more of them
            return programs(tile) * tile.BI * tile.BJ * loads

        filling = [t for t in tiles if programs(t) * t.warps >= 4 * self.target.processors]
        return min(filling, key=cost, default=tiles[-1])

    def parts(self, programs: int, warps: int, most: int) -> int:
        """Among how many programs to share what `programs` do, so that they fill the device."""
        return max(1, min(self.target.room(warps) // max(programs, 1), most))


class Prepared:
    """Panels, ranges and weights of a call (kernels/prepare.py), for tiles of one shape."""

    def __init__(self, call: Call, tile: Tile) -> None:
        self.call, self.tile = call, tile
        query, key, weight = call.query, call.key, call.weight
        self.query_tiles, self.key_tiles = call.tiles(call.n, tile.BI), call.tiles(call.m, tile.BJ)
        padded, chunks = (call.d + 3) // 4 * 4, -(-call.d // CHUNK.value)
        query_lead, key_lead, weight_lead = query.shape[:-2], key.shape[:-2], weight.shape[:-1]
        if call.lengths is not None:  # beyond the length a panel holds 0, whatever the key does
            key_lead = torch.Size(leading_shape(key_lead, call.lengths.shape))
        query_programs = prod(query_lead) * self.query_tiles * chunks
        key_programs = prod(key_lead) * self.key_tiles * chunks
        made: dict[str, Any] = {
            "query_panels": call.new(*query_lead, self.query_tiles, padded * tile.BI),
            "query_ranges": call.new(*query_lead, self.query_tiles, chunks * 2),
            "query_tiles": self.query_tiles,
            "key_panels": call.new(*key_lead, self.key_tiles, padded * tile.BJ),
            "key_ranges": call.new(*key_lead, self.key_tiles, chunks * 2),
            "key_tiles": self.key_tiles,
            "weights": call.new(*weight_lead, padded + WEIGHT_TAIL.value),
            "padded": padded,
            "BI": tile.BI,
            "BJ": tile.BJ,
        }
        query_sizes, query_strides = merged(query_lead, [lead_of(query, 2)])
        keys = [lead_of(key, 2), lead_of(call.lengths, 0)]
        key_sizes, key_strides, length_strides = merged(key_lead, keys)
        weight_sizes, weight_strides = merged(weight_lead, [lead_of(weight, 1)])
        launch(
            prepare_kernel,
            query_programs + key_programs + prod(weight_lead),
            call.arguments | made,
            warps=4,
            query_sizes=scaled(query_sizes),
            query_strides=query_strides,
            query_programs=query_programs,
            key_sizes=scaled(key_sizes),
            key_strides=key_strides,
            key_programs=key_programs,
            length_strides=scaled(length_strides),
            weight_sizes=scaled(weight_sizes),
            weight_strides=scaled(weight_strides),
        )
        strides = call.strides(
            query_panel=contiguous(query_lead, self.query_tiles),
            key_panel=contiguous(key_lead, self.key_tiles),
            weight=contiguous(weight_lead, padded + WEIGHT_TAIL.value),
        )
        self.arguments = call.arguments | made | strides | tile.shape(call.target.lanes)
        self.arguments["CHUNKS"] = power_of_two(chunks)


def _near(x: Tensor) -> Tensor:
    """x, copied where a tile of its rows spans more than the 32-bit offsets inside a tile reach."""
    rows, columns = max(max(tile.BI, tile.BJ) for tile in configs.TILES), x.shape[-1]
    return x if rows * x.stride(-2) + columns * x.stride(-1) < 1 << 31 else x.contiguous()


def _pairwise(mask: Tensor | None, n: int, m: int) -> Tensor | None:
    """attn_mask with its last two dimensions expanded to (n, m)."""
    if mask is None:
        return None
    while mask.dim() < 2:
        mask = mask.unsqueeze(0)
    return mask.expand(*mask.shape[:-2], n, m)
