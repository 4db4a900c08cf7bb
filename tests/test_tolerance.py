"""The rule itself: what it lets pass, what it stops, and where its limits come from.

Run: pytest tests/test_tolerance.py
"""

import math

import pytest
import torch

from parity.judging.rounding import OtherRounding
from parity.judging.tolerance import RULES, SCATTER, SMALL, measure, peak, pooled_ratio, rms, rule_for, spacing
from reference_torch.norm import rms_norm, wide

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Norm:
    """RMSNorm over rows of 192 channels: exact, in a type, and with other rounding."""

    def __init__(self, rows, dtype, seed=0, dim=192):
        self.dtype = dtype
        self.x = normal(rows, dim, seed=seed, dtype=DTYPES[dtype])
        self.weight = 1 + 0.5 * normal(dim, seed=seed + 1, dtype=torch.float32)
        self.exact = rms_norm(self.x.double(), self.weight.double(), 1e-6)
        self.baseline = self.candidate()
        self.nulls = []
        for member in range(2):
            with OtherRounding(1000 * seed + member, sequential=False):
                self.nulls.append(self.candidate())

    def candidate(self, over=0, dtype=None):
        """A norm whose mean divides by D - over; computed and rounded in `dtype`."""
        x = wide(self.x)
        mean = x.square().sum(-1, keepdim=True) / (x.shape[-1] - over)
        return (wide(self.weight) * (x * torch.rsqrt(mean + 1e-6))).to(dtype or self.x.dtype)

    def measure(self, candidate):
        return measure(self.exact, self.baseline, self.nulls, candidate, self.dtype)


# --- what passes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_baseline_itself_passes(dtype):
    norm = Norm(20, dtype)
    assert 0 < norm.measure(norm.baseline).ratio <= 1 / RULES[dtype].rms


def test_a_stray_upcast_is_information_and_passes():
    examples = [Norm(20, "bfloat16", seed) for seed in range(5)]
    measured = [norm.measure(norm.candidate(dtype=torch.float32)) for norm in examples]
    assert all(m.ratio < 0.01 for m in measured)
    assert pooled_ratio(measured) < 0.01


def test_equal_to_exact_where_nothing_rounds():
    zero = torch.zeros(3, 100)
    assert measure(zero, zero, [zero], zero, "float32").ratio == 0


# --- what does not -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_value_that_is_not_finite_is_infinitely_wrong(value, dtype):
    norm = Norm(20, dtype)
    wrong = norm.baseline.clone()
    wrong[7, 3] = value
    measured = norm.measure(wrong)
    assert measured.ratio == math.inf
    assert pooled_ratio([norm.measure(norm.baseline)] * 10 + [measured]) == math.inf


def test_nothing_that_can_be_compared_is_no_agreement():
    norm = Norm(20, "float32")
    norm.exact.fill_(math.nan)
    measured = norm.measure(norm.candidate(over=1))
    assert (measured.elements, measured.ratio, measured.error_rms) == (0, math.inf, math.inf)
    one = Norm(20, "float32")
    one.nulls[0][3, 5] = math.nan
    assert one.measure(one.candidate(over=1)).elements == one.exact.numel() - 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("broken", ["baseline", "null", "exact"])
def test_a_reference_that_is_not_finite_hides_nothing(value, broken):
    """Not a number is neither above nor below a limit: it would pass, and in a sum it would hide all other examples."""
    norm = Norm(20, "float32")
    tensor = {"baseline": norm.baseline, "null": norm.nulls[0], "exact": norm.exact}[broken]
    tensor[7, 3] = value
    wrong = norm.candidate(over=100)
    wrong[7, 3] = value
    measured = norm.measure(wrong)
    assert not math.isnan(measured.ratio)
    good = Norm(20, "float32", seed=1)
    assert pooled_ratio([good.measure(good.candidate(over=100))] * 10 + [measured]) > 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_element_far_off_is_caught_by_the_maximum(dtype):
    norm = Norm(2000, dtype)
    wrong = norm.baseline.clone()
    wrong[7, 3] += 10 * norm.measure(norm.baseline).limit_max
    measured = norm.measure(wrong)
    assert measured.error_max > measured.limit_max
    assert measured.error_rms < measured.limit_rms


def test_mean_over_one_channel_too_few_is_caught_in_bfloat16():
    """The defect that a factor of 2 hid: 1/(2D) is about one rounding of bfloat16, and the ratio to the null 1.85."""
    examples = [Norm(20, "bfloat16", seed) for seed in range(20)]
    wrong = [norm.measure(norm.candidate(over=1)) for norm in examples]
    seen = math.sqrt(sum((m.error_rms / m.null_rms) ** 2 for m in wrong) / len(wrong))
    assert 1.5 < seen < 2
    assert all(m.ratio < 1 for m in wrong)  # no single example shows it
    assert pooled_ratio(wrong) > 1  # all of them together do
    assert pooled_ratio([norm.measure(norm.candidate()) for norm in examples]) < 1


