"""The map from another library's parameters of additive attention to those of a module.

Libraries differ in more than names:

- TensorFlow's dense kernels and AllenNLP's matrices are (in, out); those of `torch.nn.Linear` are
  (out, in).
- The scoring vector is (hidden,), (1, hidden) or (hidden, 1), or a number for all of it.
- Biases of the query, key and location projections enter only as their sum. They are added into
  ``query_proj.bias``, the module's only bias.
- A bias of the score adds the same number to every key of a query, so the softmax cancels it.
- Some settings are in no checkpoint, such as ESPnet's factor of 2 on the scores.
- A projection that comes before or after attention is not part of it and is left to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ...nn import GraphAttention, Projections

Attends: TypeAlias = Projections | GraphAttention

SAME, TRANSPOSED, ROW, COLUMN = "same", "transposed", "row", "column"
SCALAR, CONV2D, HEADS, REPEATED = "scalar", "conv2d", "heads", "repeated"


@dataclass(frozen=True)
class Entry:
    """One entry of a checkpoint.

    Attributes:
        target: the parameter it goes into, as `state_dict` names it. Entries with the same target
            are added. Entries of ``gain`` and ``bias`` exist for a normalised module only.
        names: the names the entry may have; the checkpoint uses one of them. With `HEADS` there is
            one entry per head, and "{}" stands for the head's number.
        layout: the entry's shape relative to the parameter's, see `shape`.
        optional: True if the checkpoint may lack the entry.
    """

    target: str
    names: tuple[str, ...]
    layout: str = SAME
    optional: bool = False

    def shape(self, wanted: tuple[int, ...], num_heads: int) -> tuple[int, ...]:
        """Return the shape of the entry for a parameter of shape ``wanted``."""
        return {
            SAME: wanted,
            TRANSPOSED: wanted[::-1],
            ROW: (1, *wanted),
            COLUMN: (*wanted, 1),
            SCALAR: (),
            REPEATED: (),
            CONV2D: (*wanted[:-1], 1, *wanted[-1:]),
            HEADS: (wanted[0] // num_heads if wanted else 0, *wanted[1:]),
        }[self.layout]


@dataclass(frozen=True)
class Convention:
    """The map from one attention class of one library to a module.

    Attributes:
        source: the library and its class, as reports name them.
        module: the class of `attnkernels.nn` that computes the same.
        entries: the entries of a checkpoint.
        settings: attributes of the module that no checkpoint records, each with the value it must
            have or a function of the module that returns that value.
        identities: matrices that the library does not have; they are set to the identity.
        heads: True if the library's scoring vector has a dimension of heads even for one head.
        cancels: biases of the score, (1,), which the checkpoint may have and the softmax cancels.
        left: names, or beginnings of names that end in a dot, of entries that the checkpoint may
            have and that belong to no attention, with a phrase that says what each is.
    """

    source: str
    module: type[Attends]
    entries: tuple[Entry, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    identities: tuple[str, ...] = ()
    heads: bool = False
    cancels: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)


# Settings that many libraries share: tanh, unscaled scores, one head and no normalisation; and the
# same with one of them left to the module.
PLAIN: Mapping[str, Any] = {
    "activation": "tanh",
    "scale": 1.0,
    "num_heads": 1,
    "normalize": False,
}
ANY_NORMALIZE = {name: value for name, value in PLAIN.items() if name != "normalize"}
ANY_SCALE = {name: value for name, value in PLAIN.items() if name != "scale"}


def linears(
    query: str, key: str, weight: str, *, query_bias: bool = False, key_bias: bool = False
) -> tuple[Entry, ...]:
    """Return the entries of three `torch.nn.Linear` layers, the last of them (1, hidden)."""
    biases = [name for name, there in ((query, query_bias), (key, key_bias)) if there]
    return (
        Entry("query_proj.weight", (f"{query}.weight",)),
        Entry("key_proj.weight", (f"{key}.weight",)),
        Entry("weight", (f"{weight}.weight",), ROW),
        *(Entry("query_proj.bias", (f"{name}.bias",)) for name in biases),
    )


def location(conv: str, proj: str, layout: str = SAME) -> tuple[Entry, ...]:
    """Return the entries of the two layers that make location features, without biases."""
    return (
        Entry("location_conv.weight", (f"{conv}.weight",), layout),
        Entry("location_proj.weight", (f"{proj}.weight",)),
    )
