"""Attention of translation, captioning and synthesis: GNMT, OpenNMT-py, JoeyNMT and others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..functional.attention import additive_attention, additive_scores
from .core.live import Draw, Fused, Live, attend, beyond


class Gnmt(Fused):
    """Results as BahdanauAttention of GNMT: context, weights; batch or time first."""

    def forward(self: Any, query: Tensor, keys: Tensor) -> Any:
        if not self.batch_first:
            keys = keys.transpose(0, 1)
            query = query.transpose(0, 1) if query.dim() == 3 else query
        one = query.dim() == 2
        q, weight = self.linear_q(query.unsqueeze(1) if one else query), self.linear_att
        if self.normalize:
            q = q + self.normalize_bias
            weight = weight / weight.norm() * self.normalize_scalar
        context, weights = additive_attention(
            q,
            self.linear_k(keys),
            keys,
            weight,
            attn_mask=None if self.mask is None else ~self.mask.unsqueeze(1),
            return_weights=True,
        )
        if one:
            return context.squeeze(1), weights.squeeze(1)
        if not self.batch_first:
            return context.transpose(0, 1), weights.transpose(0, 1)
        return context, weights


class OpenNmt(Fused):
    """Results as GlobalAttention("mlp"): after ``linear_out``, weights; with coverage its own."""

    def forward(
        self: Any, src: Tensor, enc_out: Tensor, src_len: Any = None, coverage: Any = None
    ) -> Any:
        if coverage is not None:
            return super().forward(src, enc_out, src_len, coverage)  # type: ignore[misc]
        one = src.dim() == 2
        src = src.unsqueeze(1) if one else src
        context, weights = additive_attention(
            self.linear_query(src),
            self.linear_context(enc_out),
            enc_out,
            self.v.weight[0],
            attn_mask=None if src_len is None else ~beyond(src_len, enc_out.size(1)).unsqueeze(1),
            return_weights=True,
        )
        attended = self.linear_out(torch.cat([context, src], 2))
        return (attended.squeeze(1), weights.squeeze(1)) if one else (attended, weights)


def _opennmt_why_not(module: Any) -> str | None:
    if module.attn_type != "mlp":
        return f"attn_type is {module.attn_type!r}: not additive attention"
    if module.attn_func != "softmax":
        return f"attn_func is {module.attn_func!r}: only softmax is fused"
    return None


class JoeyNmt(Fused):
    """Results as BahdanauAttention of JoeyNMT: context (B, 1, dv), weights (B, 1, m)."""

    def forward(self: Any, query: Tensor, mask: Tensor, values: Tensor) -> Any:
        self._check_input_shapes_forward(query=query, mask=mask, values=values)
        assert self.proj_keys is not None, "projection keys have to get pre-computed"
        self.compute_proj_query(query)
        return additive_attention(
            self.proj_query,
            self.proj_keys,
            values,
            self.energy_layer.weight[0],
            attn_mask=mask > 0,
            return_weights=True,
        )


class AllenNlp(Fused):
    """Scores as AdditiveAttention of AllenNLP, which makes the weights and has no context."""

    def _forward_internal(self: Any, vector: Tensor, matrix: Tensor) -> Tensor:
        query = vector.matmul(self._w_matrix).unsqueeze(1)
        keys = matrix.matmul(self._u_matrix)
        return additive_scores(query, keys, self._v_vector.squeeze(1)).squeeze(1)


class Fairseq(Fused):
    """Results as MLPAttention: context (B, dv), weights (m, B); the source comes time first."""

    def forward(
        self: Any, decoder_state: Tensor, source_hids: Tensor, encoder_padding_mask: Any
    ) -> Any:
        memory = source_hids.transpose(0, 1)
        context, weights = attend(
            self.decoder_proj(decoder_state),
            self.encoder_proj(memory),
            memory,
            self.to_scores.weight[0],
            taking_part=None if encoder_padding_mask is None else ~encoder_padding_mask.t(),
        )
        return context, weights.t()


class Captioning(Fused):
    """Results as the tutorial's Attention, which scores by ReLU: context, weights."""

    def forward(self: Any, encoder_out: Tensor, decoder_hidden: Tensor) -> Any:
        return attend(
            self.decoder_att(decoder_hidden),
            self.encoder_att(encoder_out),
            encoder_out,
            self.full_att.weight[0],
            activation="relu",
        )


