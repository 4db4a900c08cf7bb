"""Masks of a port beside the reference's, as they lie. Run: pytest tests/test_masks.py"""

import numpy as np
import pytest
import torch
from watched_text import watched

from parity.lines.answers import Finding
from parity.lines.masks import Masks, flat, read_as
from parity.lines.matching import meanings
from parity.lines.operations import recorded
from parity.lines.values import Values

TOKENS, ROWS, WINDOW, RATIO = 24, 6, 5, 4


def reference(seen=lambda positions: (positions + 1) // RATIO, wide=WINDOW):
    """A mask of a window, and of compressed rows behind it, one batch."""
    positions = torch.arange(TOKENS)
    behind = positions[:, None] - positions
    window = ((behind >= 0) & (behind < wide))[None]
    rows = (torch.arange(ROWS) < seen(positions)[:, None])[None]
    return torch.cat((window, rows), -1)


def union():
    """Every token sees what any does."""
    mask = reference()
    return torch.cat((mask[..., :TOKENS], mask[..., TOKENS:].any(1, keepdim=True).expand(-1, TOKENS, -1)), -1)


PORT = """import mlx.core as mx

def window(tokens, size):
    at = mx.arange(tokens)
    return (at[:, None] >= at) & (at[:, None] - at < size)

def rows(tokens, count, cache):
    at = mx.arange(tokens)
    seen = (at + 1) // 4

    mask = mx.arange(count) < seen[:, None]
    return mask

def both(tokens, count, cache):
    mask = window(tokens, 5)
    more = rows(tokens, count, cache)
    if count:
        sums = mx.arange(12.0)
        mask = mx.concatenate([mask, more], axis=-1)
    return mask

def main():
    return both(24, 6, None)
"""
ROW = "mask = mx.arange(count) < seen[:, None]"


def answer(tmp_path, old, new, wrong=union, text=PORT):
    """(line, that of the other end, what else may be to blame) of a port with a mistake, or None."""
    assert old in text
    found = watched(tmp_path, text.replace(old, new))
    right, defective = recorded(reference), recorded(wrong)
    known, other = (Values.of(one, one, one, "float32") for one in (right, defective))
    finding = Finding(found, meanings(found, known, other), right, defective)
    masked = finding.masked
    first = masked.first(len(found.events) - 1)
    if first is None:
        return None
    at, after, but = masked.place(first)
    line = lambda step: None if step is None else found.steps[step].line  # noqa: E731
    return line(at), line(after), but


def test_no_mask_of_a_right_port_is_wrong(tmp_path):
    assert answer(tmp_path, ROW, ROW) is None
    added = "return mx.where(mask, 0.0, -1e9)[None, None]"  # what is added to scores, for all heads
    turned = ROW.replace("<", ">=")  # True hides
    assert answer(tmp_path, "return mask\n\ndef main", f"{added}\n\ndef main") is None
    assert answer(tmp_path, ROW, f"hidden = {turned[7:]}; mask = ~hidden") is None


@pytest.mark.parametrize(
    "mask",
    [
        "mx.broadcast_to(mx.arange(count) < 5, (tokens, count))",
        "mx.where(mx.arange(count) < 5, 0.0, -mx.inf) + mx.zeros((tokens, 1))",
    ],
    ids=("truth values", "added"),
)
def test_the_line_that_makes_the_first_wrong_mask(tmp_path, mask):
    five = lambda: reference(lambda positions: positions * 0 + 5)  # noqa: E731
    assert answer(tmp_path, ROW, f"mask = {mask}", five) == (11, None, "")
    assert answer(tmp_path, ROW, f"mask = {mask}", union) is None  # another defect's


def test_a_mask_that_hides_nothing_is_one_of_the_defects_alone(tmp_path):
    everything = lambda: reference(lambda positions: positions * 0 + ROWS)  # noqa: E731
    assert answer(tmp_path, ROW, "mask = mx.ones((tokens, count), dtype=mx.bool_)", everything)[0] == 11


def test_what_a_mask_is_only_begun_with_is_not_wrong(tmp_path):
    everything = lambda: reference(lambda positions: positions * 0 + ROWS)  # noqa: E731
    begun = "start = mx.ones((tokens, count), dtype=mx.bool_)\n    mask = start & (mx.arange(count) < seen[:, None])"
    assert answer(tmp_path, ROW, begun, everything) is None


def test_of_a_mask_that_hides_everything_nothing_is_said(tmp_path):
    """It is what one is begun with, also where the defect hides everything, or shows it where True hides."""
    nothing = lambda: reference(lambda positions: positions * 0)  # noqa: E731
    everything = lambda: reference(lambda positions: positions * 0 + ROWS)  # noqa: E731
    assert answer(tmp_path, ROW, "mask = mx.zeros((tokens, count), dtype=mx.bool_)", everything) is None
    at, after, but = answer(tmp_path, ROW, "mask = mx.zeros((tokens, count), dtype=mx.bool_)", nothing)
    assert (at, after) == (19, 11)  # where it is laid beside the window's, and where it is made
    assert "`more`" in but


def test_a_number_before_the_mask_is_the_line_if_it_is_near(tmp_path):
    early = lambda: reference(lambda positions: (positions + 2) // RATIO)  # noqa: E731
    assert answer(tmp_path, "(at + 1) // 4", "(at + 2) // 4", early)[::2] == (9, "")


SET = "mask = mx.arange(6) < mx.full((tokens, 1), 5)"


@pytest.mark.parametrize(
    ("asked", "but"),
    [
        ("cache is not None or tokens < 9", ""),  # an array decides it; where it stands does not matter
        ("tokens > 9", "it hangs on the condition in line 11"),
    ],
)
def test_a_condition_that_only_asks_for_arrays_is_not_to_blame_for_a_mask(tmp_path, asked, but):
    five = lambda: reference(lambda positions: positions * 0 + 5)  # noqa: E731
    text = PORT.replace("both(24, 6, None)", "both(24, 6, mx.arange(9))")
    at, _, said = answer(tmp_path, ROW, f"if {asked}:\n\n\n\n\n        {SET}", five, text)
    assert (at, said) == (16, but)


def test_a_mask_that_counts_as_right_and_is_another_is_not_known(tmp_path):
    """As one of other rows than the indexer's, as many of them."""
    found = watched(
        tmp_path,
        PORT.replace("behind", "").replace(
            "return mask\n\ndef main", "mask = mask[:, ::-1]\n    return mask\n\ndef main"
        ),
    )
    right, defective = recorded(reference), recorded(union)
    known, other = (Values.of(one, one, one, "float32") for one in (right, defective))
    meant = meanings(found, known, other)
    last = found.events[-1].value
    assert meant[last].state == "right"  # by how many ones it has
    assert Finding(found, meant, right, defective).meant[last].state == "other"


EVERYTHING = "mx.ones((tokens, count), dtype=mx.bool_)"


@pytest.mark.parametrize(
    ("old", "new", "but", "lines"),
    [
        (ROW, "mask = (mx.arange(count) < seen[:, None]) | (cache is None)", "it hangs on `cache`", (11, 16)),
        (ROW, f"mask = {EVERYTHING}\n    if cache:\n        {ROW}", "what would change `mask` later did", (11, 18)),
        (ROW, f"if cache is None:\n        mask = {EVERYTHING}", "it hangs on the condition in line 11", (12, 17)),
        (
            "    seen = (at + 1) // 4",
            "    seen = (at + 1) // 4 + 9\n\n\n",
            "`seen`, which is read there, is none",
            (14, 9),
        ),
    ],
    ids=("a flag", "a change on a condition", "a condition", "far from a number"),
)
def test_where_something_else_may_be_to_blame_it_is_told(tmp_path, old, new, but, lines):
    everything = lambda: reference(lambda positions: positions * 0 + ROWS)  # noqa: E731
    at, after, said = answer(tmp_path, old, new, everything)
    assert but in said
    assert (at, after) == lines


def test_a_mask_by_a_number_that_its_function_is_given_may_be_wrong_where_it_is_called(tmp_path):
    at, after, said = answer(tmp_path, "window(tokens, 5)", "window(tokens, 9)", lambda: reference(wide=9))
    assert (at, after, said) == (5, 15, "`size`, 9, is given")


def test_masks_are_compared_whole_or_as_their_first_or_last_keys():
    known = Masks(recorded(reference))
    mask = reference()[0].numpy()
    assert known.have(mask)
    assert known.have_part(mask[:, :TOKENS])
    assert known.have_part(mask[:, 3:])
    assert not known.have(mask[:, :-1])
    assert not known.have_part(mask[:, 1:-1])
    assert not known.have_part(mask[1:])
    assert not known.have_part(np.roll(mask, 1, 0))


def test_what_counts_as_a_mask():
    mask = np.tril(np.ones((8, 8), bool))
    assert (flat(mask[None, None]) == mask).all()
    assert (flat(np.broadcast_to(mask[None, None], (2, 3, 8, 8))) == mask).all()
    assert flat(np.stack([mask, ~mask])).shape == (16, 8)
    assert flat(mask[:2, :2]) is None
    assert (read_as(np.where(mask, 0.0, -np.inf), False) == mask).all()
    assert read_as(np.where(mask, 1.0, -np.inf), False) is None
    assert read_as(mask * 1.0, False) is None
    assert (read_as(mask * 1.0, True) == mask).all()
