"""The null on a device: as noisy as the device was measured, by the same ruler, and no noisier on this CPU.

Run: pytest tests/test_noise.py
"""

import mlx.core as mx
import numpy as np
import pytest
import torch
from emulated_devices import EMULATED, calibrated, noise_of

from parity import pairs
from parity.cases.strategies import PROFILES
from parity.devices.measuring import figure, inputs, measure
from parity.devices.primitives import primitives
from parity.devices.results import Calibration
from parity.gate.filling import reference
from parity.gate.probes import registry
from parity.jobs.search import Search
from parity.judging.noise import OWN, DeviceNoise, active, by_argument, on_device
from parity.judging.rounding import OtherRounding
from parity.results import Verdict

PRIMITIVES = {one.name: one for one in primitives()}
COMPUTED = {
    "exp": torch.exp,
    "exp.far": torch.exp,
    "sigmoid": torch.sigmoid,
    "rsqrt": torch.rsqrt,
    "sin": torch.sin,
    "cos": torch.cos,
    "sin.positions": torch.sin,
    "cos.positions": torch.cos,
    "softmax": lambda x: torch.softmax(x, -1),
    "sum": lambda x: torch.sum(x, -1),
    "matmul": torch.matmul,
}
LEVELS = {"sin": "wave", "cos": "wave", "sin.positions": "angle", "cos.positions": "angle", "matmul": "product"}


def by_the_ruler(name, sequential, noise=None):
    """What a run with other rounding errs by in a primitive."""
    given = inputs(PRIMITIVES[name], "float32")
    arrays = [torch.from_numpy(one.astype(np.float32)) for one in given.values()]
    with on_device(noise), OtherRounding(3, sequential):
        got = COMPUTED[name](*arrays)
    return figure(PRIMITIVES[name], "float32", given, got.double().numpy()).rms


@pytest.mark.parametrize("name", COMPUTED)
def test_what_the_null_has_by_itself_is_what_the_table_says(name):
    """Sums aside, whose entry is that of MLX's CPU at the ruler's lengths: the null's own are smaller."""
    own = OWN[LEVELS.get(name, name)]
    for sequential in (True, False):
        found = by_the_ruler(name, sequential)
        assert found <= 1.05 * own
        if name not in ("sum", "matmul", "sin.positions", "cos.positions"):
            assert found >= 0.5 * own


def test_this_cpu_adds_nothing():
    figures, missing = measure(mx.cpu)
    here = DeviceNoise.of(Calibration(calibrated("tf32").device, figures, missing))
    assert not here.levels
    assert by_the_ruler("sin", True, here) == by_the_ruler("sin", True)


@pytest.mark.parametrize("device", ["metal_worst", "metal_tenth", "tf32"])
def test_the_null_errs_as_the_device_was_measured(device):
    """Never less than 0.7 times as much, and where the device is what dominates, no more than twice; of waves far out
    three times, whose level is that of small angles, too."""
    noise = noise_of(device)
    figures = calibrated(device).figures
    for name in COMPUTED:
        found, there = by_the_ruler(name, False, noise), figures[name, "float32"].rms
        level = LEVELS.get(name, name)
        if there > OWN[level]:
            assert 0.7 * there <= found, (name, found, there)
        if (level, "float32") not in noise.levels:
            assert found == by_the_ruler(name, False), name
        elif device != "tf32" or name != "softmax":  # there it stands for fused attention
            assert found <= (3.0 if level == "angle" else 2.0) * max(there, OWN[level]), (name, found, there)


def test_a_function_stays_a_function():
    """The same argument errs in the same way wherever it is met, another seed in another; the rms is 1."""
    x = torch.linspace(-3, 3, 10_001)
    drawn = by_argument(x, 1)
    assert torch.equal(drawn, by_argument(x.clone(), 1))
    assert torch.equal(drawn[5:6], by_argument(x[5:6], 1))
    assert not torch.equal(drawn, by_argument(x, 2))
    assert float(drawn.square().mean().sqrt()) == pytest.approx(1, abs=0.03)
    assert abs(float(drawn.mean())) < 0.03
    assert float((drawn[1:] * drawn[:-1]).mean()) == pytest.approx(0, abs=0.05)
    assert by_argument(x, 2**60).isfinite().all()


def test_a_device_is_left_behind():
    with on_device(noise_of("tf32")):
        assert active() is noise_of("tf32")
        with pytest.raises(KeyError), on_device(noise_of("metal_worst")):
            raise KeyError
        assert active() is noise_of("tf32")
        with on_device(None):
            assert active() is noise_of("tf32")
    assert active() is None


def test_references_are_kept_by_device():
    probe = registry()["rope.scores"]
    plain = reference(probe, 0)
    with on_device(noise_of("metal_worst")):
        noisy = reference(probe, 0)
    assert noisy is not plain
    assert reference(probe, 0) is plain
    spread = lambda family: max(float((null.double() - family.exact).square().mean().sqrt()) for null in family.nulls)  # noqa: E731
    assert spread(noisy) > 10 * spread(plain)


@pytest.mark.parametrize(("device", "pair"), [("metal_worst", "rope"), ("metal_tenth", "rope"), ("tf32", "router")])
def test_the_same_port_is_right_with_the_device_s_limits_and_wrong_with_a_cpu_s(device, pair):
    noise = noise_of(device)
    judged = lambda: Search(pairs.registry()[pair], "float32", PROFILES["quick"], 0).run(shrink=False)  # noqa: E731
    with EMULATED[device].on():
        assert judged().verdict is Verdict.DIVERGES
        with on_device(noise):
            assert judged().verdict is Verdict.PARITY
