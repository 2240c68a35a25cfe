"""Philox4x32-10 (Salmon et al., 2011) in Python's integers: a second opinion on dropout's bits."""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32_10(
    counter: tuple[int, int, int, int], key: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Run ten rounds: multiply, swap the high words crosswise, bump the key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & WORD, (p0 >> 32) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3


def keep_mask(seed: int, p: float, batches: int, n: int, m: int) -> Tensor:
    """Return bool (batches, n, m): True where 32 bits are at least floor(p 2^32)."""
    threshold = int(p * 2**32)
    key = (seed & WORD, seed >> 32)

    def kept(b: int, i: int, j: int) -> bool:
        return philox4x32_10((j // 4, i, b & WORD, b >> 32), key)[j % 4] >= threshold

    table = [[[kept(b, i, j) for j in range(m)] for i in range(n)] for b in range(batches)]
    return torch.tensor(table, dtype=torch.bool).reshape(batches, n, m)


def next_seed(manual_seed: int) -> int:
    """Return the seed that the next call draws, and leave the generator as manual_seed does."""
    torch.manual_seed(manual_seed)
    seed = int(torch.randint(0, 2**62, ()))
    torch.manual_seed(manual_seed)
    return seed
