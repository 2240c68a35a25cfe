#!/usr/bin/env bash
# torch 2.13.0: a named tuple of tensors with dynamic sizes, whose earlier field is the beginning of the
# name of a later one (source, source_begin), makes torch.export.export(...).module() raise a
# SyntaxError. Names in the code of the guards are replaced one by one, as text. With the fields in the
# other order it works. Seen: SyntaxError: invalid syntax. Perhaps you forgot a comma?
# The project's Edges has source_begin before source.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 || exit 2
cat >"$folder/check.py" <<'EOF'
import sys
from typing import NamedTuple

import torch


class Alike(NamedTuple):
    source: torch.Tensor
    source_begin: torch.Tensor


class Reordered(NamedTuple):
    source_begin: torch.Tensor
    source: torch.Tensor


class Counts(torch.nn.Module):
    def forward(self, edges):
        return edges.source.sum() + edges.source_begin.diff().sum()


def exported(edges):
    size = {0: torch.export.Dim.DYNAMIC}
    example = edges(source=torch.ones(3), source_begin=torch.arange(4.0))
    sizes = (edges(size, size),)
    program = torch.export.export(Counts(), (example,), dynamic_shapes=sizes)
    try:
        return program.module()(edges(source=torch.ones(5), source_begin=torch.arange(6.0))).item()
    except SyntaxError as error:
        return f"SyntaxError: {error.msg}"


print(f"torch {torch.__version__}")
seen = [exported(edges) for edges in (Alike, Reordered)]
for edges, result in zip((Alike, Reordered), seen):
    print(f"{edges._fields}: {result}")
sys.exit(seen[1] != 10 or not str(seen[0]).startswith("SyntaxError"))
EOF
"$folder/venv/bin/python" -I -W ignore "$folder/check.py"
