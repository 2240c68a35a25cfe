"""How other libraries name, shape and use the parameters of additive attention: one table.

What differs between them, besides names:

- Dense kernels of TensorFlow and the matrices of AllenNLP are (in, out), Linear's are (out, in).
- The vector that scores is (hidden,), (1, hidden) or (hidden, 1).
- Biases of the query, the key and the location are only ever seen as their sum. They are added into
  ``query_proj.bias``, the one bias of a module.
- A bias of the score adds the same to all keys of a query, which the softmax cancels.
- ESPnet multiplies the scores by 2, which no checkpoint says; with heads by 1 / sqrt(d) of a head.
- Keras projects nothing: the projections of the module become the identity. Without ``use_scale``
  it learns nothing, and there is nothing to load.
- GATv2 and ESPnet with heads attend to projected values, which the caller makes: `forward` takes
  them as ``value``.
- What the first step sees as the step before is zeros, or 1 / length everywhere.
- A projection of the context (``mlp_out``, ``linear_out``) comes after attention: it is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...nn import AdditiveAttention, CoverageAttention, LocationSensitiveAttention, Projections

SAME, TRANSPOSED, ROW, COLUMN = "same", "transposed", "row", "column"
ONE, CONV2D, HEADS = "one", "conv2d", "heads"


@dataclass(frozen=True)
class Entry:
    """One entry of a checkpoint.

    Attributes:
        target: the parameter that it goes into, as `state_dict` names it. Entries with the same
            target are added. Those of ``gain`` and ``bias`` are there in a normalised module only.
        names: what the entry is called: one of these. With `HEADS` there is one entry a head, and
            "{}" stands for its number.
        layout: how it lies there, see `shape`.
        optional: whether it may be missing.
    """

    target: str
    names: tuple[str, ...]
    layout: str = SAME
    optional: bool = False

    def shape(self, wanted: tuple[int, ...], num_heads: int) -> tuple[int, ...]:
        """The shape of the entry for a parameter of the shape `wanted`."""
        return {
            SAME: wanted,
            TRANSPOSED: wanted[::-1],
            ROW: (1, *wanted),
            COLUMN: (*wanted, 1),
            ONE: (1,),
            CONV2D: (*wanted[:-1], 1, *wanted[-1:]),
            HEADS: (wanted[0] // num_heads if wanted else 0, *wanted[1:]),
        }[self.layout]


@dataclass(frozen=True)
class Convention:
    """How one attention of one library maps onto a module.

    Attributes:
        source: the library and its class.
        module: the class of `attnkernels.nn` that computes the same.
        entries: what the checkpoint must have.
        settings: attributes of the module and what they must be, which no checkpoint says; or a
            function of the module that says it.
        identities: matrices that the library does not have: they are set to the identity.
        heads: whether the vector that scores has a dimension of heads there, even of one.
        cancels: biases of the score, (1,), which may be there and make no difference.
        left: beginnings of names that may be there and belong to no attention, and what they are.
    """

    source: str
    module: type[Projections]
    entries: tuple[Entry, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    identities: tuple[str, ...] = ()
    heads: bool = False
    cancels: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)


def _linears(
    query: str, key: str, weight: str, *, query_bias: bool = False, key_bias: bool = False
) -> tuple[Entry, ...]:
    """The entries of three layers `torch.nn.Linear`, the last of them (1, hidden)."""
    biases = [name for name, there in ((query, query_bias), (key, key_bias)) if there]
    return (
        Entry("query_proj.weight", (f"{query}.weight",)),
        Entry("key_proj.weight", (f"{key}.weight",)),
        Entry("weight", (f"{weight}.weight",), ROW),
        *(Entry("query_proj.bias", (f"{name}.bias",)) for name in biases),
    )


def _tensorflow(target: str, name: str, layout: str = SAME) -> Entry:
    return Entry(target, (name, f"{name}:0"), layout)  # variables carry the number of the output


_ANY_NORMALIZE = {"activation": "tanh", "scale": 1.0, "num_heads": 1}
_PLAIN = {**_ANY_NORMALIZE, "normalize": False}
_ANY_SCALE = {name: value for name, value in _PLAIN.items() if name != "scale"}
_DOUBLED = {**_PLAIN, "scale": 2.0}
_SPEECHBRAIN = _linears("mlp_dec", "mlp_enc", "mlp_attn", query_bias=True, key_bias=True)
_SPEECHBRAIN_LEFT = {"mlp_out.": "projects the context, after attention"}
_ESPNET = _linears("mlp_dec", "mlp_enc", "gvec", key_bias=True)

CONVENTIONS: dict[str, Convention] = {
    "gnmt": Convention(
        "MLPerf's and NVIDIA's GNMT, BahdanauAttention",
        AdditiveAttention,
        (
            Entry("query_proj.weight", ("linear_q.weight",)),
            Entry("key_proj.weight", ("linear_k.weight",)),
            Entry("weight", ("linear_att",)),
            Entry("gain", ("normalize_scalar",), ONE),
            Entry("bias", ("normalize_bias",)),
        ),
        _ANY_NORMALIZE,
    ),
    "tfa": Convention(
        "TensorFlow Addons, BahdanauAttention",
        AdditiveAttention,
        (
            _tensorflow("query_proj.weight", "query_layer/kernel", TRANSPOSED),
            _tensorflow("key_proj.weight", "memory_layer/kernel", TRANSPOSED),
            _tensorflow("weight", "attention_v"),
            _tensorflow("gain", "attention_g"),
            _tensorflow("bias", "attention_b"),
        ),
        _ANY_NORMALIZE,
    ),
    # SpeechBrain's `scaling` is an argument of its constructor: give it as `scale`.
    "speechbrain": Convention(
        "SpeechBrain, ContentBasedAttention",
        AdditiveAttention,
        _SPEECHBRAIN,
        _ANY_SCALE,
        left=_SPEECHBRAIN_LEFT,
    ),
    "speechbrain-location": Convention(
        "SpeechBrain, LocationAwareAttention",
        LocationSensitiveAttention,
        (
            *_SPEECHBRAIN,
            Entry("location_conv.weight", ("conv_loc.weight",)),
            Entry("location_proj.weight", ("mlp_loc.weight",)),
            Entry("query_proj.bias", ("mlp_loc.bias",)),
        ),
        {**_ANY_SCALE, "cumulative": False, "initial": "uniform", "detach_weights": True},
        left=_SPEECHBRAIN_LEFT,
    ),
    "espnet-add": Convention(
        "ESPnet, AttAdd", AdditiveAttention, _ESPNET, _DOUBLED, cancels=("gvec.bias",)
    ),
    "espnet-loc": Convention(
        "ESPnet, AttLoc",
        LocationSensitiveAttention,
        (
            *_ESPNET,
            Entry("location_conv.weight", ("loc_conv.weight",), CONV2D),
            Entry("location_proj.weight", ("mlp_att.weight",)),
        ),
        {**_DOUBLED, "cumulative": False, "initial": "uniform", "detach_weights": False},
        cancels=("gvec.bias",),
    ),
    "espnet-cov": Convention(
        "ESPnet, AttCov",
        CoverageAttention,
        (
            *_ESPNET,
            Entry("coverage_proj.weight", ("wvec.weight",)),
            Entry("query_proj.bias", ("wvec.bias",)),
        ),
        {**_DOUBLED, "initial": "uniform"},
        cancels=("gvec.bias",),
    ),
    "espnet-heads": Convention(
        "ESPnet, AttMultiHeadAdd",
        AdditiveAttention,
        (
            Entry("query_proj.weight", ("mlp_q.{}.weight",), HEADS),
            Entry("query_proj.bias", ("mlp_q.{}.bias",), HEADS),
            Entry("key_proj.weight", ("mlp_k.{}.weight",), HEADS),
            Entry("weight", ("gvec.{}.weight",), HEADS),
        ),
        {
            "activation": "tanh",
            "normalize": False,
            "scale": lambda module: (module.hidden_dim // module.num_heads) ** -0.5,
        },
        heads=True,
        cancels=("gvec.{}.bias",),
        left={
            "mlp_v.": "projects the values, before attention",
            "mlp_o.": "projects the contexts, after attention",
        },
    ),
    "opennmt": Convention(
        'OpenNMT-py, GlobalAttention(attn_type="mlp")',
        AdditiveAttention,
        _linears("linear_query", "linear_context", "v", query_bias=True),
        _PLAIN,
        left={
            "linear_out.": "projects the context and the query, after attention",
            "linear_cover.": "adds coverage to the memory, before attention",
        },
    ),
    # NVIDIA's wraps each layer in one of its own, torchaudio's does not.
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
        {**_PLAIN, "cumulative": "both", "initial": "zeros", "detach_weights": False},
    ),
    "allennlp": Convention(
        "AllenNLP, AdditiveAttention",
        AdditiveAttention,
        (
            Entry("query_proj.weight", ("_w_matrix",), TRANSPOSED),
            Entry("key_proj.weight", ("_u_matrix",), TRANSPOSED),
            Entry("weight", ("_v_vector",), COLUMN),
        ),
        _PLAIN,
    ),
    "fairseq": Convention(
        "fairseq's Berard speech model, MLPAttention",
        AdditiveAttention,
        _linears("decoder_proj", "encoder_proj", "to_scores", key_bias=True),
        _PLAIN,
    ),
    # `attn_state` is what its caller makes of the weights, as is `scaling`: the module says both.
    "fairseq-location": Convention(
        "fairseq, LocationAttention",
        LocationSensitiveAttention,
        (
            Entry("query_proj.weight", ("proj_dec.weight",)),
            Entry("key_proj.weight", ("proj_enc.weight",)),
            Entry("query_proj.bias", ("proj_enc.bias",)),
            Entry("weight", ("proj_out.1.weight",), ROW),
            Entry("location_conv.weight", ("conv.weight",)),
            Entry("location_proj.weight", ("proj_attn.weight",)),
        ),
        _ANY_SCALE,
        cancels=("proj_out.1.bias",),
    ),
    "joeynmt": Convention(
        "JoeyNMT, BahdanauAttention",
        AdditiveAttention,
        _linears("query_layer", "key_layer", "energy_layer"),
        _PLAIN,
    ),
    "captioning": Convention(
        "the captioning tutorial of Show, Attend and Tell, Attention",
        AdditiveAttention,
        _linears("decoder_att", "encoder_att", "full_att", query_bias=True, key_bias=True),
        {**_PLAIN, "activation": "relu"},
        cancels=("full_att.bias",),
    ),
    "keras": Convention(
        "Keras, AdditiveAttention",
        AdditiveAttention,
        (Entry("weight", ("scale", "additive_attention/scale")),),
        _PLAIN,
        identities=("query_proj.weight", "key_proj.weight"),
    ),
    "pyg-gatv2": Convention(
        "PyTorch Geometric, GATv2Conv",
        AdditiveAttention,
        (
            Entry("query_proj.weight", ("lin_r.weight",)),
            Entry("query_proj.bias", ("lin_r.bias",), optional=True),
            Entry("query_proj.bias", ("lin_l.bias",), optional=True),
            Entry("key_proj.weight", ("lin_l.weight",)),
            Entry("weight", ("att",), ROW),
        ),
        {"activation": "leaky_relu", "normalize": False, "scale": 1.0},
        heads=True,
        left={
            "bias": "is added to the contexts, after attention",
            "res.": "projects what is added to the contexts, after attention",
        },
    ),
}
