"""The limit of lives: computed from the reference's null, the same for the pair `cache` and for other people's ports.

Run: pytest tests/test_lived.py
"""

import math

import mlx.core as mx
import pytest
import torch

from parity.candidates import told
from parity.candidates.adapters.problems import Raised
from parity.cases.strategies import checkpoint_tensors
from parity.gate import lives as gate_lives
from parity.gate.defects import catalogue
from parity.gate.defects.patching import applied
from parity.gate.filling import reference
from parity.gate.probes import registry as probes
from parity.jobs.lives import examined, port
from parity.judging.lived import SAMPLE, Examined, Lived
from parity.judging.runs import Runs
from parity.judging.sides import MLXSide
from parity.judging.tolerance import measure
from parity.lives.exploring import explore
from parity.lives.limits import Limits
from parity.lives.port import Lives, Port
from parity.pairs import registry

CONFIG = registry()["cache"].configs[0]
IDS = [index % CONFIG["vocab_size"] for index in range(9)]


@pytest.fixture(scope="module")
def lived():
    return Lived(CONFIG, checkpoint_tensors(CONFIG, 0, "float32"), "float32")


def test_the_limit_is_that_of_the_method(lived):
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, CONFIG["vocab_size"], SAMPLE, generator=random)
    exact, baseline, *nulls = Runs(CONFIG, lived.tensors, ids, "float32").logits(0)
    assert lived.limit == measure(exact, baseline, nulls, baseline, "float32").limit_max
    assert 0 < lived.limit < 1e-4 * exact.std()  # the typed nearness that it replaced


def test_a_port_held_to_itself_may_stray_as_far_as_two_runs_do(lived):
    itself = Lived(CONFIG, lived.tensors, "float32", itself=True)
    assert lived.limit < itself.limit <= 2.01 * lived.limit


@pytest.mark.parametrize(("share", "red"), [(0.99, False), (1.01, True), (math.nan, True), (math.inf, True)])
def test_an_error_above_the_limit_is_red_and_one_below_is_not(lived, share, red):
    lives = Lives(port(CONFIG, 0, "float32", lived))
    found = lived.examine(IDS)
    assert found.clear.all()
    right = lives.expected(IDS, 3)
    wrong = mx.concatenate([right[:1], right[1:2] + share * found.limit, right[2:]])
    assert bool(lives.judge(IDS, wrong)) == red
    assert (lives.ratio > 1) == red
    if red:
        assert lives.suspect[0] == IDS[:8]


def test_an_unclear_token_is_no_deviation_and_is_not_counted(lived, monkeypatch):
    lives = Lives(port(CONFIG, 0, "float32", lived))
    sound = lived.examine(IDS)
    clear = torch.tensor([True] * 7 + [False] * 2)
    monkeypatch.setattr(Lived, "examine", lambda self, ids: Examined(sound.exact, sound.limit, clear))
    right = lives.expected(IDS, 3)
    flipped = mx.concatenate([right[:1], right[1:] + 1.0])
    assert (lives.judge(IDS, flipped), lives.tokens) == ("", 1)
    assert lives.judge(IDS, right + 1.0).startswith("token 6 of 9")


def test_a_choice_without_a_gap_is_unclear(lived):
    """Two experts with the same weights and bias: which one is taken hangs by a rounding."""
    tensors = dict(lived.tensors)
    for name in [name for name in tensors if name.endswith("ffn.gate.weight")]:
        tensors[name] = tensors[name][:1].expand_as(tensors[name]).contiguous()
        bias = name.replace("weight", "bias")
        if bias in tensors:
            tensors[bias] = torch.zeros_like(tensors[bias])
    assert not Lived(CONFIG, tensors, "float32").examine(IDS).clear.any()
    got = lived.examine(IDS).exact.float() + 1.0
    assert all(ratio > 1 for ratio in examined(lived, IDS, mx.array(got.numpy())))
    assert examined(Lived(CONFIG, tensors, "float32"), IDS, mx.array(got.numpy())) == [None] * len(IDS)


def test_limits_that_were_handed_in_leave_unclear_tokens_out():
    expected = mx.ones((4, 8))
    got = expected + mx.array([[0.0], [0.0099], [0.02], [0.02]])
    assert Limits(0.01).ratios([1, 2, 3, 4, 5], got, expected)[1:3] == pytest.approx([0.99, 2.0], rel=1e-3)
    assert Limits(0.01, unclear=((1, 2, 3, 4),)).ratios([1, 2, 3, 4, 5], got, expected)[2:] == [None, None]
    assert Limits(0.01, unclear=((1, 2, 3, 3),)).ratios([1, 2, 3, 4, 5], got, expected)[3] > 1
    assert Limits(0.01, scale=0.25).ratios([1, 2, 3, 4, 5], got, expected)[3] == pytest.approx(0.5, rel=1e-3)
    with pytest.raises(ValueError, match="above 0"):
        Limits(0.0).ratios([1], expected[:1], expected[:1])


