"""Random numbers from torch's generator, drawn once per call under a trace too: dropout's seed.

A compiled function may compute a value again in its backward instead of saving it, as
`activation_memory_budget` of torch._functorch.config asks it to. A seed drawn again is another
seed, and the mask of the backward would not be that of the forward. So a trace calls operators,
whose nodes are marked in the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _get_dispatch_mode, _TorchDispatchModeKey
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.fx.experimental.proxy_tensor import (
    ProxyTorchDispatchMode,
    get_proxy_slot,
    track_tensor_tree,
)
from torch.library import Library
from torch.utils.checkpoint import CheckpointPolicy

_NAME = "attnkernels::draw_seed"
_library = Library("attnkernels", "FRAGMENT")
# `call` numbers the nodes of a graph, so that equal ones are not merged.
_library.define(
    "draw_seed(SymInt[] size=[], int call=0, *, Device device) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag),
)
_library.define("saved(Tensor drawn) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_VMAP = torch._C.DispatchKeySet(torch._C.DispatchKey.FuncTorchVmapMode)
_draw = torch.ops.attnkernels.draw_seed.default
_saved = torch.ops.attnkernels.saved.default


def draw_seed(device: torch.device) -> Tensor:
    """Return the seed of one call's dropout: a 0-d int64 tensor.

    Raises:
        NotImplementedError: `torch.func.linearize` traces the call. The function that it returns
            would draw another seed at every call.
    """
    if is_dynamo_compiling():
        return _draw(device=device)
    if _get_dispatch_mode(_TorchDispatchModeKey.PROXY) is not None:
        if forward_ad._current_level >= 0:
            raise NotImplementedError(
                "dropout_p must be 0 under torch.func.linearize, whose result would drop other"
                " weights at every call: use torch.func.jvp"
            )
        return _draw(device=device)
    return torch.randint(2**62, (), device=device)  # without low, in 0.3 us less


def saved(drawn: Tensor) -> Tensor:
    """Return `drawn`, the result of one of torch's random operations; a trace will save it."""
    tracing = is_dynamo_compiling() or _get_dispatch_mode(_TorchDispatchModeKey.PROXY) is not None
    return _saved(drawn) if tracing else drawn


def _eager(size: Any = (), call: int = 0, *, device: torch.device) -> Tensor:
    return torch.randint(0, 2**62, size, device=device)


def _fake(size: Any = (), call: int = 0, *, device: torch.device) -> Tensor:
    return torch.empty(size, dtype=torch.int64, device=device)


def _of_examples(size: Any = (), call: int = 0, *, device: torch.device) -> Tensor:
    """Follow the randomness of torch.func.vmap, as torch's own random operations do."""
    level: Any = retrieve_current_functorch_interpreter()
    randomness = level.randomness()
    if randomness == "error":
        torch.randint(0, 1, ())  # raises torch's error
    with level.lower(), torch._C._ExcludeDispatchKeyGuard(_VMAP):
        if randomness == "same":
            return _draw(size, device=device)
        seeds = _draw((level.batch_size(), *size), device=device)
    return torch._C._functorch._add_batch_dim(seeds, 0, level.level())


def _mark(mode: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Tensor:
    """Trace `draw_seed`: the seed must be saved, or drawn again from the same state."""
    size = args[0] if args else ()
    calls = sum(node.target is _draw for node in mode.tracer.graph.nodes)
    proxy = mode.tracer.create_proxy("call_function", _draw, (size, calls), kwargs)
    _save(proxy.node.meta)
    return track_tensor_tree(_draw(size, calls, **kwargs), proxy, constant=None, tracer=mode.tracer)


def _mark_drawn(mode: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Tensor:
    """Trace `saved`: mark the operation that `drawn` comes from."""
    (drawn,) = args
    slot = get_proxy_slot(drawn, mode.tracer, None)
    if slot is not None:
        node = slot.proxy.node
        while node.op == "call_function" and not _is_random(node) and node.all_input_nodes:
            node = node.all_input_nodes[0]
        if _is_random(node):
            _save(node.meta)
    with mode:
        return drawn.clone()


def _is_random(node: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _save(meta: dict[str, Any]) -> None:
    """Mark a node, so that its value is saved for the backward, whatever memory that may use.

    With a budget of 0 the partitioner saves nothing but inputs. The budget of a node goes before
    that of the configuration, so make that almost 0. That of a region goes before both: there, draw
    the seed again from the state of the generator.
    """
    from torch._functorch import config

    region = (meta.get("custom") or {}).get("_region_activation_memory_budget")
    if region == 0:
        meta["recompute"] = CheckpointPolicy.PREFER_RECOMPUTE
        return
    meta["recompute"] = CheckpointPolicy.MUST_SAVE
    if config.activation_memory_budget == 0:
        meta["memory_budget"] = 1e-9


_library.impl("draw_seed", _eager, "BackendSelect")
_library.impl("draw_seed", _of_examples, "FuncTorchVmapMode")
_library.impl("saved", torch.clone, "CompositeExplicitAutograd")
torch.library.register_fake("attnkernels::saved", torch.empty_like, lib=_library)
torch.library.register_vmap(
    "attnkernels::saved", lambda info, dims, drawn: (_saved(drawn), dims[0]), lib=_library
)
torch.library.register_torch_dispatch(
    "attnkernels::saved", ProxyTorchDispatchMode, _mark_drawn, lib=_library
)
torch.library.register_fake(_NAME, _fake, lib=_library)
torch.library.register_torch_dispatch(_NAME, ProxyTorchDispatchMode, _mark, lib=_library)
