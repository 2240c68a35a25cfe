"""Attention to keys that other ranks hold, which come round one piece at a time.

Each rank sends its own pieces to the rank one place on, then two places on, and so forth. The next
piece is under way while one is computed. In the backward the shares of a piece's gradients go back
to its owner, under way while the next piece is computed. A piece that no query of a rank sees is
not sent to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ..backends.base import Backend
from ..ops.codes import BLOCK, DETERMINISTIC, KEY, QUERY, VALUE, WEIGHT
from ..ops.shapes import accumulate_dtype, attention_lead
from ..ops.signature import Options
from .blocks import BITS, Block, Inputs, Outer, as_softmax, part_of
from .buffers import Buffers
from .shards import Rows, Window, cut
from .transfer import Group, Transfer


class Cut(NamedTuple):
    """The number of pieces of a rank's keys and queries, and the least rows of one.

    They are few enough to keep the cores busy, and so many that those under way take little memory.
    """

    keys: int
    queries: int
    least_keys: int
    least_queries: int


ON_GPU = Cut(16, 4, 512, 2048)  # whose many cores want more tiles at a time
ON_CPU = Cut(32, 8, 256, 1024)


class Round(NamedTuple):
    """The work of a rank between two transfers: a piece comes, and one of its own goes."""

    owner: int
    incoming: Rows | None
    reader: int
    outgoing: Rows | None


@dataclass(frozen=True)
class Plan:
    """All that is the same for the passes of a call.

    Attributes:
        group: the ranks.
        queries, keys: the rows of every rank, in pieces.
        window: that of the whole sequences.
        backend: computes the blocks.
        options: see `Block`.
        m: the keys of all ranks.
        moved: the bits of KEY and VALUE whose gradients some rank wants.
    """

    group: Group
    queries: list[list[Rows]]
    keys: list[list[Rows]]
    window: Window
    backend: Backend
    options: Options
    m: int
    moved: int

    def rounds(self) -> list[Round]:
        """Return what this rank does, one round after another, after its own keys.

        All ranks have the same rounds, even those without a piece, so that transfers between two
        ranks begin in one order on both.
        """
        group, most = self.group, max(map(len, self.keys))
        found = []
        for step in range(1, group.size):
            owner, reader = (group.rank - step) % group.size, (group.rank + step) % group.size
            for place in range(most):
                incoming = self._piece(owner, group.rank, place)
                outgoing = self._piece(group.rank, reader, place)
                found.append(Round(owner, incoming, reader, outgoing))
        return found

    @property
    def most_moved(self) -> int:
        """The keys of the longest piece that goes to another rank."""
        lengths = [piece.length for pieces in self.keys for piece in pieces]
        return max(lengths, default=0) if self.group.size > 1 else 0

    def _piece(self, owner: int, reader: int, place: int) -> Rows | None:
        """Return piece number `place` of the owner's keys if a query of the reader sees it."""
        if place >= len(self.keys[owner]):
            return None
        piece = self.keys[owner][place]
        seen = any(self.window.seen(queries, piece) for queries in self.queries[reader])
        return piece if seen else None

    def blocks(self, given: Inputs, keys: Rows) -> Iterator[tuple[Rows, Block]]:
        """Yield the blocks of the rank's queries against one piece; `given` has its keys."""
        for queries in self.queries[self.group.rank]:
            if self.window.seen(queries, keys):
                of_block = given._replace(query=given.query[..., queries.here, :])
                yield queries, Block(of_block, self.options, self.window, queries, keys)


class Ring:
    """The pieces that a rank works on: its own, then those that come round."""

    def __init__(self, plan: Plan, key: Tensor, value: Tensor) -> None:
        self.plan, self.own = plan, (key, value)
        self.rounds = plan.rounds()
        # one that is computed with, and one that is coming
        self.buffers = [Buffers(x, plan.most_moved, x.dtype, 2) for x in self.own]

    def __iter__(self) -> Iterator[tuple[Round | None, Rows, Tensor, Tensor]]:
        """Yield (round, piece, keys, values); the round is None for the rank's own pieces.

        A round that brings no piece has none, and then is there for what it sends.
        """
        coming = self._start(0)
        for piece in self.plan.keys[self.plan.group.rank]:
            key, value = (x[..., piece.here, :] for x in self.own)
            yield None, piece, key, value
        for at, turn in enumerate(self.rounds):
            transfer, key, value = coming
            transfer.wait()
            coming = self._start(at + 1)
            yield turn, turn.incoming or Rows(0, 0, 0), key, value
            del key, value

    def _start(self, at: int) -> tuple[Transfer, Tensor, Tensor]:
        key, value = (x[..., :0, :] for x in self.own)
        if at >= len(self.rounds):
            return Transfer([], []), key, value
        turn = self.rounds[at]
        sends, receives = [], []
        if turn.outgoing is not None:
            for x in self.own:
                sends.append((x[..., turn.outgoing.here, :].contiguous(), turn.reader))
        if turn.incoming is not None:
            key, value = (each.take(turn.incoming.length) for each in self.buffers)
            receives = [(key, turn.owner), (value, turn.owner)]
        return self.plan.group.start(sends, receives), key, value


