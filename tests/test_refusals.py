"""A port that says in a life that it does not offer an operation has a gap; whatever else raises is a crash.

Run: pytest tests/test_refusals.py
"""

import mlx.core as mx
import pytest
from mlx_lm.models import cache as mlx_lm_cache
from mlx_lm.models import llama

from parity.lives.exploring import explore, relive
from parity.lives.limits import Limits
from parity.lives.port import Lives, Port
from parity.lives.refusals import refuses

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": 4}
CALLS = [("first", {"tokens": 9, "seed": 0}), ("prefill", {"which": 0, "tokens": 3, "seed": 1})]
TRIM = ("trim", {"which": 0, "tokens": 2})
SAID = "A rewound cache is not supported"


def port_of(cache, batch=None):
    """A sound model whose caches are of this class; those that are merged of another."""

    class Kept(cache):
        def merge(self, caches):
            return batch.merge(caches) if batch else mlx_lm_cache.BatchKVCache.merge(caches)

        def __deepcopy__(self, memo):
            made = type(self)()
            made.__dict__.update(self.__dict__)
            made.keys = made.keys + 0 if made.keys is not None else None
            made.values = made.values + 0 if made.values is not None else None
            return made

    class Model(llama.Model):
        def make_cache(self):
            return [Kept() for _ in self.layers]

    mx.random.seed(0)
    return Port(Model(llama.ModelArgs("llama", rms_norm_eps=1e-5, vocab_size=48, **SMALL)), 48, Limits(1e-4))


class LeftRefused(mlx_lm_cache.BatchKVCache):
    @classmethod
    def merge(cls, caches):
        return super().merge(caches) if any(cache.size() for cache in caches) else cls([0] * len(caches))

    def prepare(self, *, left_padding=None, **given):
        if left_padding is not None:
            raise ValueError("BatchPoolingCache does not support left padding")
        super().prepare(**given)


def test_padding_that_is_refused_is_a_gap_of_that_side_alone():
    padded = {"which": 0, "counts": [3, 2, 0, 0, 0, 0], "padding": 0, "left": True, "seed": 3}
    start = [("first", {"tokens": 0, "seed": 0}), ("new", {"tokens": 0, "seed": 1}), ("merge", {"which": [0, 1]})]
    lives = Lives(port_of(mlx_lm_cache.KVCache, LeftRefused))
    relive(lives, [*start, ("ragged", padded), start[2], ("ragged", padded), CALLS[1]])
    said = "The port offers no batches padded on the left: ValueError: BatchPoolingCache does not support left padding."
    assert (lives.broken, lives.lacking) == (None, {"ragged_left": said})
    assert lives.tokens > 5


def test_random_lives_go_on_after_a_refusal():
    named = frozenset({"save_and_restore"})  # mlx-lm restores classes of its own modules alone
    lives = explore(Lives(port_of(rewound(refusing)), named), 10, 12, seed=0)
    assert (lives.broken, [*lives.lacking]) == (None, ["trim"])
    assert lives.lives >= 10


def rewound(raising, calls=0):
    """Caches that raise at a call after a rewind, the first or a later one."""

    class Rewound(mlx_lm_cache.KVCache):
        left = None

        def trim(self, n):
            self.left = calls
            return super().trim(n)

        def update_and_fetch(self, keys, values):
            if self.left == 0:
                raising()
            if self.left is not None:
                self.left -= 1
            return super().update_and_fetch(keys, values)

    return Rewound


def lived(cache, operations=(*CALLS, TRIM, CALLS[1])):
    return relive(Lives(port_of(cache)), [*operations])


def refusing():
    raise NotImplementedError(SAID)


def test_a_refusal_at_the_first_call_after_an_operation_is_a_gap():
    lives = lived(rewound(refusing))
    assert (lives.broken, lives.lacking) == (None, {"trim": f"The port offers no trimming: {SAID}."})


def test_a_refusal_without_copies_is_seen_at_the_next_call():
    lives = Lives(port_of(rewound(refusing)), without=frozenset({"branch"}))
    assert (relive(lives, [*CALLS, TRIM, CALLS[1]]).broken, [*lives.lacking]) == (None, ["trim"])


def with_another():
    try:
        raise KeyError("keys")
    except KeyError:
        raise ValueError(SAID)  # noqa: B904 # what a port may do


def of_another_kind():
    raise KeyError(SAID)


def of_another_text():
    raise ValueError("Shapes do not match")


def of_a_library():
    mx.ones((2, 3)) @ mx.ones((2, 3))


def recursing():
    raise RecursionError(SAID)


def failing():
    raise AssertionError(SAID)


@pytest.mark.parametrize("raising", [with_another, of_another_kind, of_another_text, of_a_library, recursing])
def test_what_only_resembles_a_refusal_is_a_crash(raising):
    lives = lived(rewound(raising))
    assert lives.broken.raised
    assert lives.lacking == {}


def test_a_failed_assertion_of_the_port_is_no_gap():
    lives = lived(rewound(failing))
    assert lives.broken is not None
    assert lives.lacking == {}


def test_a_refusal_that_comes_late_is_a_crash():
    """What takes a call after the operation cannot say at a later one that it does not offer it."""
    lives = lived(rewound(refusing, calls=1))
    assert (lives.broken.raised, lives.lacking) == (True, {})


def test_a_call_cannot_be_refused():
    class Short(mlx_lm_cache.KVCache):
        def update_and_fetch(self, keys, values):
            if self.offset > 8:
                raise NotImplementedError("More than 8 tokens are not supported")
            return super().update_and_fetch(keys, values)

    lives = lived(Short, CALLS)
    assert (lives.broken.raised, lives.lacking) == (True, {})


def test_a_refusal_of_what_fails_without_it_too_is_a_crash():
    """The calls alone raise beyond the tenth token: leaving the rewind out mends nothing."""

    class Both(rewound(refusing)):
        def update_and_fetch(self, keys, values):
            if self.offset + keys.shape[2] > 10 and self.left is None:
                raise KeyError("10")
            return super().update_and_fetch(keys, values)

    lives = lived(Both, (CALLS[0], TRIM, CALLS[1], CALLS[1]))
    assert (lives.broken.raised, lives.lacking) == (True, {})
    assert "raised NotImplementedError" in lives.broken.sentence


@pytest.mark.parametrize(
    ("said", "refusal"),
    [
        ("BatchPoolingCache does not support left padding", True),
        ("Ragged batches aren't supported", True),
        ("unsupported: a merge", True),
        ("trim is not implemented", True),
        ("only supports batch size 1", True),
        ("an unsupportedly short sequence", False),
        ("The supported shapes are (1, 2)", False),
        ("cannot broadcast", False),
    ],
)
def test_the_words_of_a_refusal(said, refusal):
    def one(kind):
        try:
            raise kind(said)
        except Exception as error:
            return refuses(error)

    class Own(ValueError):
        pass

    assert [one(kind) for kind in (ValueError, RuntimeError, NotImplementedError, Own)] == [refusal] * 4
    assert not any(one(kind) for kind in (TypeError, UnicodeError, RecursionError, MemoryError))
