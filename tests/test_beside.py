"""The same port on a second device: which devices are asked, what the column `gpu` says, and the verdict `device`.

There is no GPU here: one is emulated, by functions of MLX with the errors of another device.
Run: pytest tests/test_beside.py
"""

import contextlib
import json
from dataclasses import replace
from xml.etree import ElementTree

import jsonschema
import pytest
from emulated_devices import EMULATED, calibrated

from parity import cli
from parity.beside import blind, column
from parity.beside import plan as planning
from parity.candidates.adapters.problems import NEEDS_METAL, Died
from parity.candidates.process import Process
from parity.candidates.told import lives, problem
from parity.candidates.worker import Worker
from parity.commands.checkpoint import on_this_device
from parity.devices import calibrating
from parity.environment import MATMUL_ERROR_LIMIT
from parity.errors import BadEnvironment, NoDevice
from parity.gate import confirm, filling
from parity.gate import lives as gate_lives
from parity.gate.defects import catalogue
from parity.gate.defects.patching import applied
from parity.gate.lives import CACHES, LIVES
from parity.gate.matrix import Matrix
from parity.gate.probes import registry
from parity.gate.probes.weights import config
from parity.gate.results import Candidate, Cell, GateReport
from parity.jobs import gate
from parity.jobs.score import Patched
from parity.judging import lived, noise
from parity.lives import exploring
from parity.report.document import schema
from parity.results import Verdict

RUN = ["run", "--pair", "rope", "--dtype", "float32"]
GATE = ["gate", "dsv4_mlx", "--only", "rope.scores"]


class InHere(Patched):
    """dsv4_mlx as a candidate in this process, where an emulated device (None: this CPU) reaches it; with a defect, a
    wrong kernel."""

    def __init__(self, device, *defects):
        super().__init__([catalogue()[name] for name in defects])
        self.device, self.facts, self.supplied = device, {"mtp": True, "taps": "mlx"}, []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def _raising(self, do, *args):
        with EMULATED[self.device].on() if self.device else contextlib.nullcontext():
            return super()._raising(do, *args)

    def taps(self, ids):
        with EMULATED[self.device].on(), applied(self.defects, "dsv4_mlx"):
            return [{"path": path, "kind": kind, "array": value} for path, kind, value in self.port.taps(ids)]


@pytest.fixture
def machine(monkeypatch):
    """machine("metal_worst") has that device for a GPU; with defects, those are in its kernels."""

    def have(name, *defects):
        @contextlib.contextmanager
        def using(device):
            assert device in ("cpu", "gpu")
            with EMULATED[name].on() if device == "gpu" else contextlib.nullcontext():
                yield

        def start(target, *rest):
            here = Process if target.device == "cpu" else lambda *_: InHere(name, *defects)
            return here(target, *rest)

        monkeypatch.setattr(planning, "gpu_here", lambda: True)
        monkeypatch.setattr(planning, "using", using)
        monkeypatch.setattr(planning, "calibration", lambda kind, tell=None: calibrated(name))
        monkeypatch.setattr(gate, "Process", start)
        monkeypatch.setattr(gate, "chosen", lambda *asked: [registry()[name] for name in ("embedding", "rope.scores")])

    return have


