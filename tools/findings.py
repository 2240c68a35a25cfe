"""Run the scripts of findings/ one by one and say which still hold.

    python -m tools.findings [NAME ...] [--timeout 900] [--folder findings]

Each script installs what it needs into a temporary folder, which is removed when it ends. It
exits with 0 while its finding holds and with 1 when it no longer does; any other status means that
it could not be tried. The command exits with 0 when every finding holds, and with 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "findings"
TIMEOUT = 900.0  # seconds, most of them for installing torch
HOLDS, GONE = "holds", "no longer holds"
VERDICTS = {0: HOLDS, 1: GONE}


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.findings", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every script")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, metavar="S", help="per script")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the scripts")
    options = parser.parse_args(arguments)
    scripts = {path.stem: path for path in sorted(options.folder.glob("*.sh"))}
    if unknown := [name for name in options.names if name not in scripts]:
        parser.error(f"no finding is named {unknown[0]!r}; there are {', '.join(scripts)}")

    verdicts = []
    for name in options.names or scripts:
        verdict, output = run(scripts[name], options.timeout)
        verdicts.append(verdict)
        print(f"{name}: {verdict}", flush=True)
        for line in output.splitlines():
            print(f"    {line}")
    held = verdicts.count(HOLDS)
    print(f"{held} of {len(verdicts)} findings hold")
    return int(held < len(verdicts))


def run(script: Path, timeout: float) -> tuple[str, str]:
    """Run one script in a temporary folder and return the verdict and what it printed."""
    with tempfile.TemporaryDirectory(prefix="finding-") as folder:
        environment = {**os.environ, "TMPDIR": folder, "PYTHON": sys.executable}
        for name in ("PYTHONPATH", "TRITON_INTERPRET"):  # a finding sees the library alone
            environment.pop(name, None)
        process = subprocess.Popen(
            ["bash", str(script.resolve())],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what the script started
            output, _ = process.communicate()
            return f"timed out after {timeout:g} s", output
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    status = process.returncode
    return VERDICTS.get(status, f"could not be tried (exit status {status})"), output


if __name__ == "__main__":
    sys.exit(main())
