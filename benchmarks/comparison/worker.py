"""Time the calls of one tree, as told by `interleave.py` in lines of JSON.

    python worker.py TREE THREADS

Both commits run this one file, so it imports only the package's public names from them.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor

Built = tuple[Callable[[], Tensor], tuple[Tensor, ...]]  # what is called, and gradients of what


class Given(NamedTuple):
    """Standard normal inputs, the same in both processes; `weight` has variance 1 / d."""

    query: Tensor  # (B, n, d)
    key: Tensor  # (B, m, d)
    value: Tensor  # (B, m, dv)
    weight: Tensor  # (d,)


def draw(shape: tuple[int, ...], dtype: torch.dtype, requires_grad: bool) -> Given:
    batch, n, m, d, dv = shape
    sizes = ((batch, n, d), (batch, m, d), (batch, m, dv), (d,))
    made = [torch.randn(size) for size in sizes]
    made[-1] /= d**0.5
    return Given(*(each.to(dtype).requires_grad_(requires_grad) for each in made))


def attention(given: Given) -> Built:
    from attnkernels import additive_attention

    return lambda: additive_attention(*given), given


def options(given: Given) -> Built:
    """Two masks and two extra results, which exercise most of the checks."""
    from attnkernels import additive_attention

    m = given.key.shape[1]
    named: dict[str, Any] = {
        "key_lengths": torch.full(given.key.shape[:1], m - 1),
        "attn_mask": torch.ones(given.query.shape[1], m, dtype=torch.bool),
        "return_weights": True,
        "return_lse": True,
    }
    return lambda: additive_attention(*given, **named)[0], given


def scores(given: Given) -> Built:
    from attnkernels import additive_scores

    query, key, _, weight = given
    return lambda: additive_scores(query, key, weight), (query, key, weight)


def varlen(given: Given) -> Built:
    """B sequences of one length, packed."""
    from attnkernels import additive_attention_varlen

    starts = torch.arange(given.query.shape[0] + 1, dtype=torch.int32)
    ends_q, ends_k = starts * given.query.shape[1], starts * given.key.shape[1]
    packed = [each.detach().flatten(0, 1) for each in given[:3]]
    rows = [each.requires_grad_(given.weight.requires_grad) for each in packed]
    query, key, value, weight = *rows, given.weight
    return (
        lambda: additive_attention_varlen(query, key, value, weight, ends_q, ends_k),
        (query, key, value, weight),
    )


def vmap(given: Given) -> Built:
    from attnkernels import additive_attention

    over = torch.vmap(additive_attention, in_dims=(0, 0, 0, None))
    return lambda: over(*given), given


def prepare_memory(given: Given) -> Built:
    from attnkernels import prepare_keys

    return lambda: prepare_keys(*given[1:]).key, given[1:]


def attend(given: Given) -> Built:
    from attnkernels import prepare_keys

    memory = prepare_keys(*given[1:])
    return lambda: memory.attend(given.query), given


def _module(given: Given) -> Any:
    from attnkernels.nn import AdditiveAttention

    d = given.weight.shape[0]
    return AdditiveAttention(d, d, d).requires_grad_(given.weight.requires_grad)


def module(given: Given) -> Built:
    made = _module(given)
    return lambda: made(given.query, given.key), (given.query, given.key, *made.parameters())


def module_step(given: Given) -> Built:
    """A step of one query; with gradients it also prepares, because a graph serves only once."""
    made, query = _module(given), given.query[:, 0].detach()
    if given.key.requires_grad:
        leaves = (query.requires_grad_(), given.key, *made.parameters())
        return lambda: made.step(query, made.prepare(given.key)), leaves
    memory = made.prepare(given.key)
    return lambda: made.step(query, memory), ()


def rnn(given: Given) -> Built:
    """n steps of a decoder, teacher-forced."""
    from attnkernels.nn import AttentionRNN

    d = given.weight.shape[0]
    decoder = AttentionRNN(torch.nn.GRUCell(2 * d, d), _module(given))
    decoder.requires_grad_(given.weight.requires_grad)
    leaves = (given.query, given.key, *decoder.parameters())
    return lambda: decoder(given.query, given.key)[1], leaves


KINDS: dict[str, Callable[[Given], Built]] = {
    "attention": attention,
    "options": options,
    "scores": scores,
    "varlen": varlen,
    "vmap": vmap,
    "prepare": prepare_memory,
    "attend": attend,
    "module": module,
    "module-step": module_step,
    "rnn": rnn,
}


def prepare(job: dict[str, Any]) -> Callable[[], object]:
    """Return the call of a job: its result, or with "both" the gradients of its inputs."""
    torch.manual_seed(0)
    backward = job["direction"] == "both"
    given = draw(tuple(job["shape"]), getattr(torch, job["dtype"]), backward)
    call, leaves = KINDS[job["kind"]](given)
    if not backward:
        return call
    arriving = torch.randn_like(call())
    return lambda: torch.autograd.grad(call(), leaves, arriving)


def mean_seconds(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


class Worker:
    """Answer requests: {"prepare": job} or {"warm": calls, "calls": calls, "samples": times}."""

    def __init__(self) -> None:
        self._call: Callable[[], object] | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            if "prepare" in request:
                return {"seconds": self._prepare(request["prepare"])}
            return {"seconds": self._run(**request)}
        except Exception as error:  # an older commit may lack what a case needs
            return {"error": f"{type(error).__name__}: {error}"}

    def _prepare(self, job: dict[str, Any]) -> list[float]:
        """Warm up; return how long one call takes, so that bursts can be sized."""
        self._call = None  # free its memory before allocating the next
        self._call = prepare(job)
        gc.collect()  # a collection would fall on one commit's calls
        once = mean_seconds(self._call, 1)
        if once < 0.05:
            mean_seconds(self._call, 10)
            once = mean_seconds(self._call, 5)
        return [once]

    def _run(self, warm: int, calls: int, samples: int) -> list[float]:
        if self._call is None:
            raise RuntimeError("no case is prepared")
        if warm:
            mean_seconds(self._call, warm)
        return [mean_seconds(self._call, calls) for _ in range(samples)]


def start(tree: Path, threads: int) -> dict[str, Any]:
    """Import the package of `tree`; raise ImportError if it is another's, or not compiled."""
    sys.path[0] = str(tree)  # instead of this file's folder
    import attnkernels

    path = Path(attnkernels.__file__).resolve()
    if not path.is_relative_to(tree.resolve()):
        raise ImportError(f"attnkernels is {path}, which is not in {tree}")
    torch.set_num_threads(threads)
    one = torch.ones(1, 1)
    attnkernels.additive_attention(one, one, one, one[0], backend="native")
    gc.disable()
    return {"package": str(path), "torch": torch.__version__, "threads": torch.get_num_threads()}


def serve(requests: TextIO, replies: TextIO, tree: Path, threads: int) -> None:
    """Reply to each line of `requests`, after a first reply that describes what was imported."""

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    try:
        reply(start(tree, threads))
    except Exception as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        return
    worker = Worker()
    for line in requests:
        reply(worker.answer(json.loads(line)))


if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of libraries must not mix with the replies
    serve(sys.stdin, replies, Path(sys.argv[1]), int(sys.argv[2]))