def run(capsys, tmp_path, *arguments):
    """(exit code, document, standard output, standard error)"""
    path = tmp_path / "report.json"
    code = cli.main([*arguments, "--json", str(path)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    found = json.loads(path.read_text()) if path.exists() else None
    if found:
        jsonschema.validate(found, schema(found["schema"]))
        assert found["exit_code"] == code
    return code, found, captured.out, captured.err


# --- the plan ------------------------------------------------------------------------------------------------


def test_without_a_gpu_mlx_is_told_nothing():
    assert planning.asked(None) == planning.asked("cpu") == planning.Plan()
    assert not planning.gpu_here()


def test_with_a_gpu_both_are_asked_and_each_can_be_asked_alone(machine):
    machine("metal_worst")
    both, cpu, gpu = (planning.asked(option) for option in (None, "cpu", "gpu"))
    assert [(one.first, one.second) for one in (both, cpu, gpu)] == [("cpu", "gpu"), ("cpu", ""), ("gpu", "")]
    assert [one.options for one in (both, cpu, gpu)] == ["", " --device cpu", " --device gpu"]
    assert both.noise.levels
    assert cpu.noise is None
    with both.limits("cpu"):
        assert noise.active() is None
    with both.limits("gpu"):
        assert noise.active() is both.noise


def test_a_device_that_is_not_there_is_a_sentence_a_document_and_exit_code_6(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for command in (RUN, GATE):
        for device in ("gpu", "both"):
            code, found, _, err = run(capsys, tmp_path, *command, "--device", device)
            assert code == 6
            assert found["verdict"] == "no device"
            assert err.count("\n") == 1
            assert "MLX finds no gpu here" in err
    with pytest.raises(NoDevice), planning.using("gpu"):
        pass


def test_unknown_devices_and_candidates_without_one_are_bad_input(capsys, tmp_path, machine):
    machine("metal_worst")
    assert run(capsys, tmp_path, *RUN, "--device", "gpus")[3].startswith(
        "parity: --device does not know 'gpus'; did you"
    )
    code, _, _, err = run(capsys, tmp_path, "gate", "hf", "--device", "both")
    assert code == 2
    assert err == "parity: hf computes on the CPU; leave --device both away.\n"
    assert planning.of("hf", None) == planning.Plan()


# --- parity run ----------------------------------------------------------------------------------------------


def test_rows_of_both_devices_agree_each_within_its_limits(machine, capsys, tmp_path):
    machine("metal_worst")
    code, found, out, _ = run(capsys, tmp_path, *RUN)
    assert code == 0
    assert [row["device"] for row in found["pairs"]] == ["cpu", "gpu"]
    limits = [max(tap["limit_rms"] for tap in row["taps"]) for row in found["pairs"]]
    assert limits[1] > 10 * limits[0]
    assert found["sentence"].endswith("On the GPU 1 of 1 agree within its own errors.")
    assert found["environment"]["calibration"]["gpu"]["device"]["chip"] == "emulated metal_worst"
    assert "gpu" in out


def test_what_is_wrong_on_the_gpu_alone_is_a_verdict_of_its_own(machine, capsys, tmp_path, monkeypatch):
    """A device that errs more than it was measured to: the maths is right, so a kernel is not."""
    machine("metal_worst")
    monkeypatch.setattr(planning, "calibration", lambda kind, tell=None: calibrated("metal_tenth"))
    code, found, out, _ = run(capsys, tmp_path, *RUN)
    assert (code, found["verdict"]) == (7, Verdict.DEVICE.value)
    assert [row["verdict"] for row in found["pairs"]] == ["parity", "diverges"]
    assert "right on the CPU" in found["sentence"]
    assert found["finding"]["reproduce"].endswith("--device gpu")
    assert "on the gpu" in out


# --- parity gate ---------------------------------------------------------------------------------------------


def test_the_gate_has_a_column_for_the_gpu(machine, capsys, tmp_path):
    machine("metal_worst")
    code, found, out, _ = run(capsys, tmp_path, *GATE)
    assert code == 0
    assert found["schedules"][-1] == "gpu"
    there = [cell for cell in found["cells"] if cell["schedule"] == "gpu"]
    assert [cell["mechanism"] for cell in there] == [row["name"] for row in found["mechanisms"]]
    assert {cell["verdict"] for cell in there} == {"parity"}
    rope = {cell["schedule"]: cell["limit_rms"] for cell in found["cells"] if cell["mechanism"] == "rope.scores"}
    assert rope["gpu"] > 10 * rope["oneshot"]
    reasons = {cell["schedule"]: cell["reason"] for cell in found["cells"] if cell["mechanism"] == "rope.scores"}
    assert reasons["gpu"].startswith(reasons["oneshot"])
    assert "the errors of rope in float32 (1.04e+03 ulps)" in reasons["gpu"]
    assert "mechanisms agree within its own errors." in found["sentence"]
    assert "gpu" in out


def test_one_red_schedule_is_enough():
    """Whatever the others could not tell."""
    of = {
        "oneshot": Verdict.PARITY,
        "decode": Verdict.INCONCLUSIVE,
        "chunks": Verdict.DIVERGES,
        "batch": Verdict.DIVERGES,
    }
    cells = [Cell("rope.scores", name, one, name, ratio=len(name)) for name, one in of.items()]
    found = column.worst(Matrix(cells), "rope.scores")
    assert (found.schedule, found.verdict, found.sentence) == ("gpu", Verdict.DIVERGES, "under chunks, chunks")
    assert column.worst(Matrix(cells[:2]), "rope.scores").verdict is Verdict.INCONCLUSIVE
    assert column.worst(Matrix(cells[:1]), "rope.scores").verdict is Verdict.PARITY


def test_what_is_wrong_on_both_devices_may_only_follow():
    report = GateReport(Candidate("x", "module"), "quick", 0, Verdict.INCONCLUSIVE, "")
    report.cells = [Cell("rope.scores", "decode", Verdict.DIVERGES), Cell("hc.post", "decode", Verdict.PARITY)]
    there = [Cell(name, "gpu", Verdict.DIVERGES) for name in ("rope.scores", "hc.post")]
    assert column.follow_on(report, there) == there[1:]
    assert [cell.because for cell in there] == [["rope.scores"], []]


def test_a_wrong_kernel_is_named_with_the_first_tensor(machine, capsys, tmp_path):
    machine("metal_worst", "D008")
    files = {name: tmp_path / f"report.{name}" for name in ("html", "markdown", "junit", "sarif")}
    asked = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    code, found, out, _ = run(capsys, tmp_path, *GATE, *asked, "--bundle", str(tmp_path / "bundle"))
    assert (code, found["verdict"]) == (7, "device")
    assert found["first_deviation"]["schedule"] == "gpu"
    assert "A kernel is wrong there, not the maths." in found["sentence"]
    assert any(note.startswith("On the gpu, on the probe of") for note in found["notes"])
    assert not found["diagnosis"]
    assert "There is no bundle: what differs does so on the GPU alone." in found["notes"]
    assert not (tmp_path / "bundle").exists()
    assert "exit 7" in out
    assert "A kernel is wrong there, not the maths." in files["html"].read_text()
    assert "A kernel is wrong there, not the maths" in files["markdown"].read_text()
    red = ElementTree.parse(files["junit"]).findall(".//testcase[failure]")
    assert [(case.get("classname").rpartition(".")[2], case.get("name")) for case in red] == [("scores", "gpu")]
    (result,) = json.loads(files["sarif"].read_text())["runs"][0]["results"]
    assert result["message"]["text"]


def test_the_gpu_alone(machine, capsys, tmp_path):
    machine("metal_worst")
    code, found, _, _ = run(capsys, tmp_path, *GATE, "--device", "gpu")
    assert code == 0
    assert "gpu" not in found["schedules"]
    assert "the errors of rope" in found["cells"][-1]["reason"]
    assert found["reproduce"].endswith(" --device gpu")
    assert found["environment"]["calibration"]["gpu"]["figures"]


def test_a_port_that_refuses_the_cpu_is_judged_on_the_gpu_alone(machine, capsys, tmp_path, monkeypatch):
    machine("metal_worst")
    said = {"message": "[metal_kernel] Only supports the GPU.", "kind": "raised", "type": "RuntimeError"}
    refusal = problem(said, "while loading", tmp_path, 1)
    assert NEEDS_METAL in str(refusal)
    start = gate.Process

    class Refusing(InHere):
        def load(self, folder):
            raise refusal

    monkeypatch.setattr(
        gate,
        "Process",
        lambda target, *rest: Refusing("metal_worst") if target.device == "cpu" else start(target, *rest),
    )
    code, found, _, err = run(capsys, tmp_path, *GATE)
    assert code == 0, err
    assert found["notes"][0].startswith("It does not run on the CPU")
    assert found["notes"][0].endswith("the GPU alone was judged.")


def test_a_port_that_dies_on_the_gpu_is_told_and_no_pass(machine, capsys, tmp_path, monkeypatch):
    machine("metal_worst")
    start = gate.Process

    class Dying(InHere):
        def __enter__(self):
            raise Died("The candidate was killed by signal 9 while it was imported.")

    monkeypatch.setattr(
        gate, "Process", lambda target, *rest: start(target, *rest) if target.device == "cpu" else Dying("metal_worst")
    )
    code, found, _, _ = run(capsys, tmp_path, *GATE)
    assert (code, found["verdict"]) == (7, "device")
    assert "killed by signal 9" in found["sentence"]


# --- what schedules do not run -------------------------------------------------------------------------------

# A small whole model.
WHOLE = replace(
    registry()["model.flash"],
    tokens=12,
    prompt=6,
    chunks=(6, 1, 5),
    schedules=("decode", "chunks"),
    config=config(4, 128, num_hash_layers=1, num_attention_heads=2, sliding_window=16, index_topk=12),
)
KEPT = {}  # what the reference gives for it, which other tests must not have


class Asked(InHere):
    """`wrong`: defects of its kernels; `compiled_wrong`: of those that mx.compile makes."""

    def __init__(self, device, wrong=(), compiled_wrong=()):
        super().__init__(device, *wrong)
        self.compiled_wrong, self.compilings = [catalogue()[name] for name in compiled_wrong], 0

    def lives(self, asked, limits):
        worker = Worker()
        worker.port, request = self.port, {name: value for name, value in asked.items() if name != "do"}
        with EMULATED[self.device].on(), applied(self.defects, "dsv4_mlx"):
            return lives(worker.lives(**request, vocabulary=WHOLE.config["vocab_size"], limits=limits))

    @contextlib.contextmanager
    def compiled(self):
        self.compilings += 1
        before, self.defects = self.defects, self.compiled_wrong or self.defects
        yield
        self.defects = before


@pytest.fixture
def whole(machine, monkeypatch):
    """whole(wrong=..., compiled_wrong=...) makes that the GPU's port of a whole model, which is right on the CPU, and
    in its lives there as it is said."""

    def have(wrong=(), compiled_wrong=(), lives_there=Verdict.PARITY):
        machine("flushed")
        port = Asked("flushed", wrong, compiled_wrong)
        monkeypatch.setattr(gate, "Process", lambda target, *_: port if target.device == "gpu" else InHere(None))
        monkeypatch.setattr(gate, "chosen", lambda *asked: [WHOLE])
        # For the time: what the CPU is asked beside the schedules, and what mlx-lm does, are other tests' work.
        monkeypatch.setattr(gate, "judge_lives", lambda *_: ([Cell(CACHES, LIVES, lives_there)], []))
        return port

    monkeypatch.setattr(filling, "KNOWN", KEPT)
    monkeypatch.setattr(confirm, "can_compile", lambda device="": device == "gpu")
    monkeypatch.setattr(gate_lives, "WORK", {"quick": (1, 0, 0)})
    monkeypatch.setattr(exploring, "FIXED", (exploring.RAGGED,))
    monkeypatch.setattr(lived, "SAMPLE", (1, 16))
    return have


def there(report):
    """The column's cells by mechanism."""
    return {cell.mechanism: cell for cell in report.cells if cell.schedule == "gpu"}


def judge(progress=lambda said: None):
    return gate.judge("dsv4_mlx", progress=progress, plan=planning.asked(None))


def test_a_right_port_is_asked_for_lives_and_compiled_on_the_gpu_and_stays_green(whole):
    port, said = whole(), []
    report = judge(said.append)
    assert report.verdict is Verdict.PARITY
    assert "On the GPU 2 of 2 mechanisms agree within its own errors." in report.sentence
    assert [*there(report)] == ["model.flash", CACHES]
    assert there(report)[CACHES].tokens > 0
    assert port.compilings == len(WHOLE.schedules)
    assert said[-2:] == ["on the gpu, random lives of the caches", "on the gpu, the whole model again, compiled"]
    assert {"gpu_caches_s", "gpu_compiled_s"} <= {*report.clock}


def test_a_kernel_that_is_wrong_only_when_compiled_is_named(whole):
    whole(compiled_wrong=["D008"], lives_there=Verdict.DIVERGES)
    report = judge()
    cell = there(report)["model.flash"]
    assert cell.verdict is Verdict.DIVERGES
    assert ", with mx.compile at work, and only then, logits differ" in cell.sentence
    # Lives that are broken on the CPU are not asked for again.
    assert CACHES not in there(report)


def test_what_is_wrong_only_in_a_life_is_named_with_the_life_in_every_report(whole, capsys, tmp_path):
    """D055: a batch that decodes does so over keys that were never written; these schedules have no batch."""
    whole(wrong=["D055"])
    files = {name: tmp_path / f"report.{name}" for name in ("html", "markdown", "junit", "sarif")}
    asked = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    code, found, out, _ = run(capsys, tmp_path, "gate", "dsv4_mlx", *asked, "--bundle", str(tmp_path / "bundle"))
    assert (code, found["verdict"]) == (7, "device")
    cells = {cell["mechanism"]: cell for cell in found["cells"] if cell["schedule"] == "gpu"}
    assert (cells["model.flash"]["verdict"], cells[CACHES]["verdict"]) == ("parity", "diverges")
    assert (found["first_deviation"]["mechanism"], found["first_deviation"]["schedule"]) == (CACHES, "gpu")
    assert cells[CACHES]["sentence"].startswith("under lives, After merged")
    first = cells[CACHES]["life"][0]
    assert first == "c0 = make_prompt_cache(model)"
    assert all(first in text for text in (out, files["html"].read_text(), files["markdown"].read_text()))
    (red,) = ElementTree.parse(files["junit"]).findall(".//testcase[failure]")
    assert (red.get("classname").rpartition(".")[2], red.get("name")) == (CACHES, "gpu")
    assert "After merged" in files["sarif"].read_text()
    assert "There is no bundle: what differs does so on the GPU alone." in found["notes"]
    assert not (tmp_path / "bundle").exists()


# --- noise ---------------------------------------------------------------------------------------------------


def test_a_device_that_hides_defects_is_refused_unless_that_is_accepted(machine, capsys, tmp_path, monkeypatch):
    machine("tf32")
    monkeypatch.setattr(blind, "catalogue", lambda: {name: catalogue()[name] for name in ("D003", "D008", "D016")})
    with pytest.raises(BadEnvironment, match=r"relative error of \d\.\de-04.*--accept-noise"):
        planning.asked("gpu")
    code, found, _, err = run(capsys, tmp_path, *RUN)
    assert (code, found["verdict"]) == (3, "environment")
    assert f"{MATMUL_ERROR_LIMIT:.0e}" in err
    code, found, _, _ = run(capsys, tmp_path, *GATE, "--accept-noise")
    assert code == 0
    (hidden,) = [note for note in found["notes"] if note.startswith("The device's errors hide")]
    assert hidden.endswith("hide 1 of the known defects, which this verdict cannot see: D003.")  # slightly other angles


def test_figures_are_those_that_are_kept_for_the_device(monkeypatch):
    monkeypatch.setattr(planning, "gpu_here", lambda: True)
    assert planning.calibration is calibrating.calibration


def test_a_whole_checkpoint_is_held_to_the_limits_of_the_device_that_mlx_computes_on(machine):
    with on_this_device() as environment:
        assert noise.active() is None
        assert "calibration" not in environment
    machine("metal_worst")
    with on_this_device() as environment:
        assert noise.active().levels == noise.DeviceNoise.of(calibrated("metal_worst")).levels
        assert environment["calibration"]["gpu"]["figures"]
