"""nox -s bench — tokens per second, memory and cache bytes of dsv4_mlx, peers beside it, each in its own process.

Alone: pytest tests/bench/test_speed.py --benchmark-enable --benchmark-only --vlm-python PATH --speed-report FOLDER

Decode: the steps of all ports are interleaved, a few at a time, so that what else the machine does meets them alike; a
context is made by a small donor whose cache has the same shapes (`speed_model.DONOR`), and the model decodes on it,
which is the same work as after its own prefill: window, selected rows and all index keys are read. Beside wall time
stands the process's own CPU time, which a busy machine changes less.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from speed_model import CONFIG, DONOR, write_checkpoint
from speed_table import plot, table

ROOT = Path(__file__).resolve().parents[2]
CONTEXTS = (512, 2048, 8192, 32768)
PREFILLS = {512: [512], 2048: [2048], 8192: [2048] * 4}
ROUNDS, STEPS = 6, 6
WARM = 330  # steps before any is timed: dsv4_mlx compiles what a decode step repeats after 300
DTYPES = ("float32", "bfloat16")
CANDIDATES = {"dsv4_mlx": "dsv4_mlx", "mlx-vlm": "mlx_vlm.models.deepseek_v4", "transformers": "hf"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from /proc")


class Port:
    """A worker process, started when it is first asked."""

    def __init__(self, name: str, python: str, folder: Path):
        self.name, self.python, self.folder, self.child, self.problem = name, python, folder, None, ""

    def runs(self, **request) -> bool:
        """Whether it can do this at all; if not, ``problem`` says why."""
        self.problem = self.ask(**request).get("problem", "")
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
        worker = str(Path(__file__).with_name("speed_worker.py"))
        command = [self.python, worker, CANDIDATES[self.name], str(self.folder / "model"), str(self.folder / "donor")]
        with (self.folder / f"{self.name}.log").open("a") as log:
            self.child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT), "MLX_ENABLE_TF32": "0"},
            )
        self._answer()

    def _answer(self) -> dict:
        line = self.child.stdout.readline()
        if not line:
            log = (self.folder / f"{self.name}.log").read_text()
            pytest.fail(f"{self.name} ended its process:\n{log[-2000:]}")
        return json.loads(line)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A model and its donor in each dtype."""
    made = {}
    for dtype in DTYPES:
        made[dtype] = tmp_path_factory.mktemp(dtype)
        write_checkpoint(made[dtype] / "model", CONFIG, dtype)
        write_checkpoint(made[dtype] / "donor", DONOR, dtype)
    return made


@pytest.fixture(scope="module")
def rows(request):
    """Table and plots of all that was measured, written where --speed-report says."""
    found: list[dict] = []
    yield found
    folder = request.config.getoption("--speed-report")
    if folder and found:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "speed.json").write_text(json.dumps(found, indent=1) + "\n")
        (folder / "speed-table.md").write_text(table(found) + "\n")
        for dtype in DTYPES:
            for measured in ("decode", "prefill"):
                series: dict[str, dict[int, float]] = {}
                for one in found:
                    if (one["dtype"], one.get("measured")) == (dtype, measured):
                        series.setdefault(one["port"], {})[one["tokens"]] = one["wall_ms"]
                if series:
                    (folder / f"speed-{measured}-{dtype}.svg").write_text(
                        plot(f"{measured}, {dtype}", series, "ms a token"), encoding="utf-8"
                    )


@pytest.fixture
def ports(request, folders, rows, dtype):
    """dsv4_mlx and the peers that are installed."""
    vlm = request.config.getoption("--vlm-python")
    pythons = {"dsv4_mlx": sys.executable, "mlx-vlm": vlm, "transformers": sys.executable}
    made = [Port(name, python, folders[dtype]) for name, python in pythons.items() if python]
    # Kernels and buffers of the process are there after a first call.
    able = [port for port in made if port.runs(do="prefill", calls=[64]) and port.runs(do="context", tokens=64)]
    rows += [{"port": port.name, "dtype": dtype, "problem": port.problem} for port in made if port not in able]
    assert made[0] in able, made[0].problem
    yield able
    for port in made:
        port.end()


def row(port: Port, dtype: str, measured: str, tokens: int, wall: float, cpu: float, memory: str) -> dict:
    """Seconds a token as a line of the report."""
    rates = {"wall": f"{1 / wall:.1f} tokens/s", "cpu": f"{1 / cpu:.1f} tokens/s"}
    times = {"wall_ms": 1e3 * wall, "cpu_ms": 1e3 * cpu}
    return {
        "port": port.name,
        "dtype": dtype,
        "measured": measured,
        "tokens": tokens,
        **rates,
        **times,
        "memory": memory,
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_decode(benchmark, ports, rows, dtype):
    """Paired rounds at each context; the benchmark's own figure is a step of dsv4_mlx at the longest."""
    for port in ports:
        port.ask(do="context", tokens=CONTEXTS[0])
        port.ask(do="decode", steps=WARM)
    for context in CONTEXTS:
        held = {port.name: port.ask(do="context", tokens=context)["cache_bytes"] for port in ports}
        walls, cpus = {port.name: [] for port in ports}, {port.name: [] for port in ports}
        for _ in range(ROUNDS):
            for port in ports:
                found = port.ask(do="decode", steps=STEPS)
                walls[port.name] += found["walls"][1:]  # the first step after another port's finds cold memory
                cpus[port.name] += found["cpus"][1:]
        for port in ports:
            wall, cpu = statistics.median(walls[port.name]), statistics.median(cpus[port.name])
            rows.append(row(port, dtype, "decode", context, wall, cpu, f"cache {held[port.name]} bytes"))
            benchmark.extra_info[f"{port.name} {context}"] = rows[-1]
    benchmark.pedantic(lambda: ports[0].ask(do="decode", steps=1), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize("tokens", PREFILLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_prefill(benchmark, ports, rows, dtype, tokens):
    """One prefill of each peer; that of dsv4_mlx is the benchmark's figure."""
    ours = benchmark.pedantic(lambda: ports[0].ask(do="prefill", calls=PREFILLS[tokens]), rounds=1)
    for port in ports:
        found = ours if port is ports[0] else port.ask(do="prefill", calls=PREFILLS[tokens])
        wall, cpu = found["wall"] / tokens, found["cpu"] / tokens
        rows.append(row(port, dtype, "prefill", tokens, wall, cpu, f"peak {found['peak_mib']:.0f} MiB"))
        benchmark.extra_info[port.name] = rows[-1]
