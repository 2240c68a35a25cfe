#!/usr/bin/env bash
# torch 2.13.0 (pytorch/pytorch#190758): with torch._functorch.config.activation_memory_budget below
# 1, a compiled backward may compute the mask of F.dropout again, from new random numbers. It is then
# not the forward's mask and the gradients are wrong, without an error. Here the values are the
# identity, so the zeros of the result and of the values' gradient show both masks.
# Seen: the masks are equal at a budget of 1 and differ at 0. How low the budget must be depends on
# the model and the backend.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 || exit 2
cat >"$folder/check.py" <<'EOF'
import sys

import torch
import torch._functorch.config as config
from torch.nn import functional as F


def attend(scores, value):
    return F.dropout(scores.softmax(-1), 0.5) @ value


def same_mask(budget):
    config.activation_memory_budget = budget
    torch._dynamo.reset()
    torch.manual_seed(0)
    scores = torch.randn(4, 16, 16, requires_grad=True)
    identity = torch.eye(16).expand(4, 16, 16)
    value = identity.clone().requires_grad_()
    out = torch.compile(attend, backend="aot_eager_decomp_partition")(scores, value)
    (gradient,) = torch.autograd.grad(out, value, identity)
    return torch.equal(out != 0, gradient.mT != 0)


print(f"torch {torch.__version__}")
seen = {budget: same_mask(budget) for budget in (1, 0)}
for budget, same in seen.items():
    print(f"budget {budget}: the masks of forward and backward {'agree' if same else 'differ'}")
sys.exit(seen != {1: True, 0: False})
EOF
"$folder/venv/bin/python" -I -W ignore "$folder/check.py"
