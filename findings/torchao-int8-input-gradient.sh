#!/usr/bin/env bash
# torchao 0.18.0, torch 2.13.0: a Linear quantized with Int8DynamicActivationInt8WeightConfig gives a
# result that requires a gradient, and a backward that leaves the gradient of its input None. With
# float weights, or Int8WeightOnlyConfig, the input has a gradient. Layers below are then silently not
# trained. Seen: dynamic int8 None.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq torch==2.13.0 torchao==0.18.0 numpy==2.4.6 || exit 2
cat >"$folder/check.py" <<'EOF'
import sys
from importlib.metadata import version

import torch
from torch import nn
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)


def input_gradient(config):
    torch.manual_seed(0)
    linear, x = nn.Linear(16, 8), torch.randn(4, 16, requires_grad=True)
    if config is not None:
        quantize_(linear, config)
    out = linear(x)
    out.sum().backward()
    return out.requires_grad, None if x.grad is None else round(x.grad.abs().sum().item(), 1)


print(f"torch {torch.__version__}, torchao {version('torchao')}")
seen = {
    "float": input_gradient(None),
    "int8 weights": input_gradient(Int8WeightOnlyConfig()),
    "dynamic int8": input_gradient(Int8DynamicActivationInt8WeightConfig()),
}
for name, (required, gradient) in seen.items():
    print(f"{name}: result requires a gradient: {required}; input's gradient: {gradient}")
others = [gradient for name, (_, gradient) in seen.items() if name != "dynamic int8"]
sys.exit(not (all(others) and seen["dynamic int8"] == (True, None)))
EOF
"$folder/venv/bin/python" -I -W ignore "$folder/check.py"
