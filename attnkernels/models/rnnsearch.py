"""RNNsearch: a decoder that searches the source for what its next word needs.

Bahdanau et al., "Neural machine translation by jointly learning to align and translate"
(1409.0473), section 3 and appendix A.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from ..functional import checks
from ..functional.results import Pair
from ..nn import AdditiveAttention, AttentionRNN, inputs
from ..ops.codes import PrecisionName
from .common import Translator, lengths_on_cpu, read, tokens

if TYPE_CHECKING:
    from ..nn.overloads import EitherWay, NoWeights, Unpack, WithWeights


class RNNsearch(Translator):
    """A model of target tokens y given source tokens x, through one annotation h_j per token.

        h_j = [GRU->(e(x))_j; GRU<-(e(x))_j]     s_0 = tanh(W_s h<-_1)      section 3.2, A.2.1
        e_tj = v . tanh(W s_t + U h_j + b)       a_t = softmax(e_t)         A.1.2
        c_{t+1} = sum_j a_tj h_j                                            equation 5
        s_t = GRU(s_{t-1}, [e(y_{t-1}); c_t])                               A.2.2
        p(y_t) = softmax(G maxout(O [s_t; c_{t+1}]))                        equation 4, A.2.2

    The readout of equation 4 takes y_{t-1}, s_t and c_t. Here it takes s_t, which has read the
    other two, and the context c_{t+1} that s_t attends to. So row t of the weights shows where y_t
    is read from, chosen with y_{t-1} known.

    Args:
        source_size, target_size: numbers of tokens; 0 is padding in both.
        embedding_dim: features of e (the paper's m: 620).
        encoder_dim: features of each direction of the encoder (n: 1000).
        hidden_dim: features of s (n: 1000).
        align_dim: hidden features of the alignment model (n': 1000).
        maxout_dim: maxout units (l: 500).
        dropout: in [0, 1), of the embeddings and of the maxout units, in training.
        begin, end: the target token y_0, and the token that ends a sequence.
        defer_gradients: False allows second derivatives; see `AttentionRNN`.
        precision, backend: as in `attnkernels.additive_attention`.

    Attributes:
        decoder: an `AttentionRNN`.

    Raises:
        TypeError: ``dropout`` is not a number, begin or end is not an int, or ``defer_gradients``
            is not a bool.
        ValueError: a size is not a positive int, begin or end is not a target token other than
            padding, dropout is not in [0, 1), or ``precision`` or ``backend`` is unknown.
    """

    attends = True

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
        defer_gradients: bool = True,
        precision: PrecisionName = "exact",
        backend: str | None = None,
    ) -> None:
        embedding_dim, encoder_dim, hidden_dim, align_dim, maxout_dim = inputs.sizes(
            embedding_dim=embedding_dim,
            encoder_dim=encoder_dim,
            hidden_dim=hidden_dim,
            align_dim=align_dim,
            maxout_dim=maxout_dim,
        )
        super().__init__((source_size, target_size), embedding_dim, dropout, begin, end)
        self.encoder = nn.GRU(embedding_dim, encoder_dim, batch_first=True, bidirectional=True)
        self.initial = nn.Linear(encoder_dim, hidden_dim)
        annotation_dim = 2 * encoder_dim
        self.decoder = AttentionRNN(
            nn.GRUCell(embedding_dim + annotation_dim, hidden_dim),
            AdditiveAttention(
                hidden_dim, annotation_dim, align_dim, precision=precision, backend=backend
            ),
            defer_gradients=defer_gradients,
        )
        self.readout = self._maxout(hidden_dim + annotation_dim, maxout_dim)

    @overload
    def forward(
        self, source: Tensor, source_lengths: Tensor, target: Tensor, **o: Unpack[NoWeights]
    ) -> Tensor: ...
    @overload
    def forward(
        self, source: Tensor, source_lengths: Tensor, target: Tensor, **o: Unpack[WithWeights]
    ) -> Pair: ...
    @overload
    def forward(
        self, source: Tensor, source_lengths: Tensor, target: Tensor, **o: Unpack[EitherWay]
    ) -> Tensor | Pair: ...
    def forward(
        self,
        source: Tensor,
        source_lengths: Tensor,
        target: Tensor,
        *,
        return_weights: bool = False,
    ) -> Tensor | Pair:
        """Return the logits of every target token, given those before it.

        Args:
            source, source_lengths, target: as in `Seq2Seq.forward`: (B, m), (B,) in [1, m] and
                (B, T), int64; target is without ``begin``.
            return_weights: also return the weights.

        Returns:
            The logits (B, T, target_size), as in `Seq2Seq.forward`; with ``return_weights`` a tuple
            of them and the weights (B, T, m), the alignment.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        checks.flags(return_weights=return_weights)
        annotations, state = self.encode(source, source_lengths)
        embedded = self._shifted(target, source.shape[0])
        outputs, contexts, _, *weights = self.decoder(
            embedded, annotations, source_lengths, state, return_weights=return_weights
        )
        logits = self.readout(outputs, contexts)
        return (logits, weights[0]) if return_weights else logits

    if TYPE_CHECKING:
        __call__ = forward

    def encode(self, source: Tensor, source_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return h (B, m, 2 * encoder_dim), zeros beyond the lengths, and s_0 (B, hidden_dim).

        Arguments and errors are those of `forward`.
        """
        tokens("source", source, self.source_embedding.num_embeddings)
        lengths = lengths_on_cpu("source_lengths", source_lengths, *source.shape)
        annotations, (_, backward) = read(self.encoder, self._embedded(source), lengths)
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
