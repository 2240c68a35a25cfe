"""Commands refuse an option that they could not follow, before they begin."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "module, arguments",
    [
        ("benchmarks.compare", ["--base", "HEAD"]),
        ("benchmarks.suite.swap", []),
        ("benchmarks.suite.decoders", []),
        ("tools.sass.run", []),
    ],
)
def test_refuses_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], module: str, arguments: list[str]
) -> None:
    command = pytest.importorskip("triton") and import_module(module)
    with pytest.raises(SystemExit) as stopped:
        command.main([*arguments, "--json", str(tmp_path)])
    assert stopped.value.code == 2
    assert "it is a folder, and must be a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "module",
    ["benchmarks.gpu.run", "benchmarks.gpu.cases", "benchmarks.gpu.check", "benchmarks.gpu.sweep"]
    + [
        f"examples.{name}"
        for name in ("g2p", "translate", "char_cost", "caption_digits", "glimpse_digits")
    ],
)
def test_refuses_a_file_in_place_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], module: str
) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit) as stopped:
            import_module(module).main(["--out", str(out)])
        assert stopped.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert f"argument --out: cannot write to {out}: Not a directory" in last


@pytest.mark.parametrize(
    "module, arguments",
    [
        ("attnkernels.profile.command", ["--seed", "1e23"]),
        ("attnkernels.profile.command", ["--dim", "0"]),
        ("attnkernels.profile.command", ["--dim", str(2**63)]),
        ("benchmarks.suite.run", ["--threads", "0"]),
        ("benchmarks.suite.run", ["--seconds", "nan"]),
        ("benchmarks.suite.swap", ["--seconds", "nan"]),
        ("benchmarks.suite.decoders", ["--steps", "0"]),
        ("benchmarks.compare", ["--threads", "-1"]),
        ("benchmarks.compare", ["--seconds", "-1"]),
        ("benchmarks.gpu.run", ["--budget", "nan"]),
        ("benchmarks.gpu.cases", ["--seconds", "nan"]),
        ("benchmarks.host", ["--rounds", "0"]),
        ("benchmarks.gpu.sweep", ["--seconds", "soon"]),
        ("examples.char_cost", ["--dim", "-2"]),
        ("examples.char_cost", ["--seed", str(2**64)]),
    ],
)
def test_refuses_a_number_out_of_range(
    capsys: pytest.CaptureFixture[str], module: str, arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        import_module(module).main(arguments)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"error: argument {arguments[0]}: " in last and "invalid" not in last
