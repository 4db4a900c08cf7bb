"""Which rows an undecided rounding reaches, judged by how noisy a row is beside the typical one."""

import torch

from parity.judging.undecided import decided_rows

EXACT = torch.linspace(1, 2, 40, dtype=torch.float64).reshape(1, 10, 4)
NOISE = 1e-7 * torch.sin(torch.arange(40.0, dtype=torch.float64)).reshape(1, 10, 4)


def test_ordinary_noise_decides_every_row():
    decided, noise = decided_rows(EXACT, EXACT + NOISE, [EXACT - NOISE])
    assert decided.all()
    assert noise.shape == (1, 10)


def test_a_row_that_one_run_moves_far_is_undecided():
    flipped = EXACT.clone()
    flipped[0, 3] += 0.1
    decided, noise = decided_rows(EXACT, EXACT + NOISE, [flipped])
    assert decided.tolist() == [[row != 3 for row in range(10)]]
    assert abs(float(noise[0, 3]) - 0.1) < 1e-6


def test_hidden_rows_do_not_set_what_is_typical():
    """Scores that may not be chosen are 0 in every run; were they counted, every other row would look undecided."""
    hidden = torch.zeros(1, 10, 1, dtype=torch.bool)
    hidden[:, :7] = True
    runs = [run.masked_fill(hidden, 0) for run in (EXACT, EXACT + NOISE, EXACT - 2 * NOISE)]
    decided, _ = decided_rows(runs[0], runs[1], runs[2:])
    assert decided.all()
