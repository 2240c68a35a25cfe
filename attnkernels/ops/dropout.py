"""Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3; SC 2011), in torch.

The generator is counter-based: the bits of a pair depend only on the seed and on the position of
the pair. Every backend draws the same mask, forward and backward, at any number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return four words of 32 random bits per counter; words are int64 tensors and broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _product(c0, _MULTIPLIERS[0])
        high1, low1 = _product(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def keep_mask(seed: Tensor, dropout_p: float, batch: Tensor, n: int, m: int) -> Tensor:
    """Return bool (*L, n, m): True for the pairs (b, i, j) that dropout keeps.

    seed is a 0-d int64 tensor, batch int64 (*L) holds b. One counter serves four neighbouring keys:
    (j // 4, i, low word of b, high word of b), word j % 4. For a block of a larger problem, seed is
    (3,): the seed, and the places of the first query and key in that problem, where that of the key
    is a multiple of 4.
    """
    b = batch[..., None, None]
    i = torch.arange(n, device=batch.device).unsqueeze(-1)
    group = torch.arange((m + 3) // 4, device=batch.device)
    if seed.dim():
        seed, first_query, first_key = seed.unbind()
        i, group = i + first_query, group + first_key // 4
    words = philox((group, i, b & _WORD, b >> 32), (seed & _WORD, seed >> 32))
    bits = torch.stack(words, -1).flatten(-2)[..., :m]
    return bits >= int(dropout_p * 2**32)


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """Return the high and the low word of a product of two words.

    Multiply the halves of `word`, so that int64 never overflows: torch.compile generates C++, where
    overflow is undefined and has given wrong words.
    """
    lower = (word & 0xFFFF) * multiplier
    upper = (word >> 16) * multiplier + (lower >> 16)
    return upper >> 16, (upper & 0xFFFF) << 16 | lower & 0xFFFF
