"""`parity device`: its process, what it keeps between runs, its table and exit codes.

Run: pytest tests/test_device_command.py
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from parity import cli
from parity.devices import calibrating, kept, process
from parity.devices.primitives import primitives
from parity.devices.results import Calibration, Device, Figure
from parity.errors import BadEnvironment, NoDevice
from parity.report.document import schema

FIGURE = Figure("result", 0, 10, 0.3, 0.5, 1e-7)
CPU = Calibration(Device("cpu", "a chip", "a system", "", ("a.so",), "0.32.4"), {("exp", "float32"): FIGURE})
GPU = Calibration(
    Device("gpu", "a fast chip", "a system", "13.0", (), "0.32.4"),
    {("exp", "float32"): dataclasses.replace(FIGURE, rms=30.0), ("sum", "float32"): FIGURE},
    {("matmul.gathered", "float32"): "RuntimeError: no kernel"},
)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dsv4-parity" / "devices"


@pytest.fixture
def machine(monkeypatch):
    """A machine with both devices; the list holds what its processes were asked."""
    asked = []

    def ask(kind, what, timeout=0):
        asked.append((kind, what))
        found = {"cpu": CPU, "gpu": GPU}[kind]
        return found if what == "measure" else Calibration(found.device)

    monkeypatch.setattr(process, "ask", ask)
    return asked


def run(capsys, *arguments):
    """(exit code, standard output, standard error)"""
    code = cli.main(["device", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- a process of its own ------------------------------------------------------------------------------------


def test_this_cpu_measured_for_real_and_kept(capsys, folder, tmp_path):
    target = tmp_path / "device.json"
    code, out, err = run(capsys, "--device", "cpu", "--json", str(target))
    assert (code, err) == (0, "")
    found = json.loads(target.read_text())
    jsonschema.validate(found, schema("dsv4-parity/device/1"))
    calibration = Calibration.from_dict(found["devices"][0])
    assert len(calibration.figures) > 30
    assert kept.read(calibration.device) == calibration
    assert len(list(folder.iterdir())) == 1
    for words in ("cpu: ", "MLX 0.", "matmul.quantised.row", "bfloat16", "amplitude", "Subnormal products are kept."):
        assert words in out
    assert "cpu rms" not in out


def test_no_gpu_is_one_sentence_and_a_code_of_its_own(tmp_path):
    """In a process, as a CI job sees it; where there is a GPU this asks for nothing."""
    if calibrating.those_here() == ("cpu", "gpu"):
        pytest.skip("there is a GPU")
    for kind in ("gpu", "both"):
        command = [sys.executable, "-m", "parity", "device", "--device", kind, "--json", str(tmp_path / "never.json")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 6
        assert done.stderr.startswith("parity: MLX finds no gpu here (")
        assert done.stderr.count("\n") == 1
    assert list(tmp_path.glob("*.json")) == []


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        ("import os; os.kill(os.getpid(), 11)", "ended with code -11"),
        ("print('{}')", "ended with code 0"),
        ("print('[1]')", "ended with code 0"),
        ("raise ModuleNotFoundError(\"No module named 'mlx'\")", "No module named 'mlx'"),
        ("pass", "it said nothing"),
        ("import time; time.sleep(60)", "took longer than 1 s"),
    ],
)
def test_a_process_that_does_not_answer_is_one_sentence(monkeypatch, tmp_path, says, sentence):
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{says}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(BadEnvironment, match=sentence) as raised:
        process.ask("cpu", "measure", timeout=1)
    assert "\n" not in str(raised.value)


def test_a_process_has_the_settings_of_a_candidate(monkeypatch):
    seen = {}

    def start(command, **options):
        seen.update(options["env"], command=command)
        return subprocess.CompletedProcess(command, 0, 'noise\n{"absent": "nothing there."}\n', "")

    monkeypatch.setattr(subprocess, "run", start)
    monkeypatch.setenv("MLX_ENABLE_TF32", "1")
    with pytest.raises(NoDevice, match=r"^MLX finds no gpu here \(nothing there\); MLX needs Apple silicon"):
        process.measure("gpu")
    assert seen["MLX_ENABLE_TF32"] == "0"
    assert seen["command"][0] == sys.executable


# --- what is kept --------------------------------------------------------------------------------------------


def test_what_is_kept_is_not_measured_again_but_anew(machine, folder):
    assert calibrating.calibration("gpu") == GPU
    assert machine == [("gpu", "identify"), ("gpu", "measure")]
    assert calibrating.calibration("gpu") == GPU
    assert machine[2:] == [("gpu", "identify")]
    assert calibrating.calibration("gpu", anew=True) == GPU
    assert machine[3:] == [("gpu", "measure")]
    assert [path.name.partition("-")[0] for path in folder.iterdir()] == ["gpu"]


@pytest.mark.parametrize("changed", ["chip", "system", "driver", "blas", "mlx"])
def test_another_device_driver_or_mlx_is_not_this_one(changed):
    assert kept.write(GPU) is None
    assert kept.read(GPU.device) == GPU
    other = ("b.so",) if changed == "blas" else "another"
    assert kept.read(dataclasses.replace(GPU.device, **{changed: other})) is None


def test_other_measuring_code_measures_anew(monkeypatch):
    kept.write(GPU)
    monkeypatch.setattr(kept, "code_version", lambda: "other")
    assert kept.read(GPU.device) is None


DAMAGE = {
    "empty": lambda path: path.write_text(""),
    "cut": lambda path: path.write_text(path.read_text()[:-40]),
    "no object": lambda path: path.write_text("[]"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a NaN": lambda path: path.write_text(path.read_text().replace("30.0", "NaN")),
    "other fields": lambda path: path.write_text(path.read_text().replace('"rms"', '"mean"')),
    "figures of another": lambda path: path.write_text(path.read_text().replace("a fast chip", "a slow chip")),
    "a list for a table": lambda path: path.write_text(
        path.read_text().replace('"figures": [', '"figures": 3, "x": [')
    ),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link in a circle": lambda path: (path.unlink(), path.symlink_to(path)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_file_is_as_none(machine, folder, damage):
    kept.write(GPU)
    DAMAGE[damage](next(folder.iterdir()))
    assert kept.read(GPU.device) is None
    assert calibrating.calibration("gpu") == GPU


@pytest.mark.parametrize("in_the_way", ["a file", "a folder of that name"])
def test_what_cannot_be_kept_is_said_and_no_error(machine, folder, capsys, in_the_way):
    if in_the_way == "a file":
        folder.parent.parent.write_text("")
    else:
        kept.write(CPU)
        path = next(folder.iterdir())
        path.unlink()
        (path / "full").mkdir(parents=True)
    code, out, err = run(capsys, "--device", "cpu")
    assert code == 0
    assert "exp" in out
    assert err.startswith("parity: the figures of the cpu could not be kept (")
    assert not folder.is_dir() or all(path.is_dir() for path in folder.iterdir())


def test_a_relative_cache_folder_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kept.folder() == tmp_path / ".cache" / "dsv4-parity" / "devices"


# --- the command ---------------------------------------------------------------------------------------------


def test_a_gpu_is_shown_beside_the_cpu(machine, capsys, tmp_path):
    target = tmp_path / "device.json"
    code, out, _ = run(capsys, "--device", "gpu", "--json", str(target))
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert rows["exp"] == ["float32", "result", "30.00", "0.50", "1.0e-07", "0.30", "0.50"]
    assert rows["sum"][-2:] == ["-", "-"]
    assert "cpu rms" in out
    assert "driver 13.0" in out
    assert "not measured: matmul.gathered in float32 (RuntimeError: no kernel)" in out
    assert [one["device"]["kind"] for one in json.loads(target.read_text())["devices"]] == ["gpu"]


def test_without_a_choice_every_device_that_is_there(machine, capsys, monkeypatch):
    assert [one["device"]["kind"] for one in json.loads(run(capsys, "--json", "-")[1])["devices"]] == ["cpu", "gpu"]
    ask = process.ask

    def no_gpu(kind, what, timeout=0):
        if kind == "gpu":
            raise NoDevice("none.")
        return ask(kind, what)

    monkeypatch.setattr(process, "ask", no_gpu)
    assert [one["device"]["kind"] for one in json.loads(run(capsys, "--json", "-")[1])["devices"]] == ["cpu"]


def test_a_bad_command_line(machine, capsys):
    code, out, err = run(capsys, "--device", "gpus")
    assert (code, out) == (2, "")
    assert err == "parity: --device does not know 'gpus'; did you mean 'gpu'? known: cpu, gpu, both.\n"
    code, out, err = run(capsys, "--json", "/no/such/folder/device.json")
    assert (code, machine) == (2, [])


def test_the_page_has_a_row_for_every_primitive():
    page = (Path(__file__).parents[1] / "docs" / "devices.md").read_text(encoding="utf-8")
    rows = {(one.name, dtype) for one in primitives() for dtype in one.dtypes}
    assert {f"{name} in {dtype}" for name, dtype in rows if f"| {name} | {dtype} |" not in page} == {
        "matmul.gathered in bfloat16"  # which MLX's CPU does not know
    }


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        cli.main(["device", "--help"])
    told = capsys.readouterr().out
    assert all(words in told for words in ("what it is for", "ulps", "parity device --anew", "Exit code 0", "6: "))
