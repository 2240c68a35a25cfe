"""One call as its kernels see it: every argument by the name the kernels give it."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from ....ops.codes import FAST, STEP_QUERIES
from ....ops.shapes import leading_shape
from ..device.mask import BOOL, FLOAT, NONE
from ..device.prepare import CHUNK, RANGES, WEIGHT_TAIL, prepare_kernel
from ..device.rows import SCALE, Band, Bounds, Dropout, Matrix, Panels, Vector
from . import configs
from .configs import Tile
from .geometry import Ints, Owned, contiguous, lead_of, merged, scaled
from .launch import launch, power_of_two, precision, target
from .recorder import Memory, current
from .sines import table


class Call:
    """Sizes, tensors and options of a call. `arguments` are those that every kernel may name."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        weight: Tensor,
        *,
        activation: int,
        negative_slope: float,
        scale: float,
        value: Tensor | None = None,
        attn_mask: Tensor | None = None,
        key_lengths: Tensor | None = None,
        key_starts: Tensor | None = None,
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
        seed: Tensor | None = None,
        dropout_p: float = 0.0,
        window_left: int | None = None,
        window_right: int | None = None,
    ) -> None:
        self.query, self.key, self.weight = _near(query), _near(key), weight
        self.value = None if value is None else _near(value)
        self.lengths, self.starts = key_lengths, key_starts
        self.sequences = 1 if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
        self.varlen = cu_seqlens_q is not None
        self.lead = leading_shape(
            query.shape[:-2],
            key.shape[:-2],
            weight.shape[:-1],
            () if value is None else value.shape[:-2],
            () if attn_mask is None else attn_mask.shape[:-2],
            () if key_lengths is None else key_lengths.shape,
            () if key_starts is None else key_starts.shape,
        )
        self.leads = prod(self.lead)
        (self.n, self.d), self.m = query.shape[-2:], key.shape[-2]
        self.dv = 0 if value is None else value.shape[-1]
        self.left, self.right = window_left, window_right
        self.mask = _pairwise(attn_mask, self.n, self.m)
        self.fast = bool(activation & FAST)
        self.target = target(query.device)
        self.arguments: dict[str, Any] = {
            "cu_seqlens_q": cu_seqlens_q,
            "cu_seqlens_k": cu_seqlens_k,
            "sequences": self.sequences,
            "dropout": None if seed is None else dropout_of(seed, dropout_p),
            "leads": self.leads,
            "n": self.n,
            "m": self.m,
            "d": self.d,
            "dv": self.dv,
            "scale": scale,
            "negative_slope": negative_slope,
            "ACTIVATION": activation & ~FAST,
            "sines": None,
            "MASK": _kind(self.mask),
            "band": self._band(),
            "TARGET": self.target.name,
            "PRECISION": precision(self.target, self.fast),
        }

    def sines(self) -> Tensor:
        """Return the table of (E14)."""
        sines = table(self.query.device)
        if (recorder := current()) is not None:
            recorder.constants.append(sines)
        return sines

    def _band(self) -> Band | None:
        if self.left is None and self.right is None:
            return None
        left, right = self.limits
        return Band(SCALE.value * left, SCALE.value * right)

    @property
    def limits(self) -> Ints:
        """Return how many keys a query sees before it and after it, at most."""
        left = self.n if self.left is None else min(self.left, self.n)
        return left, self.m if self.right is None else min(self.right, self.m)

    def seen_tiles(self, rows: int, block: int, tiles: int) -> int:
        """Return the most tiles of `block` keys, of `tiles`, that `rows` neighbours see."""
        return min(tiles, -(-(sum(self.limits) + rows) // block) + 1)

    def inputs(self, **made: Owned) -> dict[str, Any]:
        """Return the inputs as kernels take them, and the strides of `made` by their names.

        Sizes and strides are those of the leading dimensions that all of them broadcast to.
        """
        owned = {
            "query": lead_of(self.query, 2),
            "key": lead_of(self.key, 2),
            "value": lead_of(self.value, 2),
            "weight": lead_of(self.weight, 1),
            "mask": lead_of(self.mask, 2),
            "starts": lead_of(self.starts, 0),
            "lengths": lead_of(self.lengths, 0),
        } | made
        sizes, *each = merged(self.lead, list(owned.values()))
        strides = dict(zip(owned, each, strict=True))
        arguments: dict[str, Any] = {
            "sizes": scaled(sizes),
            "query": matrix(self.query, strides["query"]),
            "key": matrix(self.key, strides["key"]),
            "value": matrix(self.value, strides["value"]),
            "weight": vector(self.weight, strides["weight"], self.weight.stride(-1)),
            "mask": matrix(self.mask, scaled(strides["mask"])),
            "bounds": self.bounds(strides["starts"], strides["lengths"]),
        }
        return arguments | {name: scaled(strides[name]) for name in made}

    def bounds(self, starts: Ints, lengths: Ints) -> Bounds | None:
        """Return the keys that take part, with those strides over the leading dimensions."""
        if self.starts is None and self.lengths is None:
            return None
        return Bounds(vector(self.starts, starts), vector(self.lengths, lengths))

    def step_arguments(self, keys: int) -> dict[str, Any]:
        """Return the arguments of a kernel of device/step.py, for tiles of `keys` keys."""
        return self.arguments | self.inputs() | {"BJ": keys, "BD": configs.STEP_UNITS}

    def new(self, *shape: int, fill: float | None = None) -> Tensor:
        """Return a float32 tensor on the device of the call, unset without `fill`."""
        made = self.query.new_empty(shape, dtype=torch.float32)
        if fill is not None:
            made.fill_(fill)
        if (recorder := current()) is not None:
            recorder.memory.append(Memory(made, fill))
        return made

    @property
    def step(self) -> bool:
        """True if the queries are so few that preparing keys would cost more than it saves."""
        return not self.varlen and self.n <= STEP_QUERIES

    def tiles(self, rows: int, block: int) -> int:
        """Return the number of tiles per leading index; see rows.sequence_of for varlen."""
        return rows // block + self.sequences if self.varlen else -(-rows // block)

    def tile(self, tiles: tuple[Tile, ...], forward: bool = False) -> Tile:
        """Return the cheapest of the tiles that give every processor a program and four warps.

        Tiles by sines are among them if the call allows it.
        If none does, return the last of `tiles`, the smallest.
        """
        n, m = (-(-rows // max(self.sequences, 1)) for rows in (self.n, self.m))

        def programs(tile: Tile) -> int:
            seen = self.seen_tiles(tile.BI, tile.BJ, -(-m // tile.BJ))
            return self.leads * self.sequences * -(-n // tile.BI) * seen

        def cost(tile: Tile) -> float:
            loads = 1 + 8 / tile.BI  # a larger tile shares more of them
            each = configs.SINE_COSTS.get(tile, 1.0)
            return programs(tile) * tile.BI * tile.BJ * loads * each

        if self.fast:
            where = self.target
            tiles = (*configs.sine_tiles(where.name, where.capability, forward), *tiles)
        wanted = 4 * self.target.processors
        filling = [t for t in tiles if programs(t) * min(t.warps, 4) >= wanted]
        return min(filling, key=cost, default=tiles[-1])

    def parts(self, programs: int, warps: int, most: int) -> int:
        """Return the number of parts of `programs` programs that fill the device, up to `most`."""
        return max(1, min(self.target.room(warps) // max(programs, 1), most))


class Prepared:
    """Panels, ranges and weights of a call (device/prepare.py), for tiles of one shape.

    `exponentials` is False for a call whose inputs are tangents.
    """

    def __init__(self, call: Call, tile: Tile, exponentials: bool = True) -> None:
        self.call, self.tile = call, tile
        query, key, weight = call.query, call.key, call.weight
        self.query_tiles, self.key_tiles = call.tiles(call.n, tile.BI), call.tiles(call.m, tile.BJ)
        padded, chunks = (call.d + 3) // 4 * 4, -(-call.d // CHUNK.value)
        query_lead, key_lead, weight_lead = query.shape[:-2], key.shape[:-2], weight.shape[:-1]
        bounds = call.starts, call.lengths
        for each in bounds:  # a panel holds 0 for keys that take no part, whatever these hold
            if each is not None:
                key_lead = torch.Size(leading_shape(key_lead, each.shape))
        query_programs = prod(query_lead) * self.query_tiles * chunks
        key_programs = prod(key_lead) * self.key_tiles * chunks
        row = padded + WEIGHT_TAIL.value
        strides = call.inputs(
            query_panels=contiguous(query_lead, self.query_tiles),
            key_panels=contiguous(key_lead, self.key_tiles),
            weights=contiguous(weight_lead, row),
        )
        by_sines = tile in configs.SINE_COSTS
        new = _nothing if by_sines else call.new
        self.arguments: dict[str, Any] = {
            **call.arguments,
            **strides,
            "query_panels": Panels(
                new(*query_lead, self.query_tiles, padded * tile.BI),
                call.new(*query_lead, self.query_tiles, chunks * RANGES.value),
                strides["query_panels"],
            ),
            "query_tiles": self.query_tiles,
            "key_panels": Panels(
                new(*key_lead, self.key_tiles, padded * tile.BJ),
                call.new(*key_lead, self.key_tiles, chunks * RANGES.value),
                strides["key_panels"],
            ),
            "key_tiles": self.key_tiles,
            "weights": Vector(call.new(*weight_lead, row), strides["weights"]),
            "padded": padded,
            "SHAPE": tile.shape(call.target.lanes),
            "CHUNKS": power_of_two(chunks),
            "EXPONENTIALS": exponentials,
            "BI": tile.BI,
            "BJ": tile.BJ,
            "sines": call.sines() if by_sines else None,
            "BV": configs.SINE_VALUE_COLUMNS if by_sines else configs.VALUE_COLUMNS,
        }
        # the inputs by their own leading dimensions
        query_sizes, query_strides = merged(query_lead, [lead_of(query, 2)])
        key_sizes, key_strides, *bound_strides = merged(
            key_lead, [lead_of(key, 2), *(lead_of(each, 0) for each in bounds)]
        )
        weight_sizes, weight_strides = merged(weight_lead, [lead_of(weight, 1)])
        launch(
            prepare_kernel,
            query_programs + key_programs + prod(weight_lead),
            self.arguments,
            warps=4,
            query=matrix(query, query_strides),
            query_sizes=scaled(query_sizes),
            query_programs=query_programs,
            key=matrix(key, key_strides),
            key_sizes=scaled(key_sizes),
            key_programs=key_programs,
            weight=vector(weight, weight_strides, weight.stride(-1)),
            weight_sizes=scaled(weight_sizes),
            bounds=call.bounds(*bound_strides),
        )


def _nothing(*shape: int) -> None:
    """Return None, for panels that no kernel reads."""


def matrix(x: Tensor | None, strides: Ints) -> Matrix | None:
    """Return x as a kernel takes it, with those strides over the leading dimensions."""
    return None if x is None else Matrix(x, strides, x.stride(-2), x.stride(-1))


def vector(x: Tensor | None, strides: Ints, unit: int = 1) -> Vector | None:
    """Return x, which has one row or one number per leading index, as a kernel takes it."""
    return None if x is None else Vector(x, scaled(strides), unit)


def dropout_of(seed: Tensor, p: float) -> Dropout:
    """Return the dropout of a call as kernels take it."""
    first = seed[1:] if seed.dim() else None
    return Dropout(seed, SCALE.value * int(p * 2**32), 0.0 if p == 1 else 1 / (1 - p), first)


def _kind(mask: Tensor | None) -> int:
    """Return MASK of the kernels."""
    if mask is None:
        return NONE.value
    return BOOL.value if mask.dtype == torch.bool else FLOAT.value


def _near(x: Tensor) -> Tensor:
    """Return x, or a copy if 32-bit offsets do not reach every row of a tile."""
    rows, columns = max(max(tile.BI, tile.BJ) for tile in configs.TILES), x.shape[-1]
    return x if rows * x.stride(-2) + columns * x.stride(-1) < 1 << 31 else x.contiguous()


def _pairwise(mask: Tensor | None, n: int, m: int) -> Tensor | None:
    """Return attn_mask with its last two dimensions expanded to (n, m)."""
    if mask is None:
        return None
    while mask.dim() < 2:
        mask = mask.unsqueeze(0)
    return mask.expand(*mask.shape[:-2], n, m)