class Tacotron2(Fused):
    """Results as Attention of Tacotron 2: context, weights. The keys come projected."""

    def forward(
        self: Any,
        attention_hidden_state: Tensor,
        memory: Tensor,
        processed_memory: Tensor,
        attention_weights_cat: Tensor,
        mask: Any,
    ) -> Any:
        return attend(
            self.query_layer(attention_hidden_state),
            processed_memory + self.location_layer(attention_weights_cat),
            memory,
            _tacotron_linear(self.v).weight[0],
            taking_part=None if mask is None else ~mask,
        )


def _tacotron_linear(layer: Any) -> Any:
    """The Linear itself, which NVIDIA's wraps."""
    return getattr(layer, "linear_layer", layer)


M, LENGTHS = 5, (5, 3)


def _lengths(like: Tensor) -> Tensor:
    return torch.tensor(LENGTHS, device=like.device)


def _gnmt_trial(module: Any, draw: Draw) -> Any:
    keys = draw(2, M, module.linear_k.in_features)
    queries = draw(2, 3, module.linear_q.in_features)
    if not module.batch_first:
        keys, queries = keys.transpose(0, 1), queries.transpose(0, 1)
    module.set_mask(_lengths(keys), keys)
    return module.forward(queries, keys)


def _opennmt_trial(module: Any, draw: Draw) -> Any:
    memory = draw(2, M, module.dim)
    return module.forward(draw(2, 3, module.dim), memory, _lengths(memory))


def _joeynmt_trial(module: Any, draw: Draw) -> Any:
    memory = draw(2, M, module.key_layer.in_features)
    module.compute_proj_keys(memory)
    mask = ~beyond(_lengths(memory), M).unsqueeze(1)
    return module.forward(draw(2, 1, module.query_layer.in_features), mask, memory)


def _allennlp_trial(module: Any, draw: Draw) -> Any:
    matrix = draw(2, M, module._u_matrix.shape[0])
    mask = ~beyond(_lengths(matrix), M)
    return module.forward(draw(2, module._w_matrix.shape[0]), matrix, mask)


def _fairseq_trial(module: Any, draw: Draw) -> Any:
    memory = draw(M, 2, module.context_dim)
    padded = beyond(_lengths(memory), M).t()
    return module.forward(draw(2, module.decoder_proj.in_features), memory, padded)


def _captioning_trial(module: Any, draw: Draw) -> Any:
    pixels = draw(2, M, module.encoder_att.in_features)
    return module.forward(pixels, draw(2, module.decoder_att.in_features))


def _tacotron2_trial(module: Any, draw: Draw) -> Any:
    memory = draw(2, M, _tacotron_linear(module.memory_layer).in_features)
    query = draw(2, _tacotron_linear(module.query_layer).in_features)
    padded = beyond(_lengths(memory), M)
    processed = module.memory_layer(memory)
    return module.forward(query, memory, processed, draw(2, 2, M), padded)


LIVE = (
    Live("gnmt", ("BahdanauAttention",), ("query", "keys"), Gnmt, _gnmt_trial),
    Live(
        "opennmt",
        ("GlobalAttention",),
        ("src", "enc_out", "src_len", "coverage"),
        OpenNmt,
        _opennmt_trial,
        _opennmt_why_not,
    ),
    Live("joeynmt", ("BahdanauAttention",), ("query", "mask", "values"), JoeyNmt, _joeynmt_trial),
    Live(
        "allennlp",
        ("AdditiveAttention",),
        ("vector", "matrix", "matrix_mask"),
        AllenNlp,
        _allennlp_trial,
    ),
    Live(
        "fairseq",
        ("MLPAttention",),
        ("decoder_state", "source_hids", "encoder_padding_mask"),
        Fairseq,
        _fairseq_trial,
    ),
    Live(
        "captioning",
        ("Attention",),
        ("encoder_out", "decoder_hidden"),
        Captioning,
        _captioning_trial,
    ),
    Live(
        "tacotron2",
        ("Attention", "_Attention"),
        ("attention_hidden_state", "memory", "processed_memory", "attention_weights_cat", "mask"),
        Tacotron2,
        _tacotron2_trial,
    ),
)
