"""Attention of translation, captioning and synthesis, written down as in interop_twins.py."""

from __future__ import annotations

import torch
from torch import nn

from helpers.interop_twins import padding, weigh


class FairseqMlp:
    class MLPAttention(nn.Module):
        def __init__(self, decoder_hidden_state_dim, context_dim, attention_dim) -> None:
            super().__init__()
            self.context_dim, self.attention_dim = context_dim, attention_dim
            self.encoder_proj = nn.Linear(context_dim, attention_dim)
            self.decoder_proj = nn.Linear(decoder_hidden_state_dim, attention_dim, bias=False)
            self.to_scores = nn.Linear(attention_dim, 1, bias=False)

        def forward(self, decoder_state, source_hids, encoder_padding_mask):
            hidden = self.encoder_proj(source_hids) + self.decoder_proj(decoder_state).unsqueeze(0)
            padded = None if encoder_padding_mask is None else encoder_padding_mask.t()
            scores = self.to_scores(hidden.tanh()).squeeze(-1).t()
            context, weights = weigh(scores, padded, source_hids.transpose(0, 1))
            return context, weights.t()


class OpenNmt:
    class GlobalAttention(nn.Module):
        def __init__(self, dim, coverage=False, attn_type="mlp", attn_func="softmax") -> None:
            super().__init__()
            self.dim, self.attn_type, self.attn_func = dim, attn_type, attn_func
            self.linear_context = nn.Linear(dim, dim, bias=False)
            self.linear_query = nn.Linear(dim, dim)
            self.v = nn.Linear(dim, 1, bias=False)
            self.linear_out = nn.Linear(2 * dim, dim)
            if coverage:
                self.linear_cover = nn.Linear(1, dim, bias=False)

        def forward(self, src, enc_out, src_len=None, coverage=None):
            queries = src.unsqueeze(1) if src.dim() == 2 else src
            if coverage is not None:
                enc_out = (enc_out + self.linear_cover(coverage.unsqueeze(-1))).tanh()
            q, k = self.linear_query(queries), self.linear_context(enc_out)
            scores = self.v((q.unsqueeze(2) + k.unsqueeze(1)).tanh()).squeeze(-1)
            if src_len is not None:
                padded = padding(src_len, enc_out.shape[1]).unsqueeze(1)
                scores = scores.masked_fill(padded, -torch.inf)
            weights = scores.softmax(-1)
            attended = self.linear_out(torch.cat([weights @ enc_out, queries], 2))
            one = src.dim() == 2
            return (attended.squeeze(1), weights.squeeze(1)) if one else (attended, weights)


class Gnmt:
    class BahdanauAttention(nn.Module):
        def __init__(self, query_size, key_size, units, normalize=False, batch_first=False) -> None:
            super().__init__()
            self.normalize, self.batch_first, self.num_units = normalize, batch_first, units
            self.linear_q = nn.Linear(query_size, units, bias=False)
            self.linear_k = nn.Linear(key_size, units, bias=False)
            self.linear_att = nn.Parameter(torch.randn(units))
            self.mask = None
            if normalize:
                self.normalize_scalar = nn.Parameter(torch.randn(1))
                self.normalize_bias = nn.Parameter(torch.randn(units))

        def set_mask(self, context_len, context) -> None:
            self.mask = padding(context_len, context.shape[1 if self.batch_first else 0])

        def forward(self, query, keys):
            one, time_first = query.dim() == 2, not self.batch_first
            keys = keys.transpose(0, 1) if time_first else keys
            query = query.unsqueeze(0 if time_first else 1) if one else query
            query = query.transpose(0, 1) if time_first else query
            hidden, v = self.linear_q(query).unsqueeze(2) + self.linear_k(keys).unsqueeze(1), None
            if self.normalize:
                hidden = hidden + self.normalize_bias
                v = self.normalize_scalar * self.linear_att / self.linear_att.square().sum().sqrt()
            scores = hidden.tanh() @ (self.linear_att if v is None else v)
            if self.mask is not None:
                scores = scores.masked_fill(self.mask.unsqueeze(1), -65504.0)
            weights = scores.softmax(-1)
            results = weights @ keys, weights
            if one:
                return tuple(x.squeeze(1) for x in results)
            return tuple(x.transpose(0, 1) for x in results) if time_first else results


