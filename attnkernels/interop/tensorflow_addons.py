"""Checkpoints of TensorFlow Addons' BahdanauAttention. Its modules are not torch's."""

from __future__ import annotations

from ..nn import AdditiveAttention
from .core.convention import ANY_NORMALIZE, SAME, SCALAR, TRANSPOSED, Convention, Entry


def _variable(target: str, name: str, layout: str = SAME) -> Entry:
    return Entry(target, (name, f"{name}:0"), layout)  # a variable may carry its output's number


CONVENTIONS = {
    "tfa": Convention(
        "TensorFlow Addons, BahdanauAttention",
        AdditiveAttention,
        (
            _variable("query_proj.weight", "query_layer/kernel", TRANSPOSED),
            _variable("key_proj.weight", "memory_layer/kernel", TRANSPOSED),
            _variable("weight", "attention_v"),
            _variable("gain", "attention_g", SCALAR),
            _variable("bias", "attention_b"),
        ),
        ANY_NORMALIZE,
    )
}
