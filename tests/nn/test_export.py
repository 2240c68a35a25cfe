"""torch.export of modules: the program gives the module's results at every size."""

from __future__ import annotations

import pytest
import torch
from helpers.exported import CASES, EXAMPLE, SIZES, Exported


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_batch_and_lengths_are_dynamic(case: Exported, strict: bool) -> None:
    module = case.module().eval()
    with torch.no_grad():
        program = torch.export.export(
            module, case.inputs(*EXAMPLE), dynamic_shapes=case.dynamic, strict=strict
        ).module()
        for sizes in SIZES:
            inputs = case.inputs(*sizes)
            torch.testing.assert_close(program(*inputs), module(*inputs))