class JoeyNmt:
    class BahdanauAttention(nn.Module):
        def __init__(self, hidden_size, key_size, query_size) -> None:
            super().__init__()
            self.key_layer = nn.Linear(key_size, hidden_size, bias=False)
            self.query_layer = nn.Linear(query_size, hidden_size, bias=False)
            self.energy_layer = nn.Linear(hidden_size, 1, bias=False)
            self.proj_keys = self.proj_query = None

        def compute_proj_keys(self, keys) -> None:
            self.proj_keys = self.key_layer(keys)

        def compute_proj_query(self, query) -> None:
            self.proj_query = self.query_layer(query)

        def _check_input_shapes_forward(self, query, mask, values) -> None:
            assert query.shape[0] == mask.shape[0] == values.shape[0]
            assert query.shape[1] == mask.shape[1] == 1

        def forward(self, query, mask, values):
            self._check_input_shapes_forward(query=query, mask=mask, values=values)
            assert self.proj_keys is not None, "there are no projected keys"
            self.compute_proj_query(query)
            scores = self.energy_layer((self.proj_query + self.proj_keys).tanh()).mT
            weights = scores.masked_fill(mask == 0, -torch.inf).softmax(-1)
            return weights @ values, weights


class AllenNlp:
    class AdditiveAttention(nn.Module):
        def __init__(self, vector_dim, matrix_dim, normalize=True) -> None:
            super().__init__()
            self._normalize = normalize
            self._w_matrix = nn.Parameter(torch.randn(vector_dim, vector_dim))
            self._u_matrix = nn.Parameter(torch.randn(matrix_dim, vector_dim))
            self._v_vector = nn.Parameter(torch.randn(vector_dim, 1))

        def forward(self, vector, matrix, matrix_mask=None):
            scores = self._forward_internal(vector, matrix)
            if not self._normalize:
                return scores
            part = 1.0 if matrix_mask is None else matrix_mask.to(scores.dtype)
            weights = (scores * part).softmax(-1) * part
            return weights / (weights.sum(-1, keepdim=True) + 1e-13)

        def _forward_internal(self, vector, matrix):
            hidden = (vector @ self._w_matrix).unsqueeze(1) + matrix @ self._u_matrix
            return (hidden.tanh() @ self._v_vector).squeeze(2)


class Captioning:
    class Attention(nn.Module):
        def __init__(self, encoder_dim, decoder_dim, attention_dim) -> None:
            super().__init__()
            self.encoder_att = nn.Linear(encoder_dim, attention_dim)
            self.decoder_att = nn.Linear(decoder_dim, attention_dim)
            self.full_att = nn.Linear(attention_dim, 1)

        def forward(self, encoder_out, decoder_hidden):
            hidden = self.encoder_att(encoder_out) + self.decoder_att(decoder_hidden).unsqueeze(1)
            return weigh(self.full_att(hidden.relu()).squeeze(2), None, encoder_out)


class Wrapped(nn.Module):
    """A layer inside another module, as in NVIDIA's Tacotron 2."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.add_module(name, layer)

    def forward(self, x):
        (layer,) = self.children()
        return layer(x)


class Location(nn.Module):
    def __init__(self, conv: nn.Module, dense: nn.Module) -> None:
        super().__init__()
        self.location_conv, self.location_dense = conv, dense

    def forward(self, weights):
        return self.location_dense(self.location_conv(weights).mT)


class Torchaudio:
    class _Attention(nn.Module):
        def __init__(self, rnn_dim, embedding_dim, attention_dim, filters, kernel) -> None:
            super().__init__()

            def linear(ins: int, outs: int) -> nn.Module:
                return self.linear(nn.Linear(ins, outs, bias=False))

            self.query_layer = linear(rnn_dim, attention_dim)
            self.memory_layer = linear(embedding_dim, attention_dim)
            self.v = linear(attention_dim, 1)
            conv = nn.Conv1d(2, filters, kernel, padding=kernel // 2, bias=False)
            self.location_layer = Location(self.conv(conv), linear(filters, attention_dim))
            self.score_mask_value = -float("inf")

        def linear(self, layer: nn.Module) -> nn.Module:
            return layer

        def conv(self, layer: nn.Module) -> nn.Module:
            return layer

        def forward(
            self,
            attention_hidden_state,
            memory,
            processed_memory,
            attention_weights_cat,
            mask,
        ):
            hidden = self.query_layer(attention_hidden_state.unsqueeze(1)) + processed_memory
            hidden = (hidden + self.location_layer(attention_weights_cat)).tanh()
            return weigh(self.v(hidden).squeeze(-1), mask, memory)


class Nvidia:
    class Attention(Torchaudio._Attention):
        def linear(self, layer: nn.Module) -> nn.Module:
            return Wrapped("linear_layer", layer)

        def conv(self, layer: nn.Module) -> nn.Module:
            return Wrapped("conv", layer)
