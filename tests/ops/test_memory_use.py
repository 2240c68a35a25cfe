"""Peak memory grows as n + m, forward and backward, with any option."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROBE = """
import sys, torch
from attnkernels import additive_attention, additive_attention_varlen, additive_scores

def kib(field):
    with open("/proc/self/status") as status:
        return int(next(line.split()[1] for line in status if line.startswith(field)))

def peak(work):
    '''KiB by which the process grew, at its highest, while it worked.'''
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
    before = kib("VmRSS:")
    work()
    return kib("VmHWM:") - before

def run(n, options):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, n, 64, requires_grad=True) for _ in range(3))
    weight = torch.randn(64, requires_grad=True)
    options = dict(options)
    packed = options.pop("packed", False)
    if "attn_mask" in options:
        options["attn_mask"] = torch.zeros(1, n, requires_grad=True)
    if "key_lengths" in options:
        options["key_lengths"] = torch.tensor([n - 5])
    def work():
        if packed:
            ends = torch.tensor([0, n // 3, n])
            inputs = query[0], key[0], value[0], weight, ends, ends
            context = additive_attention_varlen(*inputs, **options)
        else:
            context = additive_attention(query, key, value, weight, **options)
        context.square().sum().backward()
    return peak(work)

torch.set_num_threads(2)
options = eval(sys.argv[1])
run(64, options)
print(run(2048, options), run(8192, options))
"""

CASES: dict[str, dict[str, object]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "a window": {"window_size": (100, 30)},
    "a window of packed": {"packed": True, "window_size": (100, 30)},
    "dropout": {"dropout_p": 0.1},
    "broadcast mask with a gradient": {"attn_mask": None, "key_lengths": None},
    "packed": {"packed": True},
}


@pytest.mark.large
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc/self")
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_peak_is_linear_in_the_lengths(fused: str, options: dict[str, object]) -> None:
    """8192 x 8192 scores take 256 MiB: a quarter of that is already a failure."""
    command = [sys.executable, "-c", PROBE, repr({**options, "backend": fused})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    short, long = (int(word) / 1024 for word in done.stdout.split())
    assert long < 64, f"{long:.0f} MiB above the inputs, {short:.0f} MiB at a quarter of the length"
    assert long < 4 * short + 16, f"{short:.0f} MiB at 2048 grew to {long:.0f} MiB at 8192"
