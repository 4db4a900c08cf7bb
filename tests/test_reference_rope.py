"""Rotary positions against the formulas of spec 5, written out in Python's own floats.

Run: pytest tests/test_reference_rope.py
"""

import cmath
import math

import pytest
import torch
from helpers import tiny

from parity.cases.resources import fixtures_path
from reference_torch import Config, rope

FLASH = fixtures_path() / "configs" / "flash.json"


def yarn(config, pair) -> float:
    """freq_i of a compressed layer, spec 5 line by line."""
    dim, base, scaling = config.qk_rope_head_dim, config.compress_rope_theta, config.rope_scaling

    def c(turns):
        length = scaling.original_max_position_embeddings
        return dim * math.log(length / (2 * math.pi * turns)) / (2 * math.log(base))

    low, high = max(math.floor(c(scaling.beta_fast)), 0), min(math.ceil(c(scaling.beta_slow)), dim - 1)
    if low == high:
        high += 0.001
    ramp = min(max((pair - low) / (high - low), 0), 1)
    freq = base ** (-2 * pair / dim)
    return freq / scaling.factor * ramp + freq * (1 - ramp)


def test_yarn_range_of_the_released_values():
    assert rope.yarn_range(Config.load(FLASH)) == (15, 25)


@pytest.mark.parametrize("original", [64, 7, 4096])
@pytest.mark.parametrize("beta_fast", [32, 1])  # 1: both ends may fall together
def test_yarn_table(original, beta_fast):
    scaling = tiny((4,))["rope_scaling"] | {
        "original_max_position_embeddings": original,
        "beta_fast": beta_fast,
    }
    config = Config.from_dict(tiny((4,), rope_scaling=scaling))
    table = rope.inverse_frequencies(config, 4, torch.float64).tolist()
    assert table == pytest.approx([yarn(config, pair) for pair in range(4)], rel=1e-14)


def test_released_table_keeps_15_pairs_and_divides_7_by_16():
    config = Config.load(FLASH)
    table = rope.inverse_frequencies(config, 128, torch.float64)
    plain = [160000 ** (-2 * pair / 64) for pair in range(32)]
    assert table[:16].tolist() == pytest.approx(plain[:16], rel=1e-14)
    assert table[25:].tolist() == pytest.approx([freq / 16 for freq in plain[25:]], rel=1e-14)
    assert table.tolist() == pytest.approx([yarn(config, pair) for pair in range(32)], rel=1e-14)


@pytest.mark.parametrize("ratio", [2, 4, 128])
def test_every_compressed_layer_has_the_same_table(ratio):
    config = Config.from_dict(tiny((4,)))
    assert torch.equal(rope.inverse_frequencies(config, ratio), rope.inverse_frequencies(config, 8))


def test_window_only_layers_have_their_own_base_and_no_yarn():
    config = Config.load(FLASH)
    plain = [10000 ** (-2 * pair / 64) for pair in range(32)]
    assert rope.inverse_frequencies(config, 0, torch.float64).tolist() == pytest.approx(plain, rel=1e-14)


@pytest.mark.parametrize("off", [None, tiny((4,))["rope_scaling"] | {"original_max_position_embeddings": 0}])
def test_no_yarn_without_an_original_length(off):
    config = Config.from_dict(tiny((4,), rope_scaling=off))
    plain = [160000 ** (-2 * pair / 8) for pair in range(4)]
    assert rope.inverse_frequencies(config, 4, torch.float64).tolist() == pytest.approx(plain, rel=1e-14)


def test_rotation_multiplies_interleaved_pairs_of_the_last_channels():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 3, 10, generator=random, dtype=torch.float64)
    frequencies = torch.tensor([0.7, 0.05, 2.0], dtype=torch.float64)
    turned = rope.rotate(x, torch.tensor([5, 9]), frequencies)
    assert torch.equal(turned[..., :4], x[..., :4])
    for token, position in enumerate((5, 9)):
        for head in range(3):
            for pair, frequency in enumerate(frequencies.tolist()):
                before, after = (complex(*t[0, token, head, 4 + 2 * pair :][:2].tolist()) for t in (x, turned))
                assert after == pytest.approx(before * cmath.exp(1j * frequency * position), rel=1e-13)


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 5, 8), (2, 3, 8 + 7)])
def test_inverse_undoes(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frequencies = rope.inverse_frequencies(Config.from_dict(tiny((4,))), 4, torch.float64)
    positions = torch.tensor([0, 117, 65536])
    back = rope.rotate(rope.rotate(x, positions, frequencies), positions, frequencies, inverse=True)
    assert torch.allclose(back, x, rtol=0, atol=8 * torch.finfo(torch.float64).eps * x.abs().max().item())


def test_positions_may_differ_from_row_to_row_of_a_batch():
    x = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    frequencies = rope.inverse_frequencies(Config.from_dict(tiny((4,))), 4)
    positions = torch.tensor([[0, 1, 2], [9, 10, 11]])
    rows = [rope.rotate(x[row : row + 1], positions[row], frequencies) for row in range(2)]
    assert torch.equal(rope.rotate(x, positions, frequencies), torch.cat(rows))


def test_bfloat16_is_turned_wide_and_rounded_once():
    x = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    frequencies = rope.inverse_frequencies(Config.from_dict(tiny((0,))), 0)
    positions = torch.arange(1000, 1003)
    expected = rope.rotate(x.float(), positions, frequencies).to(torch.bfloat16)
    assert torch.equal(rope.rotate(x, positions, frequencies), expected)
