"""Stored codes decode, and activations round, bit by bit as spec 12 says.

Run: pytest tests/test_reference_quantization.py
"""

import math

import pytest
import torch
from helpers import tiny
from hypothesis import given
from hypothesis import strategies as st

from reference_torch import Config, Options
from reference_torch import quantization as q

BYTES = torch.arange(256, dtype=torch.int32).to(torch.uint8)
ONE = torch.ones(1, 1)
# The sixteen e2m1 codes, written out.
E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6)


def scales(*exponents) -> torch.Tensor:
    return torch.tensor(exponents, dtype=torch.int32).add(127).to(torch.uint8).view(torch.float8_e8m0fnu)


def same_bits(a, b) -> bool:
    return a.dtype == b.dtype == torch.float32 and torch.equal(a.view(torch.int32), b.view(torch.int32))


# --- stored codes ------------------------------------------------------------------------------------------


def test_e8m0_every_byte():
    decoded = q.decode_scale(BYTES.view(torch.float8_e8m0fnu))
    assert decoded[:255].tolist() == [2.0 ** (byte - 127) for byte in range(255)]  # 2^-127 is subnormal
    assert decoded[255].isnan()


def test_scale_that_is_stored_as_float():
    assert q.decode_scale(torch.tensor([0.3, 7.0])).tolist() == torch.tensor([0.3, 7.0]).tolist()


def test_fp8_every_code():
    codes = BYTES.view(torch.float8_e4m3fn)[None]
    decoded = q.decode_fp8(codes, torch.ones(1, 2))[0]
    assert torch.equal(decoded.isnan(), (BYTES & 0x7F) == 0x7F)
    for code in (code for code in range(256) if code & 0x7F != 0x7F):
        sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
        value = (mantissa / 8 + (exponent > 0)) * 2.0 ** (max(exponent, 1) - 7)
        assert decoded[code].item() == (-value if sign else value)
    finite = ~decoded.isnan()
    assert same_bits(decoded[finite], codes.float()[0][finite])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (128, 128), (129, 127), (130, 300)])
