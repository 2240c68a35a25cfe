"""Ctrl-C ends a long call on a CPU; Python's own handlers decide what it does."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

pytestmark = [
    pytest.mark.large,
    pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's"),
]

START = """
import os, signal, sys, threading, time, torch
from attnkernels import additive_attention, additive_scores, prepare_keys

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores the signal
torch.set_num_threads(THREADS)
n = 30_000
query, key, value = (torch.randn(1, n, 128) for _ in range(3))
weight = torch.randn(128)
small = [x[:, :70].clone().requires_grad_() for x in (query, key, value)]
expected = additive_attention(*small, weight, backend="native")

def interrupt(after):
    def send():
        time.sleep(after)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=send, daemon=True).start()
"""

LONG = {
    "forward": "additive_attention(query, key, value, weight, backend='native')",
    "memory": "prepare_keys(key, value, weight, backend='native').attend(query)",
    "scores": "additive_scores(query[:, :15_000], key[:, :15_000], weight, backend='native')",
}


def run(program: str, threads: int = 1) -> subprocess.CompletedProcess[str]:
    source = START.replace("THREADS", str(threads)) + program
    command = [sys.executable, "-c", source]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["forward", "memory", "scores"])
def test_ctrl_c_ends_a_long_call(name: str, threads: int) -> None:
    """The next call works, and gives the results of before."""
    program = f"""
interrupt(0.5)
try:
    {LONG[name]}
except KeyboardInterrupt:
    again = additive_attention(*small, weight, backend="native")
    assert torch.equal(again, expected)
    torch.autograd.grad(again.sum(), small)
    print("interrupted")
"""
    done = run(program, threads)
    assert done.stdout == "interrupted\n", done.stderr


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_a_long_backward(threads: int) -> None:
    program = """
n = 4_000
leaves = [x[:, :n].clone().requires_grad_() for x in (query, key, value)]
contexts = [additive_attention(*leaves, weight, backend="native")]
ran = []
class Begin(torch.autograd.Function):  # runs first in the backward
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, grad):
        interrupt(0.1)
        return grad
try:
    Begin.apply(contexts[0]).sum().backward()
    print("over before the signal")
except KeyboardInterrupt:
    assert all(x.grad is None for x in leaves)
    again = additive_attention(*small, weight, backend="native")
    torch.autograd.grad(again.sum(), small)
    print("interrupted")
"""
    done = run(program, threads)
    assert done.stdout == "interrupted\n", done.stdout + done.stderr


def test_a_handler_that_returns_lets_the_call_go_on() -> None:
    program = """
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
inputs = [x[:, :12_000] for x in (query, key, value)]
signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
found = additive_attention(*inputs, weight, backend="native")
signal.setitimer(signal.ITIMER_REAL, 0)
assert len(seen) > 1, seen  # signals that wait for the end of the call are one
assert torch.equal(found, additive_attention(*inputs, weight, backend="native"))
print("over")
"""
    done = run(program)
    assert done.stdout == "over\n", done.stderr


def test_the_exception_of_a_custom_handler_arrives() -> None:
    program = f"""
class Enough(Exception): ...
def handler(*_):
    raise Enough("of this")
signal.signal(signal.SIGINT, handler)
interrupt(0.5)
try:
    {LONG["forward"]}
except Enough as error:
    print(error)
"""
    done = run(program)
    assert done.stdout == "of this\n", done.stderr


def test_another_thread_is_not_interrupted() -> None:
    """Python runs handlers in its main thread only, which goes on while the other one computes."""
    program = """
results = []
inputs = [x[:, :5000] for x in (query, key, value)]
over = threading.Event()
def work():
    results.append(additive_attention(*inputs, weight, backend="native"))
    over.set()
threading.Thread(target=work).start()
interrupt(0.1)
try:
    over.wait(60)
except KeyboardInterrupt:
    over.wait(60)
assert torch.equal(results[0], additive_attention(*inputs, weight, backend="native"))
print("over")
"""
    done = run(program)
    assert done.stdout == "over\n", done.stderr


def test_the_process_dies_of_ctrl_c_in_two_seconds() -> None:
    """Not a timing test: 30,000 x 30,000 pairs of 128 units take many times as long."""
    source = START.replace("THREADS", "1") + 'print("ready", flush=True)\n' + LONG["forward"]
    with subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors
