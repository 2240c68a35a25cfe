"""RNNsearch: a decoder that searches the source for what its next word needs.

Bahdanau et al., "Neural machine translation by jointly learning to align and translate"
(1409.0473), section 3 and appendix A.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..nn import AdditiveAttention, AttentionRNN
from .seq2seq import MaxoutReadout, Searching, check_lengths, check_target, check_tokens, shifted


class RNNsearch(Searching):
    """Source tokens x to target tokens y through annotations h_1, ..., h_m, one a source token.

        h_j = [GRU->(e(x))_j; GRU<-(e(x))_j]     s_0 = tanh(W_s h<-_1)      section 3.2, A.2.1
        e_tj = v . tanh(W s_t + U h_j + b)       a_t = softmax(e_t)         A.1.2
        c_{t+1} = sum_j a_tj h_j                                            equation 5
        s_t = GRU(s_{t-1}, [e(y_{t-1}); c_t])                               A.2.2
        p(y_t) = softmax(G maxout(O [s_t; c_{t+1}]))                        equation 4, A.2.2

    The readout of equation 4 has y_{t-1}, s_t and c_t. Here it has s_t, which has read the two
    others, and what s_t attends to. So row t of the weights says what y_t was read from, and who
    looked for it had seen y_{t-1}.

    Args:
        source_size, target_size: how many tokens there are; 0 is padding in both.
        embedding_dim: features of e (the paper's m: 620).
        encoder_dim: features of each direction of the encoder (n: 1000).
        hidden_dim: features of s (n: 1000).
        align_dim: hidden features of the alignment model (n': 1000).
        maxout_dim: maxout units (l: 500).
        dropout: in [0, 1), of the embeddings and of the maxout units, in training.
        begin, end: the target tokens y_0 and the one that ends a sequence.
        backend: as in `attnkernels.additive_attention`.

    Raises:
        ValueError: begin or end is no target token other than padding, or dropout is not in [0, 1).
    """

    def __init__(
        self,
        source_size: int,
        target_size: int,
        *,
        embedding_dim: int = 620,
        encoder_dim: int = 1000,
        hidden_dim: int = 1000,
        align_dim: int = 1000,
        maxout_dim: int = 500,
        dropout: float = 0.0,
        begin: int = 1,
        end: int = 2,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_target(target_size, begin, end, dropout)
        self.begin, self.end = begin, end
        self.source_embedding = nn.Embedding(source_size, embedding_dim, padding_idx=0)
        self.target_embedding = nn.Embedding(target_size, embedding_dim, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.GRU(embedding_dim, encoder_dim, batch_first=True, bidirectional=True)
        self.initial = nn.Linear(encoder_dim, hidden_dim)
        annotation_dim = 2 * encoder_dim
        self.decoder = AttentionRNN(
            nn.GRUCell(embedding_dim + annotation_dim, hidden_dim),
            AdditiveAttention(hidden_dim, annotation_dim, align_dim, backend=backend),
        )
        self.readout = MaxoutReadout(hidden_dim + annotation_dim, maxout_dim, target_size, dropout)

    def forward(
        self,
        source: Tensor,
        source_lengths: Tensor,
        target: Tensor,
        *,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of every target token, given those before it.

        Args:
            source: (B, m), int64.
            source_lengths: (B,), int64, each in [1, m]; what lies beyond is not read.
            target: (B, T), int64, without ``begin``: ends with ``end``, then padding.
            return_weights: also return the weights.

        Returns:
            (B, T, target_size): row t is of the distribution of ``target[:, t]``. Rows of padding
            mean nothing; `torch.nn.functional.cross_entropy` ignores them by ``ignore_index=0``.
            With ``return_weights`` a tuple of them and the weights (B, T, m), the alignment.

        Raises:
            TypeError, ValueError: an argument does not fit; the message says which and how.
        """
        annotations, state = self.encode(source, source_lengths)
        inputs = shifted(target, self.begin, self.target_embedding.num_embeddings, source)
        embedded = self.dropout(self.target_embedding(inputs))
        outputs, contexts, _, *weights = self.decoder(
            embedded, annotations, source_lengths, state, return_weights=return_weights
        )
        logits = self.readout(outputs, contexts)
        return (logits, weights[0]) if return_weights else logits

    def encode(self, source: Tensor, source_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """h (B, m, 2 * encoder_dim), zeros beyond the lengths, and s_0 (B, hidden_dim)."""
        check_tokens("source", source, self.source_embedding.num_embeddings)
        lengths = check_lengths(source, source_lengths)
        embedded = self.dropout(self.source_embedding(source))
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        annotations, (_, backward) = self.encoder(packed)
        annotations, _ = pad_packed_sequence(
            annotations, batch_first=True, total_length=source.shape[1]
        )
        return annotations, torch.tanh(self.initial(backward))

    def _searched(self, source: Tensor, source_lengths: Tensor) -> dict[str, Any]:
        annotations, state = self.encode(source, source_lengths)
        return {
            "rnn": self.decoder,
            "memory": annotations,
            "key_lengths": source_lengths,
            "state": state,
            "embed": self.target_embedding,
            "readout": self.readout,
            "start": self.begin,
            "eos": self.end,
        }
