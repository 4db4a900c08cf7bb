"""Which choices are legal: the exact top-k, or another that noise can explain, and nothing else.

Run: pytest tests/test_decisions.py
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity.judging.decisions import as_sets, judge, same

# One token, five items; the cut of k=2 lies between 0.80 and 0.79.
SCORES = torch.tensor([[[0.10, 0.80, 0.79, 0.95, 0.50]]], dtype=torch.float64)
ALL = torch.ones(1, 1, 5, dtype=torch.bool)
NOISE = 2.0**-7
MARGIN = 0.01  # either side of the cut may move by so much


def choose(*items, scores=SCORES, allowed=ALL, k=2, margin=MARGIN):
    return judge(scores, allowed, torch.tensor([[items]]), k, margin)


@pytest.mark.parametrize("items", [(3, 1), (1, 3)])
def test_exact_choice_in_any_order(items):
    choice = choose(*items)
    assert (choice.tokens, choice.ties, choice.illegal, choice.worst_excess) == (1, 0, 0, 0)


def test_near_miss_is_a_tie():
    choice = choose(3, 2)
    assert (choice.ties, choice.illegal) == (1, 0)


@pytest.mark.parametrize(
    ("margin", "legal"),
    [(0.0051, True), (0.0049, False), (0.0, False)],
)
def test_margin_counts_on_both_sides_of_the_cut(margin, legal):
    """0.79 instead of 0.80: both may be off by the margin."""
    choice = choose(3, 2, margin=margin)
    assert (choice.ties, choice.illegal) == ((1, 0) if legal else (0, 1))
    if margin and not legal:
        assert choice.worst_excess == pytest.approx(0.01 / (2 * margin))


def test_far_miss_is_illegal_and_says_how_far():
    choice = choose(3, 0)
    assert (choice.ties, choice.illegal) == (0, 1)
    assert choice.worst_excess == pytest.approx(0.7 / (2 * MARGIN))


def test_skipping_the_best_is_illegal_though_the_rest_is_right():
    choice = choose(1, 2)
    assert choice.illegal == 1
    assert choice.worst_excess == pytest.approx((0.95 - 0.79) / (2 * MARGIN))


@pytest.mark.parametrize(
    "items",
    [(3, 3), (3,), (3, -1), (-1, -1), (3, 1, 2)],
    ids=["twice the same", "too few", "one and none", "none", "too many"],
)
def test_wrong_number_of_items_is_illegal_whatever_the_margin(items):
    choice = choose(*items, margin=1e9)
    assert (choice.ties, choice.illegal, choice.worst_excess) == (0, 1, math.inf)
    assert choice.note == "chose a forbidden or a wrong number of items"


def test_forbidden_item_is_illegal_whatever_the_margin():
    allowed = torch.tensor([[[True, True, True, False, True]]])
    assert choose(3, 1, allowed=allowed, margin=1e9).illegal == 1
    assert choose(2, 1, allowed=allowed).illegal == 0  # the exact choice of what is left


def test_fewer_allowed_than_wanted():
    """Rows not yet visible: -1 stands for none, and every visible row must be taken."""
    allowed = torch.tensor([[[True, False, False, False, False]]])
    assert choose(0, -1, allowed=allowed).illegal == 0
    assert choose(-1, -1, allowed=allowed, margin=1e9).illegal == 1
    assert choose(-1, -1, allowed=torch.zeros_like(ALL)).illegal == 0


@pytest.mark.parametrize(("items", "told"), [((3, 5), "chose item 5 of 5"), ((3, 99), "chose item 99 of 5")])
def test_item_that_does_not_exist(items, told):
    choice = choose(*items, margin=1e9)
    assert (choice.illegal, choice.worst_excess, choice.note) == (1, math.inf, told)


def test_item_below_none():
    choice = choose(3, -2, margin=1e9)
    assert (choice.illegal, choice.worst_excess) == (1, math.inf)


def test_nothing_to_choose_from():
    nothing = torch.empty(1, 2, 0)
    assert judge(nothing, nothing.bool(), torch.empty(1, 2, 0, dtype=torch.int64), 3, MARGIN).illegal == 0


def test_every_token_has_a_margin_of_its_own():
    scores = SCORES.expand(1, 3, 5)
    picks = torch.tensor([[[3, 2], [3, 2], [3, 1]]])
    choice = judge(scores, ALL.expand(1, 3, 5), picks, 2, torch.tensor([[0.1, 0.001, 0.0]]))
    assert (choice.tokens, choice.ties, choice.illegal) == (3, 1, 1)


def test_exact_tie_is_no_deviation_even_without_noise():
    scores = torch.tensor([[[0.5, 0.7, 0.5, 0.5]]])
    for other in (0, 2, 3):
        choice = choose(1, other, scores=scores, allowed=torch.ones_like(scores).bool(), margin=0.0)
        assert (choice.ties, choice.illegal) == (0, 0)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_scores(value):
    scores = SCORES.clone()
    scores[..., 3] = value
    best = (3, 1) if value > 0 else (1, 2)
    worst = (1, 2) if value > 0 else (3, 1)
    assert choose(*best, scores=scores).illegal == 0
    assert choose(*worst, scores=scores).illegal == 1


def test_score_that_is_not_a_number_makes_no_choice_legal():
    scores = SCORES.clone()
    scores[..., 2] = math.nan
    for items in ((3, 1), (3, 2)):
        assert choose(*items, scores=scores).illegal == 1


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=9),
    st.integers(1, 3),
    st.lists(st.floats(-NOISE, NOISE, width=32), min_size=9, max_size=9),
)
def test_top_k_of_scores_within_the_noise_is_always_legal(scores, k, noise):
    exact = torch.tensor([[scores]], dtype=torch.float64)
    seen = exact + torch.tensor(noise[: len(scores)], dtype=torch.float64)
    picks = seen.topk(k)[1]
    assert judge(exact, torch.ones_like(exact).bool(), picks, k, NOISE).illegal == 0


# --- choices without freedom -------------------------------------------------------------------------------


def test_tables_leave_no_freedom():
    expected = torch.tensor([[[1, 4], [0, 2], [3, 2]]])
    shuffled = expected.flip(-1)
    assert same(expected, shuffled, 5).illegal == 0
    other = shuffled.clone()
    other[0, 1, 0] = 3
    choice = same(expected, other, 5)
    assert (choice.tokens, choice.illegal, choice.note) == (3, 1, "the table names other experts")


@pytest.mark.parametrize("picks", [[[[1, 5]]], [[[1, 4], [1, 4]]]], ids=["out of range", "other shape"])
def test_tables_that_cannot_be_compared(picks):
    choice = same(torch.tensor([[[1, 4], [0, 2], [3, 2]]]), torch.tensor(picks), 5)
    assert (choice.illegal, choice.worst_excess) == (3, math.inf)


def test_sets():
    sets = as_sets(torch.tensor([[[2, 0, -1], [1, 1, -1]]]), 3)
    assert sets.tolist() == [[[True, False, True], [False, True, False]]]
