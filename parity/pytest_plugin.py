"""A port's own test suite runs the gate: `pytest --parity-candidate mlx_lm.models.deepseek_v4`.

One test a cell of the matrix, whose id can be given to pytest as that of any other. The gate runs once, when the first
of them does: under pytest-xdist in one worker, while others that need it wait. Without the option nothing happens and
nothing of the harness is imported.
"""

from __future__ import annotations

import pickle
import shutil
import tempfile
from pathlib import Path

import pytest

OUTCOME = pytest.StashKey[object]()  # the gate's report, or the CellFailed that stands for it
FOLDER = pytest.StashKey[str]()  # where the workers of pytest-xdist share it
CHOSEN = pytest.StashKey[list[str]]()  # the ids that the arguments name


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


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what would judge nothing."""
    candidate = config.getoption("--parity-candidate")
    if candidate is not None and not candidate.strip():
        raise pytest.UsageError("--parity-candidate is empty; name the port that is to be judged.")


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Take the ids of the gate's tests out of the arguments: they are no files."""
    if session.config.getoption("--parity-candidate"):
        arguments = session.config.args
        session.config.stash[CHOSEN] = [text for text in arguments if text.startswith("parity[")]
        session.config.args = [text for text in arguments if not text.startswith("parity[")]


@pytest.hookimpl(tryfirst=True)  # before -k and -m choose among the items
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the gate's tests to those that the arguments name."""
    candidate = config.getoption("--parity-candidate")
    if candidate:
        gate = Gate.from_parent(session, name=f"parity[{candidate}]", nodeid=f"parity[{candidate}]")
        chosen, found = config.stash[CHOSEN], gate.collect()
        for text in chosen:
            if not any(item.nodeid == text or text == gate.nodeid for item in found):
                raise pytest.UsageError(f"There is no test {text} in the profile that is judged.")
        items.extend(item for item in found if not chosen or {item.nodeid, gate.nodeid} & {*chosen})


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    """Under pytest-xdist: tell a worker where all of them share the report."""
    if node.config.getoption("--parity-candidate"):
        if FOLDER not in node.config.stash:
            node.config.stash[FOLDER] = tempfile.mkdtemp(prefix="parity-")
        node.workerinput["parity_folder"] = node.config.stash[FOLDER]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    if FOLDER in config.stash:
        shutil.rmtree(config.stash[FOLDER], ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the cells alone do not tell: the verdict, the diagnosis, the gaps."""
    config = terminalreporter.config
    report = _shared(Path(config.stash[FOLDER])) if FOLDER in config.stash else config.stash.get(OUTCOME, None)
    if report is None or isinstance(report, CellFailed):
        return
    terminalreporter.section(f"parity gate {report.candidate.name}: {report.verdict.value}")
    terminalreporter.write_line(report.sentence)
    for item in report.diagnosis:
        terminalreporter.write_line(item.sentence)
        for line in item.formula:
            terminalreporter.write_line(f"  it should read: {line}")
    for one in report.beyond:
        terminalreporter.write_line(f"beyond published configs: {one.mechanism}, though {one.why}: {one.sentence}")
    for gap in report.gaps:
        terminalreporter.write_line(f"not judged: {gap.what}: {gap.sentence}")
    terminalreporter.write_line(f"again: {report.reproduce}")


def _shared(folder: Path):
    """The outcome that a worker left, if one did."""
    path = folder / "outcome"
    return pickle.loads(path.read_bytes()) if path.exists() else None


def _lines(report, place: tuple[str, str]) -> list[str]:
    """Where in the candidate's own code a cell goes wrong: `after file:line, at file:line: sentence`."""
    from .gate.results import where

    found = []
    for one in report.lines:
        after = [f"after {where(one.after.file, one.after.line)}"] if one.kind == "between" and one.after else []
        at = [f"{'likely ' * (one.kind == 'likely')}at {where(one.at.file, one.at.line)}"] if one.at else []
        if (one.mechanism, one.schedule) == place:
            found.append(": ".join(filter(None, [", ".join([*after, *at]), one.sentence])))
    return found


class CellFailed(Exception):
    """A cell that is red; its message is the cell's sentence."""


class Gate(pytest.Collector):
    """The matrix of one candidate under one profile."""

    def collect(self) -> list[pytest.Item]:
        from .gate.lives import CACHES, LIVES
        from .gate.probes import PROFILES, of_profile

        profile = self.config.getoption("--parity-profile")
        if profile not in PROFILES:
            raise pytest.UsageError(f"--parity-profile does not know '{profile}'; known: {', '.join(PROFILES)}.")
        cells = [self._cell(probe.mechanism, schedule) for probe in of_profile(profile) for schedule in probe.schedules]
        return [*cells, self._cell(CACHES, LIVES)]

    def _cell(self, mechanism: str, schedule: str) -> pytest.Item:
        name = f"{mechanism}[{schedule}]"
        # By its text, as --lf reads it again: a name with brackets that is joined to its parent's is another id.
        return CellItem.from_parent(self, name=name, nodeid=f"{self.nodeid}::{name}", place=(mechanism, schedule))

    def report(self):
        """The gate's report, made once. Raises CellFailed where the gate could not start."""
        if self.config.stash.get(OUTCOME, None) is None:
            given = getattr(self.config, "workerinput", {}).get("parity_folder")
            self.config.stash[OUTCOME] = self._judged_by_one(Path(given)) if given else self._judge()
        outcome = self.config.stash[OUTCOME]
        if isinstance(outcome, CellFailed):
            raise outcome
        return outcome

    def _judged_by_one(self, folder: Path):
        """By the first worker that comes; one that dies leaves it to the next."""
        import fcntl

        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            outcome = _shared(folder)
            if outcome is None:
                outcome = self._judge()
                (folder / "unfinished").write_bytes(pickle.dumps(outcome))
                (folder / "unfinished").rename(folder / "outcome")
            return outcome

    def _judge(self):
        import torch

        from .beside.plan import asked
        from .environment import use_one_thread
        from .errors import ParityError
        from .jobs.gate import judge
        from .jobs.gate_command import Asked
        from .results import Verdict

        threads = torch.get_num_threads()
        use_one_thread()  # five times as fast on tensors of this size
        try:
            report = judge(
                self.config.getoption("--parity-candidate"),
                Asked(profile=self.config.getoption("--parity-profile")),
                plan=asked("cpu"),  # the verdict on the maths, whatever else is here
            )
            if report.verdict is Verdict.INTERRUPTED:  # Ctrl-C ends the tests, not the gate alone
                raise KeyboardInterrupt
            return report
        except ParityError as error:
            return CellFailed(str(error))
        except Exception as error:  # once is enough: the next cell would wait for the same failure
            return CellFailed(f"the harness itself failed ({type(error).__name__}: {error})")
        finally:
            torch.set_num_threads(threads)


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
        why = next((row.beyond for row in report.mechanisms if row.name == cell.mechanism), "")
        if why and cell.verdict is not Verdict.PARITY:
            pytest.skip(f"does not count, as {why}: {cell.sentence}")
        if cell.verdict is not Verdict.PARITY:
            defects = f"\nThis is how {', '.join(cell.explained_by)} behaves." if cell.explained_by else ""
            because = f"\nIt may only follow from {', '.join(cell.because)}." if cell.because else ""
            lines = "".join(f"\nIn its own code: {said}" for said in _lines(report, self.place))
            raise CellFailed(f"{cell.sentence}{defects}{because}{lines}\nagain: {report.reproduce}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo, style=None):
        if isinstance(excinfo.value, CellFailed):
            return f"{self.place[0]} under {self.place[1]}: {excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self):
        return self.path, None, f"parity: {self.name}"
