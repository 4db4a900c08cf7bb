"""The state machine finds nothing in a sound cache; what it finds in others is in test_cache_defects.py.

Run: pytest tests/test_state_machine.py; with -m slow, 500 sequences of 30 operations
"""

import mlx.core as mx
import pytest
from helpers import tiny
from mlx_lm.models import cache as mlx_lm_cache
from mlx_lm.models import llama

from parity.gate.lives import OFFERED
from parity.jobs.lives import port as held_to_reference
from parity.lives.exploring import check, explore, sort_of
from parity.lives.limits import Limits
from parity.lives.offers import OFFERS, gaps
from parity.lives.port import Lives, Port

CONFIG = tiny((0, 4, 8, 128), sliding_window=6)
NO_REFERENCE = Limits(1e-4)


@pytest.fixture(scope="module")
def port():
    return held_to_reference(CONFIG, 0, "float32")


def test_nothing_is_found(port):
    check(port, sequences=6)


@pytest.mark.slow
@pytest.mark.parametrize("ratios", [(0, 4, 8, 128), (0, 0), (4, 4), (3, 128, 0), (2, 5)])
@pytest.mark.parametrize("window", [6, 16])
def test_nothing_is_found_in_many_lives(ratios, window):
    port = held_to_reference(tiny(ratios, sliding_window=window), 1, "float32")
    check(port, sequences=500 if (ratios, window) == ((0, 4, 8, 128), 6) else 60)


def test_another_model_under_the_same_contract():
    """mlx-lm's own caches, under a limit that nobody computed: there is no reference of it."""
    args = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4}
    mx.random.seed(0)
    check(
        Port(llama.Model(llama.ModelArgs("llama", rms_norm_eps=1e-5, vocab_size=48, **args)), 48, NO_REFERENCE),
        sequences=6,
    )


def test_a_life_that_needs_nothing_but_calls_is_told_so():
    assert sort_of([("first", {}), ("decode", {})]).startswith("it takes nothing but calls (compare D014, D033")
    assert sort_of([("first", {}), ("trim", {}), ("weigh", {})]) == (
        "it takes rewinding (compare D047, D096), weighing by nbytes (compare D093)"
    )


def test_what_may_be_required_is_what_is_tried():
    assert tuple(OFFERS) == OFFERED


class Forgetful(llama.Model):
    """Its caches can do nothing but calls."""

    def make_cache(self):
        return [Bare() for _ in self.layers]


class Bare(mlx_lm_cache.KVCache):
    def is_trimmable(self):
        return False

    def __deepcopy__(self, memo):
        raise TypeError("cannot be copied")

    state = property(lambda self: None)
    merge = None


def test_what_a_port_does_not_offer_is_a_sentence_each():
    args = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": 4}
    model = Forgetful(llama.ModelArgs("llama", rms_norm_eps=1e-5, vocab_size=48, **args))
    found = gaps(Port(model, 48, NO_REFERENCE))
    assert set(found) == set(OFFERS) - {"weigh"}
    assert found["branch"] == "The port offers no copies: TypeError: cannot be copied."
    assert found["trim"] == "The port offers no trimming: its caches are not trimmable after five tokens."
    assert found["filter"] == "The port offers no filtering a batch, as it merges no caches."


class Holding(mlx_lm_cache.KVCache):
    """From some tokens on it holds what cannot be copied."""

    def __deepcopy__(self, memo):
        if self.offset > 20:
            raise TypeError("cannot pickle 'function' object")
        new = Holding()
        new.keys, new.values, new.offset = self.keys, self.values, self.offset
        return new


class LaterUncopied(llama.Model):
    def make_cache(self):
        return [Holding() for _ in self.layers]


def test_copies_that_fail_in_a_life_are_not_offered():
    """Not a crash of the port: mlx-lm's contract asks for copies, and the gap names them."""
    args = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": 4}
    port = Port(LaterUncopied(llama.ModelArgs("llama", rms_norm_eps=1e-5, vocab_size=48, **args)), 48, NO_REFERENCE)
    found = gaps(port)
    assert "branch" not in found
    lives = explore(Lives(port, frozenset(found)), 4, 15, seed=0)
    assert (lives.broken, [*lives.lacking]) == (None, ["branch"])
    assert lives.tokens