def test_mean_over_one_channel_too_few_is_caught_at_once_in_float32():
    norm = Norm(1, "float32")
    assert norm.measure(norm.candidate(over=1)).ratio > 100


# --- where the limit comes from ----------------------------------------------------------------------------


def test_limit_is_the_worst_of_the_null_times_the_rule():
    exact, baseline = torch.zeros(25, 100), torch.full((25, 100), 1e-3)
    null, candidate = torch.full((25, 100), -3e-3), torch.full((25, 100), 2e-3)
    m = measure(exact, baseline, [null], candidate, "float32")
    slack = 1 + SCATTER / math.sqrt(25)
    assert (m.rows, m.elements) == (25, 2500)
    assert m.limit_rms == pytest.approx(RULES["float32"].rms * slack * 3e-3, rel=1e-6)
    assert m.limit_max == pytest.approx(RULES["float32"].maximum * slack * 3e-3, rel=1e-6)
    assert m.ratio == pytest.approx(2e-3 / m.limit_rms, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [1.0, 1.5, 3.99, 448.0, 1e-3])
def test_spacing_is_the_distance_to_the_next_number(dtype, value):
    x = torch.tensor(value, dtype=dtype)
    assert spacing(dtype, x.item()) == (torch.nextafter(x, x * 4) - x).item()


def test_spacing_of_nothing():
    assert spacing(torch.float32, 0.0) == torch.finfo(torch.float32).smallest_normal


@pytest.mark.parametrize(("elements", "share"), [(SMALL - 1, 1), (SMALL, 12**-0.5)])
def test_fewer_than_64_elements_use_a_whole_spacing(elements, share):
    """A null that is exact by chance: the floor is all there is."""
    exact = torch.full((1, elements), 1.25, dtype=torch.float64)
    baseline = exact.float()
    step = 2.0**-23
    m = measure(exact, baseline, [baseline], baseline + step, "float32")
    assert m.floor_rms == pytest.approx(step * share)
    assert m.floor_max == step
    assert (m.limit_rms, m.limit_max) == (m.floor_rms, m.floor_max)
    assert (m.ratio <= 1) == (elements < SMALL)


def test_floor_is_that_of_the_baselines_type():
    exact = torch.ones(10, 10, dtype=torch.float64)
    floors = [measure(exact, exact.to(dtype), [], exact, "bfloat16").floor_max for dtype in DTYPES.values()]
    assert floors == [2.0**-23, 2.0**-7]


@pytest.mark.parametrize(
    ("null", "rule"),
    [(2.0**-9, "bfloat16"), (2.0**-15, "bfloat16"), (2.0**-17, "float32"), (2.0**-24, "float32")],
)
def test_wide_tensors_of_a_bfloat16_run_are_judged_as_float32(null, rule):
    assert rule_for(5 * null, 5.0, "bfloat16") is RULES[rule]
    assert rule_for(5 * null, 5.0, "float32") is RULES["float32"]


def test_every_number_that_loosens_has_a_reason():
    assert all(len(rule.reason) > 20 for rule in RULES.values())
    assert RULES["bfloat16"].pooled <= 1.2  # the method's own bound; 2.0 is known to have hidden a real bug
    for rule in RULES.values():
        assert rule.pooled <= rule.rms <= rule.maximum


# --- pooling -----------------------------------------------------------------------------------------------


def example(rows, error, null=1e-3):
    exact = torch.zeros(rows, 8)
    return measure(exact, exact + null, [], exact + error, "float32")


def test_pooling_needs_64_rows():
    assert pooled_ratio([]) == 0
    assert pooled_ratio([example(SMALL - 1, 1.0)]) == 0
    assert pooled_ratio([example(SMALL - 1, 1.0), example(1, 1.0)]) > 1


def test_pooled_ratio_is_the_rms_over_rows_each_against_its_own_null():
    pooled = pooled_ratio([example(300, 3e-3), example(100, 0.0, null=7.0)])
    slack = 1 + SCATTER / math.sqrt(400)
    assert pooled == pytest.approx(math.sqrt(0.75 * 9) / RULES["float32"].pooled / slack, rel=1e-6)


def test_pooling_is_sharper_than_any_example():
    examples = [example(20, 1.9e-3)] * 50
    assert all(m.ratio < 1 for m in examples)
    assert pooled_ratio(examples) > 1


@pytest.mark.parametrize("of", [rms, peak])
def test_size_of_what_is_not_finite_is_infinite_and_of_nothing_zero(of):
    assert of(torch.tensor([1.0, math.nan])) == math.inf
    assert of(torch.tensor([1.0, math.inf])) == math.inf
    assert of(torch.empty(0)) == 0
    assert of(torch.tensor([3.0, -3.0])) == 3
