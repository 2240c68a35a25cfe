"""The arguments of every operator, declared once.

Every backend has the same operators. schema, fakes, vmap and autograd derive from these
declarations and look up arguments by name. A new argument takes one line here, and one in
each function that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from . import codes

Operator: TypeAlias = Callable[..., Any]  # of torch.ops.attnkernels, or a function in its place
Values: TypeAlias = tuple[Any, ...]  # the arguments of an operator, in order


class Options(NamedTuple):
    """All arguments of a call besides query, key, value and weight.

    Its order is that of the arguments of `FORWARD`, where the activation is a code, and the
    precision a bit of it; return_lse is no argument.

    Attributes:
        attn_mask, key_lengths: see `attnkernels.additive_attention`.
        key_starts: the keys before a start are left out, as those from a length on are; see
            `attnkernels.AdditiveMemory.attend`.
        cu_seqlens_q, cu_seqlens_k: see `attnkernels.additive_attention_varlen`; both or neither.
        packed_key: the keys as the backend's `pack_keys` returned them.
        seed: the seed of dropout, 0-d int64; None without dropout. For a block of a larger problem
            (3,): see `ops.dropout.keep_mask`.
        window_left, window_right: how many keys before the position of a query take part, and how
            many after it: those of window_size and is_causal; None is no limit. In a block of a
            larger problem one of them may be negative, if n + window_right and m + window_left are
            positive.
        dropout_p, activation, negative_slope, scale, return_weights, precision: see
            `attnkernels.additive_attention`.
        return_lse: False if a backend may leave lse out, as None.
    """

    attn_mask: Tensor | None = None
    key_lengths: Tensor | None = None
    key_starts: Tensor | None = None
    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    packed_key: Tensor | None = None
    seed: Tensor | None = None
    dropout_p: float = 0.0
    window_left: int | None = None
    window_right: int | None = None
    activation: codes.ActivationName = "tanh"
    negative_slope: float = 0.2
    scale: float = 1.0
    return_weights: bool = False
    precision: codes.PrecisionName = "exact"
    return_lse: bool = True

    def seeded(self, seed: Tensor) -> Options:
        """Return these options with `seed`, in a third of the time that _replace takes."""
        return tuple.__new__(Options, self[:6] + (seed,) + self[7:])


class EdgeOptions(NamedTuple):
    """All arguments of attention over edges besides query, key, value and weight.

    Its order is that of the arguments of `SPARSE_FORWARD`, where the activation is a code.

    Attributes:
        edge_key, edge_bias: see `attnkernels.additive_attention_sparse`.
        target_begin, source, order, source_begin, target, place: see `attnkernels.Edges`.
        seed, dropout_p, activation, negative_slope, scale, return_weights: as in `Options`.
    """

    edge_key: Tensor | None
    edge_bias: Tensor | None
    target_begin: Tensor
    source: Tensor
    order: Tensor
    source_begin: Tensor
    target: Tensor
    place: Tensor
    seed: Tensor | None = None
    dropout_p: float = 0.0
    activation: codes.ActivationName = codes.OVER_EDGES
    negative_slope: float = 0.2
    scale: float = 1.0
    return_weights: bool = False


def scoring_options(
    activation: codes.ActivationName,
    negative_slope: float,
    scale: float,
    key_lengths: Tensor | None = None,
    packed_key: Tensor | None = None,
    precision: codes.PrecisionName = "exact",
) -> Options:
    """Return the options of scores, or of prepared keys, in half the time of Options(...)."""
    before = (None, key_lengths, None, None, None, packed_key, None, 0.0, None, None)
    return tuple.__new__(Options, (
        *before, activation, negative_slope, scale, False, precision, True,
    ))  # fmt: skip


class Argument(NamedTuple):
    """One argument of an operator.

    Attributes:
        name: as in the schema.
        type: as a schema writes it: "Tensor", "Tensor?", "int", "int?", "SymInt" (a size), "float"
            or "bool".
        trailing: the number of dimensions after the leading ones, for a tensor that broadcasts
            over the leading shape L.
        wanted: the bit of `wanted` that requests its gradient; 0 for none.
        whole: True if it has the whole shape L, so that vmap must add the mapped dimension.
        shared: True if it is the same for all of L, so that vmap cannot map over it.
    """

    name: str
    type: str = "Tensor"
    trailing: int | None = None
    wanted: int = 0
    whole: bool = False
    shared: bool = False


class Signature:
    """The arguments of one operator, in their order, and the names of its results."""

    def __init__(self, arguments: Sequence[Argument], results: Sequence[str]) -> None:
        self.arguments, self.results = tuple(arguments), tuple(results)
        self.names = tuple(each.name for each in arguments)
        self.tensors = tuple(each.name for each in arguments if each.type.startswith("Tensor"))
        self.leaves = tuple(each for each in arguments if each.wanted)
        """The arguments that may want a gradient."""

    def schema(self) -> str:
        """Return the schema without the operator's name, as torch.library takes it."""
        results = ", ".join(f"Tensor {name}" for name in self.results)
        arguments = ", ".join(f"{each.type} {each.name}" for each in self.arguments)
        return f"({arguments}) -> " + (f"({results})" if len(self.results) > 1 else "Tensor")

    def place(self, name: str) -> int:
        """Return the position of the argument `name`."""
        return self.names.index(name)

    def places(self, which: str) -> tuple[int, ...]:
        """Return the positions of the arguments whose attribute `which` is set."""
        return tuple(i for i, each in enumerate(self.arguments) if getattr(each, which))

    def named(self, values: Values) -> dict[str, Any]:
        """Return the values of all arguments by name."""
        return dict(zip(self.names, values, strict=True))

    def places_in(self, names: Sequence[str]) -> tuple[int, ...]:
        """Return the positions of the arguments among `names`, so that calls need no names."""
        return tuple(list(names).index(name) for name in self.names)

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Return (position of a tangent, position of its primal) of each tangent."""
        return tuple(
            (place, self.place(each.name.removesuffix(TANGENT)))
            for place, each in enumerate(self.arguments)
            if each.name.endswith(TANGENT)
        )


TANGENT = "_tangent"  # the suffix of the name of a tangent, after that of its primal


def _tangent(primal: Argument) -> Argument:
    return Argument(primal.name + TANGENT, "Tensor?", primal.trailing)


_QUERY = Argument("query", trailing=2, wanted=codes.QUERY)
_KEY = Argument("key", trailing=2, wanted=codes.KEY)
_VALUE = Argument("value", trailing=2, wanted=codes.VALUE)
_WEIGHT = Argument("weight", trailing=1, wanted=codes.WEIGHT)
_INPUTS = (
    _QUERY,
    _KEY,
    _VALUE,
    _WEIGHT,
    Argument("attn_mask", "Tensor?", trailing=2, wanted=codes.MASK),
    Argument("key_lengths", "Tensor?", trailing=0),
    Argument("key_starts", "Tensor?", trailing=0),
    Argument("cu_seqlens_q", "Tensor?", shared=True),
    Argument("cu_seqlens_k", "Tensor?", shared=True),
)
_SEED = Argument("seed", "Tensor?", shared=True)
_ACTIVATION = Argument("activation", "int")  # a code of `codes.ACTIVATIONS`
_SCORING = (_ACTIVATION, Argument("negative_slope", "float"), Argument("scale", "float"))
_OPTIONS = (
    Argument("dropout_p", "float"),
    Argument("window_left", "int?"),  # None costs half of what a number costs to pass
    Argument("window_right", "int?"),
    *_SCORING,
)
_WANTED = Argument("wanted", "int")  # a sum of bits of `codes`

FORWARD = Signature(
    (
        *_INPUTS,
        Argument("packed_key", "Tensor?", trailing=3),
        _SEED,
        *_OPTIONS,
        Argument("return_weights", "bool"),
    ),
    ("context", "lse", "weights"),
)
BACKWARD = Signature(
    (
        Argument("grad_context", "Tensor?", whole=True),
        Argument("grad_lse", "Tensor?", whole=True),
        Argument("grad_weights", "Tensor?", whole=True),
        *_INPUTS,
        _SEED,
        Argument("context", whole=True),
        Argument("lse", whole=True),
        Argument("weights", whole=True),
        *_OPTIONS,
        _WANTED,
    ),
    [each.name for each in _INPUTS if each.wanted],
)
SCORES = Signature((_QUERY, _KEY, _WEIGHT, *_SCORING), ("scores",))
SCORES_BACKWARD = Signature(
    (Argument("grad", whole=True), _QUERY, _KEY, _WEIGHT, *_SCORING, _WANTED),
    ("query", "key", "weight"),
)
# A tangent has the shape and the dtype of its primal; None stands for zeros. One of attn_mask
# exists only if the mask is floating, and does not count where a pair is excluded.
FORWARD_JVP = Signature(
    (
        *(_tangent(each) for each in _INPUTS if each.wanted),
        *_INPUTS,
        _SEED,
        *_OPTIONS,
        Argument("return_weights", "bool"),
    ),
    (*FORWARD.results, *(name + TANGENT for name in FORWARD.results)),
)
SCORES_JVP = Signature(
    (*map(_tangent, (_QUERY, _KEY, _WEIGHT)), *SCORES.arguments),
    ("scores", "scores" + TANGENT),
)
# Attention over edges; without a value, the keys are the values. An argument that wants a gradient
# has the whole leading shape.
_SPARSE_INPUTS = (
    _QUERY,
    _KEY,
    Argument("value", "Tensor?", trailing=2, wanted=codes.VALUE),
    _WEIGHT,
    Argument("edge_key", "Tensor?", trailing=2, wanted=codes.EDGE_KEY),
    Argument("edge_bias", "Tensor?", trailing=1, wanted=codes.EDGE_BIAS),
    Argument("target_begin", shared=True),
    Argument("source", shared=True),
    Argument("order", shared=True),
    Argument("source_begin", shared=True),
    Argument("target", shared=True),
    Argument("place", shared=True),
)
_SPARSE_OPTIONS = (Argument("dropout_p", "float"), *_SCORING)
SPARSE_FORWARD = Signature(
    (*_SPARSE_INPUTS, _SEED, *_SPARSE_OPTIONS, Argument("return_weights", "bool")),
    FORWARD.results,
)
SPARSE_BACKWARD = Signature(
    (
        *BACKWARD.arguments[:3],
        *_SPARSE_INPUTS,
        _SEED,
        Argument("context", whole=True),
        Argument("lse", whole=True),
        Argument("weights", whole=True),
        *_SPARSE_OPTIONS,
        _WANTED,
    ),
    [each.name for each in _SPARSE_INPUTS if each.wanted],
)
# Where the edges of each node begin, and their places, if they are sorted by `ends`.
SORT_EDGES = Signature(
    (Argument("ends", shared=True), Argument("nodes", "SymInt")), ("begin", "order")
)
# Scores of single queries to keys that see earlier weights; see `functional.stepwise`. Gradients
# that steps share are added to the tensors given for them.
_ALIGNED = [Argument(name, shared=True) for name in ("query", "key", "weight", "seen", "filter")]
ALIGNED_SCORES = Signature((*_ALIGNED, Argument("scale", "float")), ("scores",))
ALIGNED_SCORES_BACKWARD = Signature(
    (
        Argument("grad", shared=True),
        *_ALIGNED,
        Argument("grad_key", "Tensor(a!)?", shared=True),
        Argument("grad_weight", "Tensor(b!)?", shared=True),
        Argument("grad_filter", "Tensor(c!)?", shared=True),
        Argument("scale", "float"),
    ),
    ("query", "seen"),
)
PACK_KEYS = Signature((_KEY, _ACTIVATION), ("packed_key",))

SIGNATURES = {
    "forward": FORWARD,
    "backward": BACKWARD,
    "scores": SCORES,
    "scores_backward": SCORES_BACKWARD,
    "pack_keys": PACK_KEYS,
    "forward_jvp": FORWARD_JVP,
    "scores_jvp": SCORES_JVP,
    "sparse_forward": SPARSE_FORWARD,
    "sparse_backward": SPARSE_BACKWARD,
    "sort_edges": SORT_EDGES,
    "aligned_scores": ALIGNED_SCORES,
    "aligned_scores_backward": ALIGNED_SCORES_BACKWARD,
}
