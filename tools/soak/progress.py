"""The state of a run: the next case, the failures, and the worst of each option."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from attnkernels.measure import files

from .case import VALUES, Case

Ratios = dict[str, float]


@dataclass
class Tally:
    """The cases with one value of an option, and the result nearest to its budget."""

    cases: int = 0
    failures: int = 0
    ratio: float = 0.0
    result: str = ""
    case: int = -1

    def count(self, number: int, ratios: Ratios | None) -> None:
        self.cases += 1
        if ratios is None:
            self.failures += 1
            return
        name = max(ratios, key=lambda each: ratios[each], default="")
        if name and ratios[name] > self.ratio:
            self.ratio, self.result, self.case = ratios[name], name, number

    def __str__(self) -> str:
        worst = f"{self.ratio:.2f} in case {self.case}, {self.result}" if self.result else "-"
        return f"{self.cases:>8,} {self.failures:>5} {worst}"


@dataclass
class Progress:
    """The state of one backend, kept in FOLDER/BACKEND.json."""

    folder: Path
    backend: str
    seed: int
    next: int = 0
    seconds: float = 0.0
    failures: list[int] = field(default_factory=list)
    ended_in: list[int] = field(default_factory=list)  # the cases that ended the process
    every: Tally = field(default_factory=Tally)
    tallies: dict[str, Tally] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, backend: str, seed: int) -> Progress:
        """Return the state of the last run with this seed, or a new one.

        A case that was being run when a process ended without a word is a failure.
        """
        progress = cls(folder, backend, seed)
        if progress.path.exists():
            kept = json.loads(progress.path.read_text(encoding="utf-8"))
            if kept["seed"] == seed:
                tallies = {name: Tally(**each) for name, each in kept.pop("tallies").items()}
                every = Tally(**kept.pop("every"))
                progress = cls(folder, every=every, tallies=tallies, **kept)
        if progress.running.exists():
            seed_then, _, number = progress.running.read_text().partition(" ")
            if int(seed_then or -1) == seed:
                progress.ended_in.append(int(number))
            progress.running.unlink()
        return progress

    @property
    def path(self) -> Path:
        return self.folder / f"{self.backend}.json"

    @property
    def running(self) -> Path:
        """The file with the case being run; an orderly end removes it."""
        return self.folder / f"{self.backend}.running"

    def save(self) -> None:
        state = asdict(self)
        del state["folder"]
        files.write(self.path, json.dumps(state, indent=1))

    def record(self, case: Case, ratios: Ratios | None, message: str | None) -> None:
        """Count a case, with the ratios of `check`, or the message of its failure."""
        self.next = case.number + 1
        self.every.count(case.number, ratios)
        for option, values in case.tags().items():
            for value in values:
                name = f"{option}: {value}"
                self.tallies.setdefault(name, Tally()).count(case.number, ratios)
        if message is not None:
            self.failures.append(case.number)
            line = {
                "backend": self.backend,
                "seed": self.seed,
                "case": case.number,
                "message": message,
                "command": case.command,
                "options": case.tags(),
            }
            with (self.folder / "failures.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.save()  # so that no failure is written twice

    def summary(self) -> str:
        """Return a table: cases, failures and the worst ratio to the budget of every option."""
        rate = f"{self.seconds / max(1, self.every.cases) * 1e3:.1f} ms per case"
        lines = [
            f"{self.backend}, seed {self.seed}, {rate}",
            f"{'option':<32} {'cases':>8} {'fail':>5} worst ratio to the budget",
            f"{'all':<32} {self.every}",
        ]
        for option, values in VALUES.items():
            for value in values:
                name = f"{option}: {value}"
                if name in self.tallies:
                    lines.append(f"{name:<32} {self.tallies[name]}")
        if self.failures:
            shown = ", ".join(map(str, self.failures[:20]))
            more = "" if len(self.failures) <= 20 else f" and {len(self.failures) - 20} more"
            lines.append(f"failures: {shown}{more}; see {self.folder / 'failures.jsonl'}")
        return "\n".join(lines)
