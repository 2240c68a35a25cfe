#!/usr/bin/env bash
# triton 3.9.0 (and 3.7.1): with TRITON_INTERPRET=1, a sum of bfloat16 numbers is the sum of their bit
# patterns: 1 + 1 gives 1.7e38, without an error. float32 and float16 are right. Compiled kernels are
# not affected. Seen: bfloat16 1 + 1 = 1.7014118346046923e+38.
# The project's Triton kernels cast what they load to float32 before any arithmetic.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq torch==2.13.0 triton==3.9.0 numpy==2.4.6 || exit 2
cat >"$folder/check.py" <<'EOF'
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated
import torch
import triton
import triton.language as tl


@triton.jit
def add(x, y, out):
    tl.store(out, tl.load(x) + tl.load(y))


def one_plus_one(dtype):
    one, out = torch.ones(1, dtype=dtype), torch.empty(1, dtype=dtype)
    add[(1,)](one, one, out)
    return out.item()


print(f"torch {torch.__version__}, triton {triton.__version__}")
seen = {dtype: one_plus_one(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)}
for dtype, result in seen.items():
    print(f"{dtype}: 1 + 1 = {result}")
sys.exit(list(seen.values())[:2] != [2, 2] or seen[torch.bfloat16] == 2)
EOF
"$folder/venv/bin/python" -I -W ignore "$folder/check.py"