class Sums:
    """The state of the softmax of every row, to which blocks are added: docs/math.md, section 2."""

    def __init__(self, like: Tensor, lead: tuple[int, ...], n: int, dv: int) -> None:
        acc = accumulate_dtype(like.dtype)
        self.context = like.new_zeros((*lead, n, dv), dtype=acc)
        # all that stays is made before blocks take memory
        self.row_lse = like.new_empty((*lead, n), dtype=acc)
        self.softmax = like.new_zeros((*lead, 2 * n), dtype=acc)  # as the operators take it
        self.high, self.total = self.softmax.unflatten(-1, (n, 2)).unbind(-1)
        self.high.fill_(-torch.inf)

    def add(self, rows: slice, context: Tensor, softmax: Tensor) -> None:
        """Merge what a block of these rows gave."""
        high, total = softmax.unflatten(-1, (-1, 2)).unbind(-1)
        before, sum_before = self.high[..., rows], self.total[..., rows]
        top = torch.maximum(before, high)
        empty = top == -torch.inf
        old, new = (
            torch.where(empty, 0.0, torch.exp(at - top)) * x
            for at, x in ((before, sum_before), (high, total))
        )
        whole = old + new
        divisor = torch.where(whole == 0, 1.0, whole)
        mean = self.context[..., rows, :]
        mean.mul_((old / divisor).unsqueeze(-1)).addcmul_(context, (new / divisor).unsqueeze(-1))
        before.copy_(top)
        sum_before.copy_(whole)

    def lse(self) -> Tensor:
        """Return the log-sum-exp of every row, -inf for one without keys."""
        empty = self.total == 0
        torch.log(torch.where(empty, 1.0, self.total), out=self.row_lse)
        return self.row_lse.add_(self.high).masked_fill_(empty, -torch.inf)


