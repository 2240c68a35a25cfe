"""TensorFlow Addons: BahdanauAttention."""

from __future__ import annotations

from helpers.interop_load import H, K, LoadCase, Q, normalised

NAMES = ("query_layer/kernel", "memory_layer/kernel", "attention_v", "attention_g", "attention_b")
LOADS = {
    "tfa": LoadCase(
        "tfa",
        {"normalize": True},
        dict(zip(NAMES, ((Q, H), (K, H), (H,), (), (H,)), strict=True)),
        normalised(*NAMES, dense=True),
    ),
}
