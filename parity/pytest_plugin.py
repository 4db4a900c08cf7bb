"""A port's own test suite runs the gate: `pytest --parity-candidate mlx_lm.models.deepseek_v4`.

One test a cell of the matrix. The gate runs once, when the first of them does; without the option nothing happens and
nothing of the harness is imported.
"""

from __future__ import annotations

import pytest

OUTCOME = pytest.StashKey[object]()  # the gate's report, or the CellFailed that stands for it


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("parity", "judging a port of DeepSeek-V4")
    group.addoption(
        "--parity-candidate",
        metavar="CANDIDATE",
        help="judge this port, as `parity gate CANDIDATE` does: a test a cell",
    )
    group.addoption(
        "--parity-profile", metavar="P", default="quick", help="how hard to look: quick (default), full, exhaustive"
    )


@pytest.hookimpl(tryfirst=True)  # before -k and -m choose among the items
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the gate's tests to those that the arguments name."""
    candidate = config.getoption("--parity-candidate")
    if candidate:
        gate = Gate.from_parent(session, name=f"parity[{candidate}]", nodeid=f"parity[{candidate}]")
        items.extend(gate.collect())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the cells alone do not tell: the verdict, the diagnosis, the gaps."""
    report = terminalreporter.config.stash.get(OUTCOME, None)
    if report is None or isinstance(report, CellFailed):
        return
    terminalreporter.section(f"parity gate {report.candidate.name}: {report.verdict.value}")
    terminalreporter.write_line(report.sentence)
    for item in report.diagnosis:
        terminalreporter.write_line(item.sentence)
        for line in item.formula:
            terminalreporter.write_line(f"  it should read: {line}")
    for gap in report.gaps:
        terminalreporter.write_line(f"not offered: {gap.what}: {gap.sentence}")
    terminalreporter.write_line(f"again: {report.reproduce}")


class CellFailed(Exception):
    """A cell that is red; its message is the cell's sentence."""


class Gate(pytest.Collector):
    """The matrix of one candidate under one profile."""

    def collect(self) -> list[pytest.Item]:
        from .probes import PROFILES, of_profile

        profile = self.config.getoption("--parity-profile")
        if profile not in PROFILES:
            raise pytest.UsageError(f"--parity-profile does not know '{profile}'; known: {', '.join(PROFILES)}.")
        return [
            CellItem.from_parent(self, name=f"{probe.mechanism}[{schedule}]", place=(probe.mechanism, schedule))
            for probe in of_profile(profile)
            for schedule in probe.schedules
        ]

    def report(self):
        """The gate's report, made once. Raises CellFailed where the gate could not start."""
        if self.config.stash.get(OUTCOME, None) is None:
            self.config.stash[OUTCOME] = self._judge()
        outcome = self.config.stash[OUTCOME]
        if isinstance(outcome, CellFailed):
            raise outcome
        return outcome

    def _judge(self):
        from .errors import ParityError
        from .gate import judge

        try:
            return judge(
                self.config.getoption("--parity-candidate"),
                profile=self.config.getoption("--parity-profile"),
                seed=0,
            )
        except ParityError as error:
            return CellFailed(str(error))
        except Exception as error:  # once is enough: the next cell would wait for the same failure
            return CellFailed(f"the harness itself failed ({type(error).__name__}: {error})")


class CellItem(pytest.Item):
    """One mechanism under one schedule."""

    def __init__(self, *, place: tuple[str, str], **arguments):
        super().__init__(**arguments)
        self.place = place

    def runtest(self) -> None:
        from .results import Verdict

        report = self.parent.report()
        cell = next((cell for cell in report.cells if (cell.mechanism, cell.schedule) == self.place), None)
        if cell is None:
            raise CellFailed(report.sentence)
        if cell.verdict in (Verdict.COVERAGE_GAP, Verdict.INCONCLUSIVE):
            pytest.skip(cell.sentence)
        if cell.verdict is not Verdict.PARITY:
            defects = f"\nThis is how {', '.join(cell.explained_by)} behaves." if cell.explained_by else ""
            because = f"\nIt may only follow from {', '.join(cell.because)}." if cell.because else ""
            raise CellFailed(f"{cell.sentence}{defects}{because}\nagain: {report.reproduce}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo, style=None):
        if isinstance(excinfo.value, CellFailed):
            return f"{self.place[0]} under {self.place[1]}: {excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self):
        return self.path, None, f"parity: {self.name}"
