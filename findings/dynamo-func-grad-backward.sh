#!/usr/bin/env bash
# torch 2.13.0 (pytorch/pytorch#193279): if torch.func.grad is compiled by torch.compile, the
# backward of an autograd.Function is not called: Dynamo traces its forward and differentiates that.
# No error and no warning. Here forward returns its input and backward reverses the gradient, as in
# training against an adversary. Seen: eager -1, compiled 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq torch==2.13.0 || exit 2
cat >"$folder/check.py" <<'EOF'
import sys

import torch


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return -grad


def loss(x):
    return Reverse.apply(x).sum()


x = torch.ones(1)
gradient = torch.func.grad(loss)
eager = gradient(x).item()
compiled = torch.compile(gradient, backend="eager", fullgraph=True)(x).item()
print(f"torch {torch.__version__}")
print(f"gradient: eager {eager:g}, compiled {compiled:g}")
sys.exit(not (eager == -1 and compiled == 1))
EOF
"$folder/venv/bin/python" -I -W ignore "$folder/check.py"
