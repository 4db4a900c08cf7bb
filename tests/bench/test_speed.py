"""nox -s bench — tokens per second, memory and cache bytes of dsv4_mlx, peers beside it, each in its own process.

Alone: pytest tests/bench/test_speed.py --benchmark-enable --benchmark-only --peer NAME=PYTHON --speed-report FOLDER

Decode: the steps of all ports at all contexts are interleaved, a few at a time, so that a slow spell of the machine
meets them alike: where contexts follow one another, minutes apart, it can fall on one of them alone. A context
is made by a small donor whose cache has the same shapes (`speed_model.DONOR`), and the model decodes on it,
which is the same work as after its own prefill: window, selected rows and all index keys are read. Beside wall time
stands the process's own CPU time, which a busy machine changes less.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from speed_model import CONFIG, DONOR, write_checkpoint
from speed_table import plots

ROOT = Path(__file__).resolve().parents[2]
PREFILLS = {512: [512], 2048: [2048], 8192: [2048] * 4}
WARM = 330  # steps before any is timed: dsv4_mlx compiles what a decode step repeats after 300
CANDIDATES = {
    "dsv4_mlx": "dsv4_mlx",
    "mlx-vlm": "mlx_vlm.models.deepseek_v4",
    "rapid-mlx": "rapid_mlx.models.deepseek_v4",
    "mtplx": "mtplx.models.deepseek_v4",
    "jang": "jang_tools.dsv4.mlx_model",
    "transformers": "hf",
}
SETTINGS = {"jang": {"DSV4_LONG_CTX": "1"}}  # without it jang's caches keep nothing of compressed rows
FAMILIES = {"mtplx": "F2"}  # the names that it takes; the others take the published ones
BLAS = " + OpenBLAS"  # behind the name of a port that runs with --blas
SLOWEST = 30.0  # seconds of a round: a port that takes longer is measured in fewer steps

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from /proc")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    contexts: tuple[int, ...]
    prefills: tuple[int, ...]
    dtypes: tuple[str, ...]
    rounds: int
    steps: int


LONG = Size((512, 2048, 8192, 32768), (512, 2048, 8192), ("float32", "bfloat16"), rounds=6, steps=6)
SHORT = Size((512, 2048), (512,), ("float32",), rounds=3, steps=4)


def pytest_generate_tests(metafunc):
    size = SHORT if metafunc.config.getoption("short") else LONG
    for name, values in {"dtype": size.dtypes, "tokens": size.prefills}.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values)


@pytest.fixture(scope="module")
def size(request) -> Size:
    return SHORT if request.config.getoption("short") else LONG


class Port:
    """A worker process, started when it is first asked."""

    def __init__(self, name: str, python: str, folder: Path, blas: str = ""):
        self.name, self.python, self.folder, self.blas = name, python, folder, blas
        self.child, self.problem = None, ""

    def runs(self, **request) -> bool:
        """Whether it can do this at all; if not, ``problem`` says why."""
        try:
            self.problem = self.ask(**request).get("problem", "")
        except EOFError as ended:
            self.problem = str(ended)
        return not self.problem

    def ask(self, **request) -> dict:
        if self.child is None:
            self._start()
        self.child.stdin.write(json.dumps(request) + "\n")
        self.child.stdin.flush()
        return self._answer()

    def end(self) -> None:
        if self.child is not None:
            self.child.stdin.close()
            self.child.wait(60)
            self.child.stdout.close()
            self.child = None

    def _start(self) -> None:
        worker, name = Path(__file__).with_name("speed_worker.py"), self.name.removesuffix(BLAS)
        command = [self.python, str(worker), CANDIDATES[name], str(self.folder / "model"), str(self.folder / "donor")]
        given = SETTINGS.get(name, {}) | ({"LD_PRELOAD": self.blas} if self.blas else {})
        with (self.folder / f"{self.name}.log").open("a") as log:
            self.child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT), "MLX_ENABLE_TF32": "0"} | given,
            )
        self._answer()

    def _answer(self) -> dict:
        line = self.child.stdout.readline()
        if not line:
            said = (self.folder / f"{self.name}.log").read_text().strip().splitlines()
            raise EOFError(f"its process ended ({said[-1] if said else 'without a word'})")
        return json.loads(line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Callable[[str, str], Path]:
    """folder(dtype, family): a model and its donor, written once."""

    @cache
    def written(dtype: str, family: str) -> Path:
        made = tmp_path_factory.mktemp(f"{dtype}-{family}")
        write_checkpoint(made / "model", CONFIG, dtype, family)
        write_checkpoint(made / "donor", DONOR, dtype, family)
        return made

    return written


@pytest.fixture(scope="module")
def rows(request):
    """Figures and plots of all that was measured, written where --speed-report says."""
    found: list[dict] = []
    yield found
    folder = request.config.getoption("--speed-report")
    if folder and found:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "speed.json").write_text(json.dumps(found, indent=1) + "\n")
        for name, text in plots(found).items():
            (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture
def ports(request, folder, rows, dtype):
    """dsv4_mlx and the peers that are given and run; those of MLX with another BLAS as well."""
    pythons = {"dsv4_mlx": sys.executable} | dict(one.split("=", 1) for one in request.config.getoption("peer"))
    pythons |= {"transformers": sys.executable}
    made = [Port(name, python, folder(dtype, FAMILIES.get(name, "F1"))) for name, python in pythons.items()]
    if blas := request.config.getoption("blas"):
        others = [name for name in pythons if name != "transformers"]
        made += [Port(one.name + BLAS, one.python, one.folder, blas) for one in made if one.name in others]
    # Kernels and buffers of the process are there after a first call.
    able = [port for port in made if port.runs(do="prefill", calls=[64]) and port.runs(do="context", tokens=64)]
    rows += [{"port": port.name, "dtype": dtype, "problem": port.problem} for port in made if port not in able]
    assert made[0] in able, made[0].problem
    yield able
    for port in made:
        port.end()


def row(port: Port, dtype: str, measured: str, tokens: int, wall: float, cpu: float, memory: int) -> dict:
    """Seconds a token as a line of the report, in ms; memory in bytes: of the cache, or at the peak of a prefill."""
    return {
        "port": port.name,
        "dtype": dtype,
        "measured": measured,
        "tokens": tokens,
        "wall_ms": 1e3 * wall,
        "cpu_ms": 1e3 * cpu,
        "bytes": memory,
    }


def test_decode(benchmark, ports, rows, dtype, size):
    """Paired rounds at each context; the benchmark's own figure is a step of dsv4_mlx at the longest."""
    turns = [(context, port) for context in size.contexts for port in ports]
    for port in ports:
        port.ask(do="context", tokens=size.contexts[0])
        port.ask(do="decode", tokens=size.contexts[0], steps=WARM, seconds=SLOWEST)
    held = {turn: turn[1].ask(do="context", tokens=turn[0])["cache_bytes"] for turn in turns}
    walls, cpus = {turn: [] for turn in turns}, {turn: [] for turn in turns}
    for _ in range(size.rounds):
        for context, port in turns:
            found = port.ask(do="decode", tokens=context, steps=size.steps, seconds=SLOWEST)
            walls[context, port] += found["walls"][1:]  # the first step after another port's finds cold memory
            cpus[context, port] += found["cpus"][1:]
    for turn in turns:
        context, port = turn
        wall, cpu = statistics.median(walls[turn]), statistics.median(cpus[turn])
        rows.append(row(port, dtype, "decode", context, wall, cpu, held[turn]))
        benchmark.extra_info[f"{port.name} {context}"] = rows[-1]
    longest = size.contexts[-1]
    benchmark.pedantic(lambda: ports[0].ask(do="decode", tokens=longest, steps=1), rounds=size.rounds, warmup_rounds=1)


def test_prefill(benchmark, ports, rows, dtype, tokens):
    """One prefill of each peer; that of dsv4_mlx is the benchmark's figure."""
    ours = benchmark.pedantic(lambda: ports[0].ask(do="prefill", calls=PREFILLS[tokens]), rounds=1)
    for port in ports:
        found = ours if port is ports[0] else port.ask(do="prefill", calls=PREFILLS[tokens])
        wall, cpu = found["wall"] / tokens, found["cpu"] / tokens
        rows.append(row(port, dtype, "prefill", tokens, wall, cpu, found["peak"]))
        benchmark.extra_info[port.name] = rows[-1]
