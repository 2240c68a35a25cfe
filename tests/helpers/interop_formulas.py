"""What the tests of `attnkernels.interop` load: each library's names, shapes and formula.

The formulas are written down here, in plain PyTorch and with the library's own names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

B, N, M, Q, K, H, CHANNELS, WIDTH = 3, 4, 13, 6, 10, 8, 3, 5
VALUE = 3  # features of a head's values, where the library projects them
LENGTHS = torch.tensor([M, 1, 7])

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
# (entries, queries (B, N, Q), keys (B, M, K)) -> weights (B, N, M), with heads (B, heads, N, M)
Formula = Callable[[State, Tensor, Tensor], Tensor]


def softmax(scores: Tensor) -> Tensor:
    """Over the keys within the lengths."""
    beyond = torch.arange(M) >= LENGTHS.view(B, *[1] * (scores.ndim - 1))
    return scores.masked_fill(beyond, -torch.inf).softmax(-1)


def layer(s: State, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, s[f"{name}.weight"], s.get(f"{name}.bias"))


def layers(query: str, key: str, score: str, f: Any = torch.tanh, scale: float = 1.0) -> Formula:
    """Three layers with whatever biases the entries have."""

    def weights(s: State, queries: Tensor, keys: Tensor) -> Tensor:
        hidden = f(layer(s, query, queries).unsqueeze(2) + layer(s, key, keys).unsqueeze(1))
        return softmax(scale * layer(s, score, hidden).squeeze(-1))

    return weights


def normalised(query: str, key: str, v: str, g: str, b: str, dense: bool) -> Formula:
    """g v / |v| . tanh(query + key + b); `dense` kernels are (in, out)."""

    def weights(s: State, queries: Tensor, keys: Tensor) -> Tensor:
        w_q, w_k = (s[name] if dense else s[name].mT for name in (query, key))
        hidden = (queries @ w_q).unsqueeze(2) + (keys @ w_k).unsqueeze(1)
        if g not in s:
            return softmax(torch.tanh(hidden) @ s[v])
        return softmax(torch.tanh(hidden + s[b]) @ (s[v] / s[v].norm() * s[g]))

    return weights


def allennlp(s: State, queries: Tensor, keys: Tensor) -> Tensor:
    hidden = (queries @ s["_w_matrix"]).unsqueeze(2) + (keys @ s["_u_matrix"]).unsqueeze(1)
    return softmax((torch.tanh(hidden) @ s["_v_vector"]).squeeze(-1))


def espnet_heads(s: State, queries: Tensor, keys: Tensor) -> Tensor:
    heads = sum(name.startswith("mlp_k.") for name in s)
    weights = []
    for h in range(heads):
        q = layer(s, f"mlp_q.{h}", queries).unsqueeze(2)
        hidden = torch.tanh(q + layer(s, f"mlp_k.{h}", keys).unsqueeze(1))
        scores = layer(s, f"gvec.{h}", hidden).squeeze(-1)
        weights.append(softmax(scores / (H // heads) ** 0.5))
    return torch.stack(weights, 1) if heads > 1 else weights[0]


def espnet_values(s: State, keys: Tensor) -> Tensor:
    return torch.cat([layer(s, n[: -len(".weight")], keys) for n in s if n[:5] == "mlp_v"], -1)


def gatv2(s: State, queries: Tensor, keys: Tensor) -> Tensor:
    _, heads, d = s["att"].shape
    x_i, x_j = layer(s, "lin_r", queries).unsqueeze(2), layer(s, "lin_l", keys).unsqueeze(1)
    hidden = functional.leaky_relu(x_i + x_j, 0.2).view(B, N, M, heads, d)
    weights = softmax((hidden * s["att"]).sum(-1).movedim(-1, 1))
    return weights if heads > 1 else weights.squeeze(1)


def gatv2_values(s: State, keys: Tensor) -> Tensor:
    return layer(s, "lin_l", keys)


def keras(s: State, queries: Tensor, keys: Tensor) -> Tensor:
    return softmax((s["scale"] * torch.tanh(queries.unsqueeze(2) + keys.unsqueeze(1))).sum(-1))


def stepwise(
    query: str, key: str, score: str, added: Callable[..., Tensor], *, uniform: bool, scale: float
) -> Formula:
    """`added` makes what the sum gets of the weights of all steps before, [(B, M), ...]."""

    def weights(s: State, queries: Tensor, keys: Tensor) -> Tensor:
        first = (torch.arange(M) < LENGTHS[:, None]) / LENGTHS[:, None]
        past = [first.to(keys) if uniform else keys.new_zeros(B, M)]
        for i in range(N):
            hidden = layer(s, query, queries[:, i]).unsqueeze(1) + layer(s, key, keys)
            hidden = torch.tanh(hidden + added(s, past))
            past.append(softmax(scale * layer(s, score, hidden).squeeze(-1)))
        return torch.stack(past[1:], 1)

    return weights


def speechbrain_location(s: State, past: list[Tensor]) -> Tensor:
    seen = past[-1].detach().unsqueeze(1)
    seen = functional.conv1d(seen, s["conv_loc.weight"], padding=WIDTH // 2)
    return layer(s, "mlp_loc", seen.mT)


def espnet_location(s: State, past: list[Tensor]) -> Tensor:
    seen = past[-1].view(B, 1, 1, M)
    seen = functional.conv2d(seen, s["loc_conv.weight"], padding=(0, WIDTH // 2))
    return layer(s, "mlp_att", seen.squeeze(2).mT)


def espnet_coverage(s: State, past: list[Tensor]) -> Tensor:
    return layer(s, "wvec", torch.stack(past).sum(0).unsqueeze(-1))


def fairseq_location(s: State, past: list[Tensor]) -> Tensor:
    """Its caller hands the sum of the weights so far in."""
    state = torch.stack(past).sum(0).unsqueeze(1)
    seen = functional.conv1d(state, s["conv.weight"], padding=WIDTH // 2)
    return layer(s, "proj_attn", seen.mT)


def tacotron2(conv: str, linear: str) -> Formula:
    def added(s: State, past: list[Tensor]) -> Tensor:
        seen = torch.stack([past[-1], torch.stack(past).sum(0)], 1)
        f = s[f"location_layer.location_conv{conv}.weight"]
        seen = functional.conv1d(seen, f, padding=WIDTH // 2)
        return layer(s, f"location_layer.location_dense{linear}", seen.mT)

    names = f"query_layer{linear}", f"memory_layer{linear}", f"v{linear}"
    return stepwise(*names, added, uniform=False, scale=1.0)


def tacotron2_shapes(conv: str, linear: str) -> Shapes:
    return {
        f"query_layer{linear}.weight": (H, Q),
        f"memory_layer{linear}.weight": (H, K),
        f"v{linear}.weight": (1, H),
        f"location_layer.location_conv{conv}.weight": (CHANNELS, 2, WIDTH),
        f"location_layer.location_dense{linear}.weight": (H, CHANNELS),
    }


def shapes(query: str, key: str, score: str, biases: str = "") -> Shapes:
    """Of three Linear layers, of which those named in `biases` have one."""
    sizes: Shapes = {query: (H, Q), key: (H, K), score: (1, H)}
    made: Shapes = {f"{name}.weight": size for name, size in sizes.items()}
    return made | {f"{name}.bias": sizes[name][:1] for name in biases.split()}


def heads_of_espnet(heads: int) -> Shapes:
    d, names = H // heads, range(heads)
    made: Shapes = {f"mlp_q.{h}.weight": (d, Q) for h in names}
    made |= {f"mlp_q.{h}.bias": (d,) for h in names}
    made |= {f"mlp_k.{h}.weight": (d, K) for h in names}
    made |= {f"mlp_v.{h}.weight": (VALUE, K) for h in names}
    made |= {f"gvec.{h}.weight": (1, d) for h in names}
    made |= {f"gvec.{h}.bias": (1,) for h in names}
    return made | {"mlp_o.weight": (K, heads * VALUE)}


def heads_of_gatv2(heads: int, biases: str) -> Shapes:
    made: Shapes = {"lin_r.weight": (H, Q), "lin_l.weight": (H, K), "att": (1, heads, H // heads)}
    made |= {f"{name}.bias": (H,) for name in biases.split()}
    return made | {"bias": (H,), "res.weight": (H, Q)}


class Case(NamedTuple):
    convention: str
    options: dict[str, Any]
    shapes: Shapes
    formula: Formula
    cancelled: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    sizes: tuple[int, int, int] = (Q, K, H)
    values: Callable[[State, Tensor], Tensor] | None = None  # of the keys; they are the values


GNMT = ("linear_q.weight", "linear_k.weight", "linear_att", "normalize_scalar", "normalize_bias")
TFA = ("query_layer/kernel", "memory_layer/kernel", "attention_v", "attention_g", "attention_b")
SPEECHBRAIN = ("mlp_dec", "mlp_enc", "mlp_attn")
ESPNET = ("mlp_dec", "mlp_enc", "gvec")
OUT = {"mlp_out.weight": (5, K), "mlp_out.bias": (5,)}
OPENNMT_OUT = {"linear_out.weight": (Q, Q + K), "linear_out.bias": (Q,)}
CONV: dict[str, Any] = {"channels": CHANNELS, "kernel_size": WIDTH, "cumulative": False}
NORMALISED = {"normalize": True, "bias": False}

CASES = {
    "gnmt": Case(
        "gnmt",
        NORMALISED,
        dict(zip(GNMT, ((H, Q), (H, K), (H,), (1,), (H,)), strict=True)),
        normalised(*GNMT, dense=False),
    ),
    "gnmt, not normalised": Case(
        "gnmt",
        {},
        dict(zip(GNMT[:3], ((H, Q), (H, K), (H,)), strict=True)),
        normalised(*GNMT, dense=False),
    ),
    "tfa": Case(
        "tfa",
        {"normalize": True},
        dict(zip(TFA, ((Q, H), (K, H), (H,), (), (H,)), strict=True)),
        normalised(*TFA, dense=True),
    ),
    "speechbrain": Case(
        "speechbrain",
        {"scale": 1.5},
        shapes(*SPEECHBRAIN, "mlp_dec mlp_enc") | OUT,
        layers(*SPEECHBRAIN, scale=1.5),
        left=("mlp_out.weight", "mlp_out.bias"),
    ),
    "speechbrain-location": Case(
        "speechbrain-location",
        CONV | {"initial": "uniform", "detach_weights": True},
        shapes(*SPEECHBRAIN, "mlp_dec mlp_enc")
        | OUT
        | {
            "conv_loc.weight": (CHANNELS, 1, WIDTH),
            "mlp_loc.weight": (H, CHANNELS),
            "mlp_loc.bias": (H,),
        },
        stepwise(*SPEECHBRAIN, speechbrain_location, uniform=True, scale=1.0),
        left=("mlp_out.weight", "mlp_out.bias"),
    ),
    "espnet-add": Case(
        "espnet-add",
        {"scale": 2.0},
        shapes(*ESPNET, "mlp_enc gvec"),
        layers(*ESPNET, scale=2.0),
        cancelled=("gvec.bias",),
    ),
    "espnet-loc": Case(
        "espnet-loc",
        CONV | {"initial": "uniform", "scale": 2.0},
        shapes(*ESPNET, "mlp_enc gvec")
        | {"loc_conv.weight": (CHANNELS, 1, 1, WIDTH), "mlp_att.weight": (H, CHANNELS)},
        stepwise(*ESPNET, espnet_location, uniform=True, scale=2.0),
        cancelled=("gvec.bias",),
    ),
    "espnet-cov": Case(
        "espnet-cov",
        {"initial": "uniform", "scale": 2.0},
        shapes(*ESPNET, "mlp_enc gvec") | {"wvec.weight": (H, 1), "wvec.bias": (H,)},
        stepwise(*ESPNET, espnet_coverage, uniform=True, scale=2.0),
        cancelled=("gvec.bias",),
    ),
    "opennmt": Case(
        "opennmt",
        {},
        shapes("linear_query", "linear_context", "v", "linear_query") | OPENNMT_OUT,
        layers("linear_query", "linear_context", "v"),
        left=tuple(OPENNMT_OUT),
    ),
    "tacotron2, NVIDIA": Case(
        "tacotron2",
        CONV | {"cumulative": "both", "bias": False},
        tacotron2_shapes(".conv", ".linear_layer"),
        tacotron2(".conv", ".linear_layer"),
    ),
    "tacotron2, torchaudio": Case(
        "tacotron2", CONV | {"cumulative": "both"}, tacotron2_shapes("", ""), tacotron2("", "")
    ),
    "allennlp": Case(
        "allennlp",
        {},
        {"_w_matrix": (Q, H), "_u_matrix": (K, H), "_v_vector": (H, 1)},
        allennlp,
    ),
    "fairseq": Case(
        "fairseq",
        {},
        shapes("decoder_proj", "encoder_proj", "to_scores", "encoder_proj"),
        layers("decoder_proj", "encoder_proj", "to_scores"),
    ),
    "joeynmt": Case(
        "joeynmt",
        {"bias": False},
        shapes("query_layer", "key_layer", "energy_layer"),
        layers("query_layer", "key_layer", "energy_layer"),
    ),
    "captioning": Case(
        "captioning",
        {"activation": "relu"},
        shapes("decoder_att", "encoder_att", "full_att", "decoder_att encoder_att full_att"),
        layers("decoder_att", "encoder_att", "full_att", torch.relu),
        cancelled=("full_att.bias",),
    ),
    "espnet-heads": Case(
        "espnet-heads",
        {"num_heads": 2, "scale": (H // 2) ** -0.5},
        heads_of_espnet(2),
        espnet_heads,
        cancelled=("gvec.0.bias", "gvec.1.bias"),
        left=("mlp_v.0.weight", "mlp_v.1.weight", "mlp_o.weight"),
        values=espnet_values,
    ),
    "espnet-heads, one": Case(
        "espnet-heads",
        {"scale": H**-0.5},
        heads_of_espnet(1),
        espnet_heads,
        cancelled=("gvec.0.bias",),
        left=("mlp_v.0.weight", "mlp_o.weight"),
        values=espnet_values,
    ),
    "fairseq-location": Case(
        "fairseq-location",
        CONV | {"cumulative": True, "scale": 2.0},
        shapes("proj_dec", "proj_enc", "proj_out.1", "proj_enc proj_out.1")
        | {"conv.weight": (CHANNELS, 1, WIDTH), "proj_attn.weight": (H, CHANNELS)},
        stepwise("proj_dec", "proj_enc", "proj_out.1", fairseq_location, uniform=False, scale=2.0),
        cancelled=("proj_out.1.bias",),
    ),
    "keras": Case("keras", {"bias": False}, {"scale": (H,)}, keras, sizes=(H, H, H)),
    "pyg-gatv2": Case(
        "pyg-gatv2",
        {"num_heads": 2, "activation": "leaky_relu"},
        heads_of_gatv2(2, "lin_r lin_l"),
        gatv2,
        left=("bias", "res.weight"),
        values=gatv2_values,
    ),
    "pyg-gatv2, one head, no biases": Case(
        "pyg-gatv2",
        {"activation": "leaky_relu", "bias": False},
        heads_of_gatv2(1, ""),
        gatv2,
        left=("bias", "res.weight"),
        values=gatv2_values,
    ),
    "pyg-gatv2, one bias": Case(
        "pyg-gatv2",
        {"num_heads": 4, "activation": "leaky_relu"},
        heads_of_gatv2(4, "lin_l"),
        gatv2,
        left=("bias", "res.weight"),
        values=gatv2_values,
    ),
}
