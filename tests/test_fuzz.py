"""The command line under whatever hypothesis thinks of: options, paths, configs, tensors, signals.

Exit codes are 0 to 5 and 130, what is bad is one sentence, nothing is left behind, and no 0 comes of a recording of
which anything was changed that counts.
Run: pytest tests/test_fuzz.py; with -m slow, ten times as many
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from parity import cli
from parity.cases.resources import fixtures_path
from parity.gate.probes import of_profile
from parity.jobs import gate

GOLDEN = fixtures_path() / "golden"
CANDIDATES = Path(__file__).parent / "candidates"
CASE = "mtp_exact"
CODES = {0, 1, 2, 3, 4, 5, 130}
FEW, MANY = 50, 500

values = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20), st.lists(st.integers())
)
config_edits = st.tuples(st.sampled_from(sorted(json.loads((GOLDEN / CASE / "config.json").read_text()))), values)
names = st.sampled_from(sorted(load_file(GOLDEN / CASE / "model.safetensors")))
vectors = st.sampled_from(sorted(load_file(GOLDEN / CASE / "vectors.safetensors")))
damage = st.sampled_from(["nan", "inf", "drop", "rename", "cut", "type", "twice", "move"])
raw_bytes = st.binary(max_size=60)
paths = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["", " ", "-", "--", "~x/y.py", "/dev/null", "/proc/self/mem", "a" * 300, "x.py", "..", "nan\0"]),
)
options = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["--json", "--html", "--bundle", "--baseline", "--sarif", "--junit"]), paths),
        st.tuples(st.just("--seed"), st.text(max_size=5)),
        st.tuples(st.just("--profile"), st.sampled_from(["quick", "fast", ""])),
        st.tuples(st.sampled_from(["--timeout", "--memory"]), st.sampled_from(["-1", "0", "nan", "1e9", "x"])),
        st.tuples(st.just("--require"), st.sampled_from(["decode", "mtp", "speed", ""])),
    ),
    max_size=4,
)


# A command with an option that it does not know is argparse's affair; the gate takes all of these.
TAKES = {"golden": ["--json"], "run": ["--json", "--seed"], "defects": ["--json", "--seed", "--profile"]}


def examples(count):
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None)


def run(arguments, capsys, scratch):
    """(code, report or None): the command in this process, which must hold what the head of this file says."""
    before = {*scratch.iterdir()}
    try:
        code = cli.main(arguments)
    except SystemExit as ended:  # argparse's own
        code = ended.code
    captured = capsys.readouterr()
    assert code in CODES, (arguments, captured.err)
    assert "Traceback" not in captured.err
    if code in (2, 3) and not captured.err.startswith("usage:"):
        problems = [line for line in captured.err.splitlines() if line.startswith("parity: ")]
        assert problems, captured.err
        assert all(line.endswith((".", "?")) for line in problems)
    assert {*scratch.iterdir()} - {scratch / "mlx"} == before - {scratch / "mlx"}  # MLX keeps what it compiled
    return code


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The only folder of temporary files, watched; and an empty folder to work in."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.chdir(tmp_path / "work")
    return folder


def damaged(folder: Path, file: str, name: str, how: str) -> None:
    """Damage one tensor of a file, so that a comparison must see it."""
    path = folder / file
    tensors = load_file(path)
    if name not in tensors:  # dropped or renamed before
        return
    tensor = tensors[name]
    if how == "cut":
        os.truncate(path, path.stat().st_size - 1 - tensor.numel() % 100)
        return
    if how == "drop":
        del tensors[name]
    elif how == "rename":
        tensors[name + "x"] = tensors.pop(name)
    elif how == "twice":
        tensors["model." + name] = tensor.clone()
    elif how == "type":
        tensors[name] = tensor.to(torch.int32 if tensor.is_floating_point() else torch.float32)
    elif not tensor.is_floating_point():
        tensors[name] = tensor + 1000
    elif how == "move":
        tensors[name] = tensor + tensor.abs().mean() * 3 + 1
    else:
        tensors[name] = tensor.clone()
        tensors[name].view(-1)[tensor.numel() // 2] = float(how)
    save_file(tensors, path, metadata={"format": "pt"})


def recordings(count, capsys, scratch):
    codes = set()

    edit = st.one_of(
        st.tuples(st.just("config"), config_edits),
        st.tuples(st.just("model.safetensors"), names, damage),
        st.tuples(st.just("vectors.safetensors"), vectors, damage),
        st.tuples(st.just("bytes"), st.sampled_from(["config.json", "case.json", "model.safetensors"]), raw_bytes),
    )

    @examples(count)
    @given(edits=st.lists(edit, max_size=2))
    def check(edits):
        folder = Path(tempfile.mkdtemp(dir=scratch.parent)) / "case"
        shutil.copytree(GOLDEN / CASE, folder)
        changed = False
        for kind, *how in sorted(edits, key=lambda one: one[0] == "bytes"):
            if kind == "config":
                path = folder / "config.json"
                path.write_text(json.dumps(json.loads(path.read_text()) | dict(how)))
                continue
            changed = True
            if kind == "bytes":
                (folder / how[0]).write_bytes(how[1])
            elif (folder / kind).stat().st_size == (GOLDEN / CASE / kind).stat().st_size:  # not cut before
                damaged(folder, kind, *how)
        code = run(["golden", str(folder), "--json", str(folder.parent / "report.json")], capsys, scratch)
        codes.add(code)
        report = json.loads((folder.parent / "report.json").read_text())
        assert report["exit_code"] == code
        assert not (code == 0 and changed)
        if code == 0:
            for result in report["golden"]:
                assert {tap["name"] for tap in result["taps"]} >= {
                    *load_file(folder / "vectors.safetensors").keys() - {"input_ids"}
                }
                assert all(tap["error_rms"] != "inf" for tap in result["taps"])
        shutil.rmtree(folder.parent)

    check()
    assert codes >= {0, 1, 2}  # not all of one kind, so that nothing was looked at


def command_lines(count, capsys, scratch, monkeypatch):
    codes = set()
    monkeypatch.setattr(
        gate, "of_profile", lambda profile: [p for p in of_profile(profile) if p.mechanism == "embedding"]
    )

    @examples(count)
    @given(
        command=st.sampled_from(["gate", "golden", "run", "defects"]),
        target=paths | st.sampled_from([str(CANDIDATES / "no_model.py"), str(CANDIDATES / "raises.py")]),
        options=options,
        case=st.none() | st.text(max_size=30) | st.sampled_from(["{}", "[]", "null", '{"config": {}}', "1e999"]),
    )
    def check(command, target, options, case):
        words = [word for pair in options if pair[0] in TAKES.get(command, pair) for word in pair]
        if command in ("gate", "golden"):
            words.append(target)
        elif command == "run":
            words += (
                ["--pair", "rms_norm", "--dtype", "float32"] if case is None else ["--pair", "rope", "--case", case]
            )
        else:
            words += ["--id", target]
        code = run([command, *words], capsys, scratch)
        codes.add(code)
        assert code != 0 or command == "run" or target in ("dsv4_mlx", "hf")
        for path in Path().iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    check()
    assert codes >= {2, 4}


def signals(count, scratch):
    @examples(count)
    @given(
        arguments=st.sampled_from([("gate", "dsv4_mlx"), ("run", "--pair", "rope"), ("golden", str(GOLDEN / CASE))]),
        number=st.sampled_from([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]),
        seconds=st.floats(0.3, 8),
    )
    def check(arguments, number, seconds):
        command = [sys.executable, "-m", "parity", *arguments, "--json", str(scratch.parent / "report.json")]
        environment = os.environ | {"PYTHONPATH": str(CANDIDATES.parents[1])}
        listening = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment, "preexec_fn": listening}
        with subprocess.Popen(command, **options) as process:
            time.sleep(seconds)
            process.send_signal(number)
            _, said = process.communicate()
        # While Python itself is starting, nobody listens yet.
        assert process.returncode in CODES or (seconds < 5 and process.returncode == -number), said
        assert b"Traceback" not in said or process.returncode == -number or b"import" in said
        assert {path.name for path in scratch.iterdir()} <= {"mlx"}

    check()


def test_recordings(capsys, scratch):
    recordings(FEW, capsys, scratch)


def test_command_lines(capsys, scratch, monkeypatch):
    command_lines(FEW, capsys, scratch, monkeypatch)


@pytest.mark.slow
def test_many_recordings(capsys, scratch):
    recordings(MANY, capsys, scratch)


@pytest.mark.slow
def test_many_command_lines(capsys, scratch, monkeypatch):
    command_lines(MANY, capsys, scratch, monkeypatch)


@pytest.mark.slow
def test_signals_at_random_moments(scratch):
    signals(40, scratch)
