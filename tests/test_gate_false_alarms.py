"""The gate finds nothing in five correct ways to write or to run dsv4_mlx, and something once they are wrong.

An example is a cell, probe x schedule x seed x variant, of which something was judged and in which the variant's logits
differ from those of dsv4_mlx as it is. Examples of one probe are not independent: many schedules give the same bits.
The table of the slow test, which shows with -s, counts the distinct ones too.
Run: pytest tests/test_gate_false_alarms.py; 10,000 examples, a quarter of an hour: pytest -m slow -s
tests/test_gate_false_alarms.py
"""

import functools
import os
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import mlx.core as mx
import pytest
import torch
from emulated_devices import EMULATED, noise_of
from gate_variants import HAS_COMPILER, VARIANTS, in_bfloat16

from dsv4_mlx.attention import Attention
from parity.environment import use_one_thread
from parity.gate.families import Family, family
from parity.gate.matrix import Matrix, judge_probe
from parity.gate.probes import of_profile
from parity.jobs.score import Patched
from parity.judging.noise import on_device
from parity.results import Verdict

QUICK = {probe.mechanism: probe for probe in of_profile("quick")}
EXAMPLES = 10_000
SEEDS = range(1, 12)
WORKERS = 2
COMPILED = pytest.mark.skipif(not HAS_COMPILER, reason="MLX compiles with g++, which is not here")
NAMES = [pytest.param(name, marks=COMPILED) if name == "compiled" else name for name in VARIANTS]

# For the unmarked tests, one of each kind that takes little time.
FEW = (
    "experts.shared",
    "router.choice",
    "attention.output",
    "compressor.overlap.ape",
    "indexer.rope",
    "hc.post",
    "weights.fp4",
)
MORE = ("router.hash", "rope.inverse", "rope.plain_rows")


@dataclass(frozen=True)
class Outcome:
    """One cell under one variant."""

    variant: str
    mechanism: str
    schedule: str
    seed: int
    verdict: Verdict
    ratio: float
    tokens: int
    changed: bool
    repeated: bool = False  # an earlier schedule gave these very bits
    sentence: str = ""

    @property
    def counts(self) -> bool:
        """Whether something was judged that dsv4_mlx as it is does not give bit by bit."""
        return self.changed and self.verdict is not Verdict.INCONCLUSIVE

    @property
    def alarm(self) -> bool:
        return self.verdict not in (Verdict.PARITY, Verdict.INCONCLUSIVE)


@functools.cache
def port() -> Patched:
    """dsv4_mlx in this process."""
    return Patched([])


@functools.lru_cache(maxsize=64)
def runs(mechanism: str, seed: int, bfloat16: bool) -> Family:
    """The probe's reference, for all variants."""
    return family(in_bfloat16(QUICK[mechanism]) if bfloat16 else QUICK[mechanism], seed)


def judged(found: Family) -> Matrix:
    """dsv4_mlx on one probe, written as it is now."""
    matrix = Matrix()
    with tempfile.TemporaryDirectory() as folder:
        judge_probe(port(), found, Path(folder) / "checkpoint", matrix)
    return matrix


@functools.lru_cache(maxsize=64)
def unchanged(mechanism: str, seed: int) -> dict[tuple[str, str], torch.Tensor]:
    """Logits of dsv4_mlx as it is, in the probe's own type."""
    return judged(runs(mechanism, seed, False)).logits


def outcomes(name: str, mechanism: str, seed: int) -> list[Outcome]:
    """All cells of one probe under one variant."""
    before = unchanged(mechanism, seed)
    with VARIANTS[name].written():
        matrix = judged(runs(mechanism, seed, VARIANTS[name].probe is in_bfloat16))
    found, seen = [], []
    for cell in matrix.cells:
        key = mechanism, cell.schedule
        logits = matrix.logits.get(key)
        changed = logits is None or not torch.equal(logits, before[key])
        repeated = logits is not None and any(torch.equal(logits, other) for other in seen)
        seen += [] if logits is None else [logits]
        measured = cell.verdict, cell.ratio, cell.tokens
        found.append(Outcome(name, *key, seed, *measured, changed, repeated, cell.sentence))
    return found


@functools.cache
def seed_zero(name: str, mechanism: str) -> list[Outcome]:
    return outcomes(name, mechanism, 0)


def all_variants(mechanism: str, seed: int) -> list[Outcome]:
    """What a worker does at a time: the reference runs serve every variant."""
    return [outcome for name in VARIANTS for outcome in outcomes(name, mechanism, seed)]


def table(found: list[Outcome]) -> str:
    """By variant: cells, how many count, how many of these are not an earlier schedule's bits again, how many were
    undecided, tokens judged, the worst ratio and where it is."""
    by_variant = defaultdict(list)
    for outcome in found:
        by_variant[outcome.variant].append(outcome)
    lines = [f"{'variant':10} {'cells':>6} {'count':>6} {'distinct':>8} {'undecided':>9} {'tokens':>8} {'worst':>6}"]
    for name, cells in by_variant.items():
        count = sum(outcome.counts for outcome in cells)
        distinct = sum(outcome.counts and not outcome.repeated for outcome in cells)
        undecided = sum(outcome.verdict is Verdict.INCONCLUSIVE for outcome in cells)
        tokens = sum(outcome.tokens for outcome in cells if outcome.counts)
        worst = max(cells, key=lambda outcome: outcome.ratio)
        lines.append(
            f"{name:10} {len(cells):6} {count:6} {distinct:8} {undecided:9} {tokens:8} {worst.ratio:6.3f} "
            f"{worst.mechanism}, {worst.schedule}, seed {worst.seed}"
        )
    return "\n".join(lines)


