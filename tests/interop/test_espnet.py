"""ESPnet's AttLoc and AttMultiHeadAdd, swapped: steps with arguments of a few."""

from __future__ import annotations

import torch
from helpers.interop_swap import D, E, plain, swapped
from interop.libraries import SWAPS


def test_a_window_of_frames_is_the_libraries_own_matter() -> None:
    """The steps before and after the window are fused."""
    module = swapped(SWAPS["espnet-loc"])
    library, frames, states = plain(module), torch.randn(1, 9, E), torch.randn(3, 1, D)
    weights = {module: None, library: None}
    for state, window in zip(states, ({}, {"last_attended_idx": 4}, {}), strict=True):
        found = {
            each: each(frames, [9], state, past, 2.0, **window) for each, past in weights.items()
        }
        weights = {each: w for each, (_, w) in found.items()}
        for x, y in zip(found[module], found[library], strict=True):
            torch.testing.assert_close(x, y)
        assert int((weights[module] == 0).sum()) == (5 if window else 0)
    windowed = module(frames, [9], state, None, 2.0, 2, backward_window=0, forward_window=1)
    assert windowed[1].argmax() == 2 and windowed[1].max() == 1


def test_arguments_of_other_attentions_are_ignored() -> None:
    """AttMultiHeadAdd takes any, as the decoder gives all attentions the same."""
    module = swapped(SWAPS["espnet-heads"])
    library, frames, state = plain(module), torch.randn(1, 9, E), torch.randn(1, D)
    found, wanted = (each(frames, [9], state, None, scaling=3.0) for each in (module, library))
    torch.testing.assert_close(found, wanted)
