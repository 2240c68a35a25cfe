#!/usr/bin/env bash
# torch 2.13.0: torch.compile of a call of an autograd.Function with setup_context raises if no
# input requires a gradient and the call leaves out a default argument, or forward takes *inputs. The
# eager call returns. Dynamo calls forward with its context in front of the inputs, and these
# signatures have room for one more argument, so x holds the context.
# Seen: TypeError, unsupported operand type(s) for *: 'Function' and 'int'.
# The project applies its functions only if an input requires a gradient, and passes every argument.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq torch==2.13.0 || exit 2
cat >"$folder/check.py" <<'EOF'
import sys

import torch


class Double(torch.autograd.Function):
    @staticmethod
    def forward(x, unused=None):
        return x * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad * 2, None


class DoubleFirst(Double):
    @staticmethod
    def forward(*inputs):
        return inputs[0] * 2


def outcome(call, *inputs):
    try:
        return call(*inputs).tolist()
    except Exception as error:
        said = str(error).splitlines()
        found = [line.partition("raised exception ")[2] for line in said]
        return next(filter(None, found), said[0])


def cases(compiled):
    def wrap(function):
        def call(*inputs):
            return function.apply(*inputs)

        return torch.compile(call, backend="eager", fullgraph=True) if compiled else call

    one = torch.ones(2)
    return [
        outcome(wrap(Double), one),
        outcome(wrap(DoubleFirst), one, one),
        outcome(wrap(Double), one, None),  # right when the default is passed
    ]


print(f"torch {torch.__version__}")
eager, compiled = cases(False), cases(True)
for name, pair in zip(("default left out", "*inputs", "all passed"), zip(eager, compiled)):
    print(f"{name}: eager {pair[0]}, compiled {pair[1]}")
right = [2.0, 2.0]
holds = eager == [right] * 3 and right not in compiled[:2] and compiled[2] == right
sys.exit(not holds)
EOF
"$folder/venv/bin/python" -I -W ignore "$folder/check.py"
