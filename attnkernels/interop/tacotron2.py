"""Location-sensitive attention of Tacotron 2, as NVIDIA and torchaudio have it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..nn import LocationSensitiveAttention
from .core.attend import attend, beyond
from .core.convention import PLAIN, ROW, Convention, Entry
from .core.live import Draw, Fused, Live, M, Results, trial_lengths

# NVIDIA wraps each layer in a module of its own; torchaudio does not.
CONVENTIONS = {
    "tacotron2": Convention(
        "NVIDIA's and torchaudio's Tacotron 2",
        LocationSensitiveAttention,
        (
            Entry("query_proj.weight", ("query_layer.linear_layer.weight", "query_layer.weight")),
            Entry("key_proj.weight", ("memory_layer.linear_layer.weight", "memory_layer.weight")),
            Entry("weight", ("v.linear_layer.weight", "v.weight"), ROW),
            Entry(
                "location_conv.weight",
                (
                    "location_layer.location_conv.conv.weight",
                    "location_layer.location_conv.weight",
                ),
            ),
            Entry(
                "location_proj.weight",
                (
                    "location_layer.location_dense.linear_layer.weight",
                    "location_layer.location_dense.weight",
                ),
            ),
        ),
        {**PLAIN, "cumulative": "both", "initial": "zeros", "detach_weights": False},
    )
}


class Location(Fused):
    """Attention of Tacotron 2: the context and the weights. The caller projects the keys."""

    scoring = staticmethod(lambda module: (_scoring(module.v),))

    def forward(
        self,
        attention_hidden_state: Tensor,
        memory: Tensor,
        processed_memory: Tensor,
        attention_weights_cat: Tensor,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        return attend(
            self.query_layer(attention_hidden_state),
            processed_memory + self.location_layer(attention_weights_cat),
            memory,
            _linear(self.v),
            taking_part=None if mask is None else ~mask,
        )


def _linear(layer: Any) -> Any:
    """Return the Linear itself, inside NVIDIA's wrapper."""
    return getattr(layer, "linear_layer", layer)


def _scoring(layer: Any) -> Any:
    """Return the Linear itself if the wrapper does nothing else."""
    inside = layer.__dict__
    alone = inside["_modules"].keys() == {"linear_layer"} and not inside["_parameters"]
    watched = inside["_forward_hooks"] or inside["_forward_pre_hooks"] or "forward" in inside
    return layer.linear_layer if alone and not watched else layer


def _trial(module: Any, draw: Draw) -> Results:
    memory = draw(2, M, _linear(module.memory_layer).in_features)
    query = draw(2, _linear(module.query_layer).in_features)
    padded = beyond(trial_lengths(memory), M)
    return module.forward(query, memory, module.memory_layer(memory), draw(2, 2, M), padded)


_ARGUMENTS = (
    "attention_hidden_state",
    "memory",
    "processed_memory",
    "attention_weights_cat",
    "mask",
)
LIVE = (Live("tacotron2", ("Attention", "_Attention"), _ARGUMENTS, Location, _trial),)