class RingAttention(torch.autograd.Function):
    """Context, lse and weights of the rank's queries, in the dtype of arithmetic."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        given = Inputs(*tensors)
        lead = attention_lead(*given, plan.options.key_lengths)
        n, wanted = given.query.shape[-2], plan.options.return_weights
        sums = Sums(given.query, lead, n, given.value.shape[-1])
        whole = sums.context.new_zeros(*lead, n, plan.m) if wanted else None
        parts = []
        for _, piece, key, value in Ring(plan, given.key, given.value):
            of_piece = given._replace(key=key, value=value)
            for queries, block in plan.blocks(of_piece, piece):
                context, lse, found = block.forward(plan.backend, wanted)
                if whole is not None:
                    whole[..., queries.here, piece.whole] = found
                    parts.append((queries.here, piece.whole, lse))
                    found = as_softmax(lse)
                sums.add(queries.here, context, found)
                del context, found  # before the next block takes memory
        lse = sums.lse()
        for rows, columns, part in parts:
            assert whole is not None
            share = torch.where(part == -torch.inf, 0.0, torch.exp(part - lse[..., rows]))
            whole[..., rows, columns] *= share.unsqueeze(-1)
        softmax = sums.softmax if whole is None else whole
        ctx.save_for_backward(*given, sums.context, lse, softmax)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        return sums.context, lse, whole

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph must be False for context_parallel_attention, which has no second"
                " derivatives, got True: use additive_attention on one device"
            )
        plan: Plan = ctx.plan
        *tensors, context, lse, softmax = ctx.saved_tensors
        return None, *_Backward(plan, Inputs(*tensors), (context, lse, softmax), grads, ctx).run()

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        raise NotImplementedError(
            "context_parallel_attention has no forward-mode derivatives: use additive_attention on"
            " one device"
        )


class _Backward:
    """The gradients of a rank's inputs: of its query, key and value, and its share of the rest."""

    def __init__(
        self, plan: Plan, given: Inputs, outputs: tuple[Tensor, ...], grads: Any, ctx: Any
    ) -> None:
        self.plan, self.given = plan, given
        self.context, self.lse, self.softmax = outputs
        self.grad_context, self.grad_lse, self.grad_weights = grads
        acc = accumulate_dtype(given.query.dtype)
        self.wants = [
            need and x is not None for need, x in zip(ctx.needs_input_grad[1:], given, strict=True)
        ]
        wanted = sum(bit for bit, want in zip(BITS, self.wants, strict=True) if want)
        self.wanted = wanted | plan.moved | BLOCK
        if torch.are_deterministic_algorithms_enabled():
            self.wanted |= DETERMINISTIC
        self.sums = [
            torch.zeros_like(x, dtype=acc, memory_format=torch.contiguous_format)
            if x is not None and self.wanted & bit
            else None
            for x, bit in zip(given, BITS, strict=True)
        ]
        moved = [x for x, bit in ((given.key, KEY), (given.value, VALUE)) if plan.moved & bit]
        # of others' pieces, a share that is computed and one that is going; of own ones, one coming
        self.going, self.coming = (
            [Buffers(x, plan.most_moved, acc, number) for x in moved] for number in (2, 1)
        )
        # sum_j a_ij da_ij of (E4) over the keys of all blocks
        self.of_weights = None
        if self.grad_weights is not None:
            self.of_weights = (self.grad_weights * self.softmax).sum(-1)

    def run(self) -> list[Tensor | None]:
        """Go round, and return the gradients in the dtypes of the inputs."""
        ring = Ring(self.plan, self.given.key, self.given.value)
        going: tuple[Transfer, Rows | None, list[Tensor]] = (Transfer([], []), None, [])
        for turn, piece, key, value in ring:
            if turn is None:
                self._piece(piece, key, value, self._own(piece))
                continue
            shares = [each.take(piece.length).zero_() for each in self.going]
            self._piece(piece, key, value, shares)
            self._arrived(*going)
            going = self._return(turn, shares)
        self._arrived(*going)
        return [
            x.to(of.dtype) if want and x is not None and of is not None else None
            for x, of, want in zip(self.sums, self.given, self.wants, strict=True)
        ]

    def _piece(self, piece: Rows, key: Tensor, value: Tensor, shares: list[Tensor]) -> None:
        """Add the gradients of a piece to `shares`, those that are moved, and to the sums."""
        given = self.given._replace(key=key, value=value)
        for queries, block in self.plan.blocks(given, piece):
            found = block.backward(self.plan.backend, self._outer(queries, piece), self.wanted)
            moved = iter(shares)
            for place, (grad, bit) in enumerate(zip(found, BITS, strict=True)):
                if grad is None or not self.wanted & bit:
                    continue
                total = self.sums[place]
                assert total is not None
                if bit in (KEY, VALUE):
                    next(moved).add_(grad)
                elif bit == QUERY:
                    total[..., queries.here, :] += grad
                elif bit == WEIGHT:
                    total += grad
                else:
                    part_of(total, queries, piece).add_(grad)
            del found, grad  # before the next block takes memory

    def _outer(self, queries: Rows, piece: Rows) -> Outer:
        rows, lse = queries.here, self.grad_lse
        lse = None if lse is None else lse[..., rows]
        weights, softmax = None, self.softmax
        if self.grad_weights is not None and self.of_weights is not None:
            # the operator sums over the keys of its block: give it the rest as a gradient of lse
            weights = self.grad_weights[..., rows, piece.whole]
            softmax = self.softmax[..., rows, piece.whole]
            rest = (weights * softmax).sum(-1) - self.of_weights[..., rows]
            lse = rest if lse is None else lse + rest
        elif self.plan.options.return_weights:
            softmax = as_softmax(self.lse[..., rows])
        else:
            softmax = softmax.unflatten(-1, (-1, 2))[..., rows, :].flatten(-2)
        context = self.context[..., rows, :]
        dc = None if self.grad_context is None else self.grad_context[..., rows, :]
        return Outer(dc, lse, weights, context, self.lse[..., rows], softmax)

    def _return(
        self, turn: Round, shares: list[Tensor]
    ) -> tuple[Transfer, Rows | None, list[Tensor]]:
        """Send shares to the owner of their piece, and expect those of an own piece."""
        sends, receives = [], []
        if turn.incoming is not None:
            sends = [(x, turn.owner) for x in shares]
        if turn.outgoing is not None:
            receives = [(each.take(turn.outgoing.length), turn.reader) for each in self.coming]
        transfer = self.plan.group.start(sends, receives)
        return transfer, turn.outgoing, [x for x, _ in receives]

    def _arrived(self, transfer: Transfer, piece: Rows | None, shares: list[Tensor]) -> None:
        """Add shares to the gradients of an own piece."""
        transfer.wait()
        if piece is not None:
            for total, share in zip(self._own(piece), shares, strict=True):
                total += share

    def _own(self, piece: Rows) -> list[Tensor]:
        """Return the gradients of an own piece that are moved, key's first."""
        sums = zip(self.sums[1:3], (KEY, VALUE), strict=True)
        return [x[..., piece.here, :] for x, bit in sums if x is not None and self.plan.moved & bit]


def pieces(
    queries: list[list[Rows]], keys: list[list[Rows]], device: torch.device
) -> tuple[list[list[Rows]], list[list[Rows]]]:
    """Return the queries and the keys of every rank in pieces."""
    by = ON_CPU if device.type == "cpu" else ON_GPU
    return (
        [cut(rows, by.queries, by.least_queries) for rows in queries],
        [cut(rows, by.keys, by.least_keys) for rows in keys],
    )
