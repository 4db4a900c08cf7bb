"""What the command does when the outside does not play along: pipes, full disks, signals, names, paths.

Run: pytest tests/test_outputs.py
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

from parity import cli
from parity.cases.resources import fixtures_path
from parity.commands import outputs
from parity.errors import BadEnvironment, Stopped, stopped_by
from parity.gate.results import Candidate, GateReport
from parity.jobs.gate_command import Asked
from parity.report import document
from parity.results import Verdict

GOLDEN = fixtures_path() / "golden"
SMALL = str(GOLDEN / "flash_short_exact")
REPOSITORY = Path(__file__).parents[1]
FULL = Path("/dev/full")
full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


def parity(*arguments, **options):
    """A process of its own: what it writes where is what is asked."""
    command = [sys.executable, "-m", "parity", *arguments]
    # What a shell starts in the background ignores Ctrl-C, and so do all that it starts.
    listening = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, preexec_fn=listening, **options)


def sentence(text):
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("parity: ")
    assert lines[0][-1] in '.?"'
    return lines[0]


@pytest.fixture(scope="module")
def red(tmp_path_factory):
    """A recorded case that no implementation agrees with."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("red") / "case"
    folder.mkdir()
    for path in Path(SMALL).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    vectors = load_file(folder / "vectors.safetensors")
    vectors["logits.oneshot"] += 1
    save_file(vectors, folder / "vectors.safetensors")
    return str(folder)


# --- pipes and full disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("green", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_closed_pipe_changes_no_exit_code(red, green):
    with parity("golden", SMALL if green else red, stdout=subprocess.PIPE) as process:
        process.stdout.close()  # as `| head -0` does
        said = process.stderr.read()
    assert process.returncode == (0 if green else 1), said
    assert "Error" not in said


@full
@pytest.mark.parametrize("green", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_full_standard_output_is_said_and_no_green(red, green):
    with FULL.open("w") as nowhere, parity("golden", SMALL if green else red, stdout=nowhere) as process:
        said = process.stderr.read()
    assert process.returncode == (3 if green else 1)
    assert "Standard output cannot be written (No space left on device)." in said


@full
def test_a_document_that_cannot_be_written_comes_after_the_verdict(capsys, red):
    for case, verdict, code in ((SMALL, "parity (exit 0)", 3), (red, "diverges (exit 1)", 1)):
        assert cli.main(["golden", case, "--json", "/dev/full"]) == code
        captured = capsys.readouterr()
        assert verdict in captured.out
        assert sentence(captured.err) == "parity: /dev/full cannot be written (No space left on device)."


def test_every_document_is_tried(tmp_path, capsys, monkeypatch):
    """One that fails keeps no other from being written."""
    report = GateReport(Candidate("x", "hf"), "quick", 0, Verdict.PARITY, "Fine.")
    write = document.write_text

    def failing(content, path):
        if path.endswith(".html"):
            raise BadEnvironment("The page cannot be written.")
        write(content, path)

    monkeypatch.setattr(document, "write_text", failing)
    names = ("html", "json", "junit", "markdown", "sarif")
    options = cli.parser().parse_args(["gate", "x", *(f"--{name}={tmp_path / 'report'}.{name}" for name in names)])
    from parity.commands.gate import finish

    assert finish(report, options) == 3
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".junit", ".markdown", ".sarif"}
    captured = capsys.readouterr()
    assert "Fine." in captured.out
    assert sentence(captured.err) == "parity: The page cannot be written."


def test_a_report_of_bad_input_has_every_document(tmp_path, capsys):
    names = ("html", "json", "junit", "markdown", "sarif")
    wanted = [f"--{name}={tmp_path / 'report'}.{name}" for name in names]
    for arguments in (["gate", ""], ["gate", "dsv4_mlx", "--profile", "fast"], ["gate", "hf", "--require", "speed"]):
        assert cli.main([*arguments, *wanted]) == 2
        said = sentence(capsys.readouterr().err).removeprefix("parity: ")
        for name in names:
            path = tmp_path / f"report.{name}"
            assert path.exists(), name
            if name == "json":
                content = json.loads(path.read_text())
                jsonschema.validate(content, document.schema("dsv4-parity/gate/1"))
                assert (content["verdict"], content["sentence"]) == ("bad input", said)
            path.unlink()


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError("1024 requested and 0 written"),
        MemoryError(),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"),
    ],
)
def test_no_room_is_the_machines_fault(capsys, monkeypatch, error):
    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr("parity.jobs.golden.golden", fails)
    assert cli.main(["golden", SMALL]) == 3
    assert sentence(capsys.readouterr().err).startswith("parity: This machine has no room to work in (")
    assert outputs.no_room(ValueError("x")) is None


# --- paths and names -----------------------------------------------------------------------------------------