# --- a few -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", [*FEW, *(pytest.param(one, marks=pytest.mark.slow) for one in MORE)])
@pytest.mark.parametrize("name", NAMES)
def test_no_alarm(name, mechanism):
    found = seed_zero(name, mechanism)
    assert [outcome.schedule for outcome in found] == [*QUICK[mechanism].schedules]
    assert {outcome.verdict for outcome in found} == {Verdict.PARITY}, found


@pytest.mark.parametrize("name", NAMES)
def test_a_variant_is_one(name):
    """Other bits come out in most cells: what gives the same ones is no example."""
    found = [outcome for mechanism in FEW for outcome in seed_zero(name, mechanism)]
    assert sum(outcome.counts for outcome in found) > len(found) / 2


def test_bfloat16_is_what_runs():
    found = runs("indexer.rope", 0, True)
    judged(found)
    layer = port().port.model.layers[0]
    assert {layer.attn.wq_a.weight.dtype, layer.attn.indexer.wq_b.weight.dtype} == {mx.bfloat16}
    assert {layer.attn.attn_sink.dtype, layer.hc_attn.fn.dtype} == {mx.float32}
    in_float32 = runs("indexer.rope", 0, False)
    assert float((found.baseline - found.exact).std()) > 1000 * float((in_float32.baseline - in_float32.exact).std())


# What is wrong by less than the type's own rounding is not wrong in it.
OFF = {name: 2.0**-4 if name == "bfloat16" else 0.001 for name in VARIANTS}


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_variant_is_red(name):
    """By a thousandth, in float32: the silence above is not deafness."""
    output = Attention.output
    with mock.patch.object(Attention, "output", lambda *args: output(*args) * (1 + OFF[name])):
        found = outcomes(name, "attention.window", 0)
    assert {outcome.verdict for outcome in found} == {Verdict.DIVERGES}
    assert all(outcome.alarm and outcome.counts for outcome in found)


def test_what_is_undecided_is_no_example():
    undecided = Outcome("order", "mtp", "oneshot", 0, Verdict.INCONCLUSIVE, 0.0, 0, changed=True)
    assert not undecided.counts
    assert not undecided.alarm


# --- other devices ---------------------------------------------------------------------------------------------

# What MLX compiles, no emulated function reaches.
UNCOMPILED = tuple(name for name in VARIANTS if name != "compiled")
ON_DEVICES = 5_000


def on_device_of(device: str, mechanism: str, seed: int, names=UNCOMPILED) -> list[Outcome]:
    """All cells of one probe under these variants, on an emulated device within its own limits."""
    for kept in (runs, unchanged):
        kept.cache_clear()
    with EMULATED[device].on(), on_device(noise_of(device)):
        found = [outcome for name in names for outcome in outcomes(name, mechanism, seed)]
    for kept in (runs, unchanged):
        kept.cache_clear()
    return found


@pytest.mark.parametrize("mechanism", ["rope.inverse", "attention.output", "hc.post"])
def test_no_alarm_on_metal_at_its_worst(mechanism):
    found = on_device_of("metal_worst", mechanism, 0, ("order", "fused"))
    assert {outcome.verdict for outcome in found} == {Verdict.PARITY}, found
    assert any(outcome.counts for outcome in found)


@pytest.mark.slow
@pytest.mark.parametrize("device", EMULATED)
def test_no_alarm_on_other_devices(device, tmp_path):
    found, context = [], get_context("spawn")
    with ProcessPoolExecutor(WORKERS, context, start_worker, (tmp_path,)) as pool:
        tasks = [pool.submit(on_device_of, device, mechanism, seed) for seed in SEEDS for mechanism in QUICK]
        for task in as_completed(tasks):
            found += task.result()
            if sum(outcome.counts for outcome in found) >= ON_DEVICES:
                pool.shutdown(cancel_futures=True)
                break
    print(f"\n{device}\n{table(found)}")
    alarms = [outcome for outcome in found if outcome.alarm]
    assert not alarms, "\n".join(map(str, alarms))
    assert sum(outcome.counts for outcome in found) >= ON_DEVICES


# --- 10,000 ----------------------------------------------------------------------------------------------------


def start_worker(folder: Path) -> None:
    """MLX keeps what it compiles in the temporary folder; two that compile the same at once would spoil it."""
    use_one_thread()
    own = folder / str(os.getpid())
    own.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(own)


@pytest.mark.slow
@COMPILED
def test_ten_thousand_examples(tmp_path):
    found, context = [], get_context("spawn")
    with ProcessPoolExecutor(WORKERS, context, start_worker, (tmp_path,)) as pool:
        tasks = [pool.submit(all_variants, mechanism, seed) for seed in SEEDS for mechanism in QUICK]
        for task in as_completed(tasks):
            found += task.result()
    print("\n" + table(found))
    alarms = [outcome for outcome in found if outcome.alarm]
    assert not alarms, "\n".join(map(str, alarms))
    assert sum(outcome.counts for outcome in found) >= EXAMPLES
