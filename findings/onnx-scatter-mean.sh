#!/usr/bin/env bash
# onnxscript 0.7.2 (by torch 2.13.0): torch.onnx.export(dynamo=True) writes scatter_reduce with "mean" as
# ScatterElements with reduction "none", without an error or a warning. ONNX has no mean there: the last
# of the numbers that meet stays. Seen: 1 and 3 meet, torch gives 2.0 and ONNX Runtime 3.0.
# The project's GraphAttention divides a sum by counts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq torch==2.13.0 onnxscript==0.7.2 onnxruntime==1.32.0 numpy==2.4.6 || exit 2
cat >"$folder/check.py" <<'EOF'
import sys

import onnxruntime
import onnxscript
import torch


class Mean(torch.nn.Module):
    def forward(self, x, index):
        return torch.zeros(2).scatter_reduce(0, index, x, "mean", include_self=False)


x, index = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1])
program = torch.onnx.export(Mean(), (x, index), dynamo=True, verbose=False)
program.save(sys.argv[1])
session = onnxruntime.InferenceSession(sys.argv[1])
names = [each.name for each in session.get_inputs()]
(found,) = session.run(None, dict(zip(names, (x.numpy(), index.numpy()))))
print(f"torch {torch.__version__}, onnxscript {onnxscript.__version__}")
print(f"onnxruntime {onnxruntime.__version__}")
print(f"torch gives {Mean()(x, index).tolist()}, ONNX Runtime {found.tolist()}")
sys.exit(Mean()(x, index).tolist() != [2, 5] or found.tolist() == [2, 5])
EOF
"$folder/venv/bin/python" -I -W ignore "$folder/check.py" "$folder/mean.onnx"