class Answers:
    """A candidate whose lives differ at these tokens by so many limits, until they are left out or allowed."""

    def __init__(self, *suspects):
        self.suspects, self.asked = suspects, []

    def lives(self, request, limits):
        self.asked.append(limits)
        for ids, error in self.suspects:
            left_out = any(ids[: len(one)] == one for one in limits["unclear"])
            if not left_out and not error <= limits["largest"]:
                return told.Lives(1, 9, math.inf, {}, ("Off", "calls", False), (ids, error / limits["largest"]))
        return told.Lives(1, 9, 0.5, {}, None)


def asked(lived, *suspects):
    engine = Answers(*suspects)
    return gate_lives._lives(engine, lived, {"do": "lives"}), engine.asked


def test_the_harness_confirms_what_a_candidate_finds(lived, monkeypatch):
    limit = lived.limit
    unclear = lambda self, ids: Examined(None, 3 * limit, torch.tensor([True, True, ids[0] != 7]))  # noqa: E731
    monkeypatch.setattr(Lived, "examine", unclear)
    answer, questions = asked(lived, ([1, 2, 3], 4 * limit))
    assert (answer.broken[0], len(questions)) == ("Off", 1)
    answer, questions = asked(lived, ([1, 2, 3], 2 * limit))
    assert (answer.broken, questions[1]["largest"]) == (None, 3 * limit)
    answer, questions = asked(lived, ([7, 2, 3], 9 * limit))
    assert (answer.broken, questions[1]["unclear"]) == (None, [[7, 2, 3]])
    answer, questions = asked(lived, ([7, 2, 3], 9 * limit), ([1, 2, 3], math.nan))
    assert (answer.broken[0], len(questions)) == ("Off", 2)


@pytest.mark.parametrize("ids", [[], [CONFIG["vocab_size"]], [-1, 2], [1] * 2000])
def test_tokens_that_no_life_has_excuse_nothing(lived, ids, monkeypatch):
    monkeypatch.setattr(Lived, "examine", lambda self, ids: pytest.fail("was examined"))
    assert asked(lived, (ids, 9.0))[0].broken[0] == "Off"


def test_lives_that_never_end_being_unclear_are_no_pass(lived, monkeypatch):
    monkeypatch.setattr(Lived, "examine", lambda self, ids: Examined(None, lived.limit, torch.tensor([False])))
    suspects = [([number], 9.0) for number in range(gate_lives.MOST_ASKED + 1)]
    assert asked(lived, *suspects)[0] is None


def test_a_port_needs_limits():
    with pytest.raises(TypeError, match="limits"):
        Port(None, 48)


def itself(seed=0):
    """dsv4_mlx as the gate drives other people's ports: held to one call of its own, under limits handed in."""
    sound = Lived(CONFIG, checkpoint_tensors(CONFIG, seed, "float32"), "float32", itself=True)
    model = MLXSide(CONFIG, {}, sound.tensors, "float32").model
    return Lives(Port(model, CONFIG["vocab_size"], Limits(sound.limit, sound.scale))), sound


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_sound_port_held_to_itself_is_green(seed):
    lives, _ = itself(seed)
    explore(lives, 3 if seed == 0 else 100, 20, seed, shrink=False)
    assert lives.broken is None
    assert 0 < lives.ratio < 1


@pytest.mark.parametrize("name", ["D033", pytest.param("D050-overlap", marks=pytest.mark.slow), "D061"])
def test_a_defect_between_calls_is_confirmed_where_a_port_is_held_to_itself(name):
    with applied([catalogue()[name]], "dsv4_mlx"):
        lives, sound = itself()
        broken = explore(lives, 30, 20, 0, shrink=False).broken
    assert broken is not None
    if not broken.raised:
        ids, ratio = broken.suspect
        found = sound.examine(ids)
        assert found.clear[-1]
        assert ratio * sound.limit > found.limit


def test_a_port_that_does_not_load_fails_in_every_row(tmp_path):
    """Each row loads by itself: what one of them did to the process is not the next one's fault."""

    class Refuses:
        def load(self, folder):
            raise Raised(f"The candidate raised KeyError while loading the checkpoint ({folder.name}).")

    found = reference(probes()["model.flash"], 0)
    told_ = []
    cells, gaps = gate_lives.judge_lives(Refuses(), found, tmp_path / "ck", "quick", 0, told_.append)
    assert [cell.mechanism for cell in cells] == [gate_lives.CACHES, *gate_lives.SERVED]
    assert {(cell.verdict.value, cell.sentence) for cell in cells} == {
        ("crashed", "The candidate raised KeyError while loading the checkpoint (ck).")
    }
    assert (gaps, len(told_), (tmp_path / "ck").exists()) == ([], 4, False)
