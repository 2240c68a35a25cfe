"""A quicker interpreter of Triton kernels."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from triton.language import core
from triton.runtime import interpreter


def patch_once_a_launch() -> None:
    """Let a call of a device function find triton.language as its launch has patched it.

    Triton patches it anew at every such call, which takes longer than what the call computes.
    """
    patch = interpreter._patch_lang
    languages = (interpreter.tl, core)
    nothing = SimpleNamespace(restore=lambda: None)

    def patch_what_is_not(fn: Callable[..., Any]) -> Any:
        seen = fn.__globals__.values()
        unpatched = any(x is y and core.is_builtin(x.load) for x in seen for y in languages)
        return patch(fn) if unpatched else nothing

    interpreter._patch_lang = patch_what_is_not
