"""Whether a value of a port is one of the reference's, whatever its layout. Run: pytest tests/test_lines_values.py"""

import numpy as np
import pytest
import torch

from parity.candidates import told
from parity.lines.matching import meanings
from parity.lines.operations import recorded
from parity.lines.values import Values


def values(run, x):
    """What a run in float64 computes, and what of it other numbers leave as it is."""
    return Values.of(
        recorded(lambda: run(x.double())), recorded(lambda: run(x)), recorded(lambda: run(x.double() + 1)), "float32"
    )


def test_a_value_is_found_in_any_layout_and_nowhere_else():
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    right = values(lambda x: (x * 2) @ torch.eye(8, dtype=x.dtype), x)
    in_order = lambda value: np.sort(value.double().numpy().ravel())  # noqa: E731
    found = right.find(in_order((x * 2).T))
    assert not found.still
    assert right.find(in_order(x * 2 + 1e-3)) is None
    assert right.find(in_order(x * 2)[:-1]) is None
    eye = right.find(in_order(torch.eye(8)))
    assert eye.still


def meant(given, masks=()):
    """What values of a port are, beside a reference that computes x, 2x and all ones of the same size."""
    x = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    right = values(lambda x: (x * 2) + torch.ones(30, 20, dtype=x.dtype), x)
    wrong = values(lambda x: x * 3, x)
    found = told.Watched([given(x).float().numpy().ravel()], [], [], [], [], {*masks}, False)
    return meanings(found, right, wrong)[0]


def test_what_values_of_a_port_are():
    state = lambda *given: meant(*given).state  # noqa: E731
    assert [state(lambda x: x.T * 2), state(lambda x: x * 3), state(lambda x: x * 4)] == ["right", "wrong", "other"]
    assert meant(lambda x: x * 2).laid
    assert not meant(lambda x: x.T * 2).laid
    assert [state(torch.zeros_like), state(torch.ones_like)] == ["right", "right"]
    assert [state(lambda x: 0 * x + 7), state(lambda x: x / 0)] == ["plain", "plain"]
    assert state(torch.ones_like, [0]) == "plain"  # a mask that hides nothing
    assert state(lambda x: (x > 0).float()[:9]) == "weak"
    assert meant(lambda x: torch.where(x > 0, 0.0, -torch.inf)).mask
    assert meant(lambda x: torch.where(x > 0, 0.0, -1e9)).mask


@pytest.mark.parametrize(
    ("turn", "state"),
    [
        (lambda table: 1 / table, "right"),
        (lambda table: -table, "right"),
        (lambda table: torch.cat((torch.full((4,), torch.inf), -1 / table)), "right"),
        (lambda table: 2 / table, "wrong"),
        (lambda table: torch.cat((torch.full((4,), torch.inf), 3 * table)), "plain"),
        (lambda table: 1 / (table + 0.01), "other"),
    ],
)
def test_a_table_that_no_token_changes_is_known_turned(turn, state):
    """As wavelengths instead of frequencies, infinite ones for channels that are not rotated; a value is not."""
    table = torch.linspace(0.1, 0.9, 12, dtype=torch.float64)
    x = torch.randn(30, 12, generator=torch.Generator().manual_seed(0))
    right = values(lambda x: x.exp() * (table * 1).to(x.dtype), x)
    wrong = values(lambda x: x * (table * 0.5).to(x.dtype), x)
    found = told.Watched([turn(table).float().numpy(), 1 / x.exp().numpy()], [], [], [], [], set(), False)
    one, changing = meanings(found, right, wrong)
    assert one.state == state
    assert changing.state == "other"


def beside(turn, defect=False):
    """What scores with a mask, of which the first is hidden, are after a port has turned them; `defect`: other ones,
    whose defect the second reference has."""
    x = torch.randn(30, 20, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    hides = torch.zeros(30, 20, dtype=torch.bool)
    hides[:, 3:5] = True
    scores = lambda x, by=2: (x * by).masked_fill(hides, -torch.inf)  # noqa: E731
    right, wrong = values(scores, x), values(lambda x: scores(x, 3), x)
    given = turn(scores(x, 3 if defect else 2)).float()
    return meanings(told.Watched([given.numpy()], [], [], [], [], set(), False), right, wrong)[0]


@pytest.mark.parametrize("defect", [False, True])
@pytest.mark.parametrize(
    "turn",
    [
        lambda scores: scores,
        lambda scores: scores.clamp(min=torch.finfo(torch.float32).min),  # added to, in place of -inf
        lambda scores: torch.nn.functional.pad(scores, (0, 1)),  # a column of zeros for a sink
        lambda scores: scores[:, [0, 1, 2, *range(5, 20)]],  # what is hidden left out
        lambda scores: torch.cat((scores, torch.zeros(7, 20))),  # rows that are not in use
    ],
    ids=("same", "lowest", "sink", "seen alone", "buffer"),
)
def test_a_value_is_known_but_for_zeros_and_what_is_hidden(turn, defect):
    found = beside(turn, defect)
    assert (found.state, found.still) == ("wrong" if defect else "right", False)


@pytest.mark.parametrize(
    "turn",
    [
        lambda scores: scores[:, :4],
        lambda scores: torch.nn.functional.pad(scores, (0, 1), value=0.01),
        lambda scores: torch.where(scores.isinf(), 0.5, scores),
        lambda scores: (scores + 0.01).clamp(min=-1e9),
    ],
    ids=("fewer", "another number beside", "another number instead", "other numbers"),
)
def test_another_value_is_not_known_for_what_is_hidden_in_it(turn):
    assert beside(turn).state in ("other", "plain")
