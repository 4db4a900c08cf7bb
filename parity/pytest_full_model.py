"""`pytest -m full_model --checkpoint DIR`: a whole checkpoint judged as `parity checkpoint` judges it, a test a stage.

The run is made once, by the first of the tests. Without a checkpoint `-m full_model` has one test, which is skipped
and says how to run it; without either nothing happens and nothing of the harness is imported.
"""

from __future__ import annotations

import re

import pytest

MARK = "full_model"
REPORT = pytest.StashKey[object]()
HOW = "name a checkpoint: pytest -m full_model --checkpoint DIR [--original DIR] [--tokens FILE|TEXT]"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("parity full model", "judging a whole checkpoint")
    group.addoption("--checkpoint", metavar="DIR", help="judge this folder, as `parity checkpoint DIR` does")
    group.addoption("--original", metavar="DIR", help="what the checkpoint is a conversion of")
    group.addoption("--tokens", metavar="WHAT", help="ids or text, as of `parity checkpoint`")
    group.addoption("--layers", metavar="A-B", help="judge these layers only")
    group.addoption("--resume", metavar="DIR", help="keep what is done in this folder, and go on from there")
    group.addoption(
        "--generate", nargs="?", const=True, metavar="RECORDS", help="let dsv4_mlx continue prompts instead, a test"
    )
    group.addoption("--candidate", metavar="PORT", help="judge somebody else's port instead, a test")


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", f"{MARK}: judges a whole checkpoint; run with -m {MARK} --checkpoint DIR")


@pytest.hookimpl(tryfirst=True)  # before -k and -m choose among the items
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the tests of the checkpoint, or the one that says how to have some."""
    folder = config.getoption("--checkpoint")
    asked = re.search(rf"(?<!not ){MARK}", config.option.markexpr or "")
    if folder is None and not asked:
        return
    run = Run.from_parent(session, name=f"checkpoint[{folder}]" if folder else "checkpoint")
    found = run.collect()
    for item in found:
        item.add_marker(MARK)
    items.extend(found)


class StageFailed(Exception):
    """A stage that is red; its message is the stage's sentence."""


class Run(pytest.Collector):
    """All stages of one checkpoint."""

    def collect(self) -> list[pytest.Item]:
        folder, original = (self.config.getoption(f"--{name}") for name in ("checkpoint", "original"))
        if folder is None:
            return [StageItem.from_parent(self, name="how to run it")]
        from pathlib import Path

        for option, stage in (("--generate", "generate"), ("--candidate", "port")):
            if self.config.getoption(option) is not None:
                return [StageItem.from_parent(self, name=stage)]
        from .errors import BadInput
        from .streamed.ranges import FILES, Range
        from .streamed.source import Source
        from .streamed.stages import names_of

        try:
            config = Source(Path(folder), complain=original is None).config
            part = Range.read(self.config.getoption("--layers"), config.num_hidden_layers)
        except BadInput as error:
            raise pytest.UsageError(str(error)) from error
        names = [*[FILES] * (original is not None), *names_of(config)]
        return [StageItem.from_parent(self, name=name) for name in (*filter(part.judges, names), "text")]

    def report(self):
        """The run's report, made once."""
        if REPORT not in self.config.stash:
            self.config.stash[REPORT] = self._judge()
        outcome = self.config.stash[REPORT]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _judge(self):
        from .commands import whole
        from .commands.checkpoint import COUNT, judged, on_this_device
        from .commands.progress import Progress
        from .errors import ParityError

        if hasattr(self.config, "workerinput"):
            return StageFailed("A whole checkpoint needs the machine to itself; run without -n.")
        names = ("checkpoint", "original", "tokens", "resume", "layers", "generate", "candidate")
        folder, original, tokens, resume, layers, records, port = (self.config.getoption(f"--{name}") for name in names)
        capture = self.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled(), Progress() as progress:
            try:
                whole.check(self.config.option)
                with on_this_device() as environment:
                    if port is not None:
                        return whole.ported(folder, port, environment, progress, tokens, COUNT)
                    if records is not None:
                        return whole.generated(folder, records, environment, progress, tokens=tokens, count=COUNT)
                    return judged(folder, tokens, COUNT, None, resume, environment, progress, original, layers)
            except ParityError as error:
                return StageFailed(str(error))


class StageItem(pytest.Item):
    """One stage."""

    def runtest(self) -> None:
        if self.config.getoption("--checkpoint") is None:
            pytest.skip(HOW)
        report = self.parent.report()
        if report.verdict.value == "interrupted":
            raise KeyboardInterrupt
        stage = next((stage for stage in report.stages if stage["name"] == self.name), None)
        if self.name == "text":
            if report.verdict.value != "parity":
                raise StageFailed(report.sentence)
        elif stage is None:
            raise StageFailed(f"{self.name} was not judged: {report.sentence}")
        elif stage["verdict"] != "parity":
            raise StageFailed(f"{stage['name']} ({stage['kind']}): {stage['sentence']}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo, style=None):
        if isinstance(excinfo.value, StageFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self):
        return self.path, None, f"{self.parent.name}: {self.name}"