LONG = "x" * 300
PATHS = [LONG, f"{LONG}.py", f"{LONG}/x.py", "~nosuchuser/x.py", "loop", "loop/x.py", "nothing\0.py", "a" * 5000]


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_paths_that_are_none(somewhere, capsys, path):
    for arguments in (
        ["gate", path],
        ["golden", path],
        ["golden", SMALL, "--json", path],
        ["gate", "dsv4_mlx", "--html", path],
        ["gate", "dsv4_mlx", "--bundle", path],
        ["gate", "dsv4_mlx", "--baseline", path],
    ):
        code = cli.main(arguments)
        captured = capsys.readouterr()
        assert code == 2, (arguments, captured)
        sentence(captured.err)


def test_a_pipe_is_not_waited_for(somewhere, capsys, tmp_path):
    os.mkfifo(tmp_path / "config.json")
    for arguments in (["gate", "dsv4_mlx", "--baseline", "pipe"], ["golden", "pipe"], ["golden", "."]):
        assert cli.main(arguments) == 2
        sentence(capsys.readouterr().err)


def test_a_name_that_the_encoding_lacks_is_shown_by_its_code():
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    with parity("gate", "pört.py", env=environment, stdout=subprocess.PIPE) as process:
        said = sentence(process.stderr.read())
    assert process.returncode == 2
    assert "There is no file or folder p\\" in said


def test_a_name_cannot_write_on_the_terminal(capsys):
    for name in ("a\nparity: fine.py", "\x1b[2Jclear.py", "0\x1e", "\u2028.py"):
        assert cli.main(["gate", name]) == 2
        said = sentence(capsys.readouterr().err)
        assert said.isprintable()


NAMES = ["$(touch x).py", "a b.py", "-x.py", "'; rm x; '.py", "plain.py"]


@pytest.mark.parametrize("name", NAMES)
def test_the_command_to_run_again_can_be_pasted(name):
    said = Asked("quick", 3, "any", "auto", ("decode", "mtp"), timeout=5.0, memory=2.5).command(name)
    words = shlex.split(said)
    assert words[:2] == ["parity", "gate"]
    options = cli.parser().parse_args(words[1:])
    assert (options.candidate, options.seed, options.timeout, options.memory) == (name, 3, 5.0, 2.5)
    assert options.require == ["decode", "mtp"]
    echoed = subprocess.run(["sh", "-c", f"printf '%s\\n' {said}"], capture_output=True, text=True, check=True)
    assert echoed.stdout.splitlines() == words
    assert "--timeout" not in Asked("quick", 3, "any", "auto").command(name)


# --- signals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGHUP, signal.SIGINT))]
)
def test_a_signal_ends_a_gate_cleanly(tmp_path, number):
    scratch, target = tmp_path / "scratch", tmp_path / "report.json"
    scratch.mkdir()
    environment = os.environ | {"TMPDIR": str(scratch)}
    with parity("gate", "dsv4_mlx", "--json", str(target), env=environment, stdout=subprocess.PIPE) as process:
        while not list(scratch.glob("parity-*/checkpoint")):  # the candidate lives, probes are being judged
            assert process.poll() is None
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        candidates = children.read_text().split() if children.exists() else []
        process.send_signal(number)
        out = process.stdout.read()
    assert process.returncode == 130
    assert not list(scratch.iterdir())
    assert not [pid for pid in candidates if Path("/proc", pid).exists()]
    content = json.loads(target.read_text())
    jsonschema.validate(content, document.schema("dsv4-parity/gate/1"))
    assert (content["verdict"], content["exit_code"]) == ("interrupted", 130)
    assert content["sentence"].startswith("Interrupted")
    assert content["sentence"] in " ".join(out.split())


@pytest.mark.parametrize(
    "arguments",
    [("run",), pytest.param(("golden", *sorted(map(str, GOLDEN.glob("*_exact")))), marks=pytest.mark.slow)],
    ids=["run", "golden"],
)
def test_a_signal_ends_a_run_with_its_document(tmp_path, arguments):
    target = tmp_path / "report.json"
    with parity(*arguments, "--json", str(target), stdout=subprocess.PIPE) as process:
        assert process.stderr.readline()  # the first line of progress
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        process.stderr.read()
    assert process.returncode == 130
    content = json.loads(target.read_text())
    jsonschema.validate(content, document.schema())
    assert content["verdict"] == "interrupted"
    assert content["sentence"].startswith("Interrupted by SIGTERM after ")


class Loses:
    """Python only reports what a destructor raises."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def test_an_end_that_a_library_loses_is_asked_for_again(monkeypatch):
    monkeypatch.setattr(outputs, "AGAIN", 0.05)
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: None)  # pytest's keeps what was raised
    by = ""
    with outputs.ended_by_signals():
        try:
            waiting = [Loses()]
            waiting.clear()
            time.sleep(20)
        except Stopped as stop:
            by = stopped_by(stop)
        time.sleep(0.2)  # it has arrived, is gone, and is not raised again
    assert by == " by SIGTERM"