def test_fp8_tiles_at_the_edges_may_be_partial(rows, columns):
    grid = (-(-rows // 128), -(-columns // 128))
    exponents = torch.arange(grid[0] * grid[1]).reshape(grid) - 2
    decoded = q.decode_fp8(torch.full((rows, columns), 1.5).to(torch.float8_e4m3fn), scales(*exponents.tolist()))
    for row in {0, 127, 128, rows - 1} & set(range(rows)):
        for column in {0, 127, 128, 256, columns - 1} & set(range(columns)):
            assert decoded[row, column] == 1.5 * 2.0 ** int(exponents[row // 128, column // 128])


def test_fp4_every_byte_low_nibble_first():
    """Sixteen bytes share a scale; the eight groups have scales of their own."""
    exponents = list(range(-8, 8))
    decoded = q.decode_fp4(BYTES.view(torch.int8)[None], scales(exponents))
    expected = [E2M1[nibble] * 2.0 ** exponents[byte // 16] for byte in range(256) for nibble in (byte & 15, byte >> 4)]
    assert same_bits(decoded, torch.tensor([expected]))


# --- rounding to few bits ----------------------------------------------------------------------------------


def e4m3_values() -> torch.Tensor:
    values = BYTES.view(torch.float8_e4m3fn).float()
    return values[values.isfinite()].unique()


def test_round_to_e4m3_at_every_value_and_midpoint():
    values = e4m3_values()
    midpoints = (values[1:] + values[:-1]) / 2
    beside = [torch.nextafter(midpoints, midpoints + side) for side in (1, -1)]
    x = torch.cat((values, midpoints, *beside))
    assert torch.equal(q.round_to_e4m3(x), x.to(torch.float8_e4m3fn).float())


@given(st.lists(st.floats(-448, 448, width=32), min_size=1))
def test_round_to_e4m3_is_the_cast(values):
    x = torch.tensor(values)
    assert torch.equal(q.round_to_e4m3(x), x.to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("x", [449.0, 465.0, 1e30, math.inf])
def test_round_to_e4m3_stops_at_448(x):
    assert q.round_to_e4m3(torch.tensor([x, -x])).tolist() == [448, -448]


@pytest.mark.parametrize(
    ("x", "rounded"),
    [(0.25, 0), (0.75, 1), (1.25, 1), (1.75, 2), (2.5, 2), (3.5, 4), (5, 4)],
)
def test_round_to_e2m1_sends_ties_to_even(x, rounded):
    above, below = torch.nextafter(torch.tensor([x, x]), torch.tensor([9.0, -9.0]))
    assert q.round_to_e2m1(torch.tensor([x, -x])).tolist() == [rounded, -rounded]
    neighbours = sorted(E2M1[:8], key=lambda value: abs(value - x))[:2]
    assert [q.round_to_e2m1(below).item(), q.round_to_e2m1(above).item()] == sorted(neighbours)


@given(st.floats(-20, 20, width=32))
def test_round_to_e2m1_takes_the_nearest(x):
    rounded = q.round_to_e2m1(torch.tensor([x])).item()
    clamped = min(max(x, -6), 6)
    assert abs(rounded - clamped) == min(abs(value - clamped) for value in E2M1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("rounding", [q.round_to_e4m3, q.round_to_e2m1])
def test_rounding_is_exact_in_every_type(dtype, rounding):
    x = torch.linspace(-7, 7, 1001).to(torch.bfloat16)
    assert torch.equal(rounding(x.to(dtype)).double(), rounding(x.double()))


# --- scales of activations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", range(-13, 30))
def test_fp8_scale_of_a_power_of_two_times_448_is_not_bumped(exponent):
    amax = torch.tensor(448 * 2.0**exponent)
    assert q.fp8_scale(amax) == 2.0**exponent
    assert q.fp8_scale(torch.nextafter(amax, amax * 2)) == 2.0 ** (exponent + 1)


def test_fp8_scale_of_almost_nothing():
    """The published floor of 1e-4 on the largest magnitude: 1e-4/448 is above 2^-23."""
    assert q.fp8_scale(torch.tensor([0.0, 1e-30, 1e-4])).tolist() == [2.0**-22] * 3


@pytest.mark.parametrize("exponent", [-126, -30, 0, 30])
def test_fp4_scale(exponent):
    amax = torch.tensor(6 * 2.0**exponent)
    assert q.fp4_scale(amax) == 2.0**exponent
    assert q.fp4_scale(torch.nextafter(amax, amax * 2)) == 2.0 ** (exponent + 1)
    assert q.fp4_scale(torch.tensor(0.0)) == 2.0**-126


@given(st.floats(2.0**-100, 2.0**100))
def test_power_of_two_at_least(x):
    power = q.power_of_two_at_least(torch.tensor(x, dtype=torch.float64)).item()
    assert power / 2 < x <= power
    assert math.frexp(power)[0] == 0.5


def test_fp8_fake_quant_by_hand():
    """Two groups of four and a partial one: scales 1, 2^-22 (all zero) and 4."""
    x = torch.tensor([448.0, 17.0, -0.3, 2.0**-10, 0, 0, 0, 0, 1000.0, 29.0])
    expected = [448.0, 16.0, -0.3125, 0, 0, 0, 0, 0, 1024.0, 28.0]
    assert q.fp8_fake_quant(x, 4).tolist() == expected


def test_fp4_fake_quant_by_hand():
    x = torch.tensor([6.0, 5.0, 2.5, -0.25, 12.0, -7.0, 0.5, 1.0])
    assert q.fp4_fake_quant(x, 4).tolist() == [6, 4, 2, 0, 12, -8, 0, 1]


@pytest.mark.parametrize("round_twice", [lambda x: q.fp8_fake_quant(x, 64), q.fp4_fake_quant])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_again_changes_nothing(round_twice, dtype):
    x = torch.randn(5, 200, generator=torch.Generator().manual_seed(0)).to(dtype)
    once = round_twice(x)
    assert once.dtype == dtype
    assert once.shape == x.shape
    assert torch.equal(round_twice(once), once)


# --- Hadamard, and what is rounded where -------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 8, 128])
def test_hadamard_is_sylvesters_symmetric_and_orthogonal(width):
    matrix = q.hadamard(torch.eye(width, dtype=torch.float64)) * math.sqrt(width)
    signs = [[(-1.0) ** (row & column).bit_count() for column in range(width)] for row in range(width)]
    expected = torch.tensor(signs, dtype=torch.float64)
    assert torch.equal(matrix.round(), expected)
    assert torch.equal(expected, expected.T)
    assert torch.equal(expected @ expected, width * torch.eye(width, dtype=torch.float64))


def test_hadamard_of_another_width():
    with pytest.raises(ValueError, match=r"^a Hadamard rotation needs a power of two; this tensor has 12 channels\.$"):
        q.hadamard(torch.ones(12))


def test_window_rows_keep_their_rotated_channels():
    config = Config.from_dict(tiny((0,)))
    row = torch.randn(2, 3, config.head_dim, generator=torch.Generator().manual_seed(0))
    rounded = q.KVQuant(config, Options(quantization_simulation="published"))(row)
    content = config.head_dim - config.qk_rope_head_dim
    assert torch.equal(rounded[..., content:], row[..., content:])
    assert torch.equal(rounded[..., :content], q.fp8_fake_quant(row[..., :content], 64))
    assert q.KVQuant(config, Options())(row) is row


def test_window_rows_that_are_all_rotated():
    config = Config.from_dict(tiny((0,), head_dim=8))
    row = torch.randn(2, 3, 8)
    assert torch.equal(q.KVQuant(config, Options(quantization_simulation="published"))(row), row)


def test_index_rows_are_rotated_and_rounded_together():
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))
    rounded = q.IndexQuant(Options(quantization_simulation="published"))(x)
    assert torch.equal(rounded, q.fp4_fake_quant(q.hadamard(x), 32))
    assert q.IndexQuant(Options())(x) is x


@pytest.mark.parametrize(("stored", "rounds"), [("float", False), ("fp8", True), ("fp4", True)])
@pytest.mark.parametrize("simulation", ["none", "rows", "published"])
def test_linear_rounds_its_input_only_before_packed_weights(stored, rounds, simulation):
    random = torch.Generator().manual_seed(0)
    linear = q.Linear(200, 3, Options(quantization_simulation=simulation)).requires_grad_(False)
    linear.weight.copy_(torch.randn(3, 200, generator=random))
    linear.stored = stored
    x = torch.randn(2, 200, generator=random)
    seen = q.fp8_fake_quant(x, 128) if rounds and simulation == "published" else x
    assert torch.equal(linear(x), torch.nn.functional.linear(seen, linear.weight))
