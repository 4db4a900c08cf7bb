"""mlx-lm itself around a port: what is right stays green, what is wrong between calls turns its row red.

Run: pytest tests/test_served.py; with -m slow, more defects.
"""

import pytest

from dsv4_mlx.cache import LayerCache
from parity.gate.defects import catalogue
from parity.gate.defects.patching import applied
from parity.jobs.lives import Life, LifeSearch, port
from parity.lives import served
from parity.lives.exploring import relive, shorter
from parity.lives.limits import Limits
from parity.lives.port import Lives, Port
from parity.pairs import registry
from parity.results import Verdict

PAIR = registry()["cache"]
CONFIG = PAIR.configs[0]


@pytest.fixture(scope="module")
def right():
    return port(CONFIG, 0, "float32")


def judged(life, model=None):
    return relive(Lives(model or port(CONFIG, 0, "float32")), life)


@pytest.mark.parametrize("schedule", served.NEEDS)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
def test_every_schedule_is_green(right, schedule, seed):
    for life in served.lives(schedule, seed):
        lives = judged(life, right)
        assert lives.broken is None
        ((name, given),) = life
        tokens = given["tokens"]
        after = {  # logits after the prompt and after each token, of each request
            "serve_steps": [tokens],
            "serve_batches": [*tokens, 5] if isinstance(tokens, list) else [],
            "serve_turns": [tokens] * 4,
        }[name]
        wanted = sum(n + 1 for n in after)
        assert 0 < lives.tokens <= wanted  # a tie of choices is left out
        assert 0 < lives.ratio <= 1


def test_the_known_tokens_are_those_that_mlx_lm_goes_on_with(right):
    """What processes the logits leads the sampling; else the life would be judged on tokens that nobody fed."""
    seen = []
    call = right.call
    right.call = lambda ids, cache: (seen.append(ids.tolist()), call(ids, cache))[1]
    try:
        judged([("serve_steps", {"prompt": 5, "tokens": 4, "step": 3, "seed": 7})], right)
    finally:
        right.call = call
    assert [len(ids[0]) for ids in seen] == [3, 1, 1, 1, 1, 1, 1]
    random = served.np.random.default_rng(7)
    prompt, coming = (random.integers(0, CONFIG["vocab_size"], n).tolist() for n in (5, 4))
    assert [one for (ids,) in seen for one in ids] == prompt + coming


def spoiled(schedule, *defects):
    with applied([catalogue()[name] for name in defects], "dsv4_mlx"):
        model = port(CONFIG, 0, "float32")
        found = [judged(life, model).broken for life in served.lives(schedule, 0)]
    return next(filter(None, found), None)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        ("steps", "D033"),
        pytest.param("steps", "D035", marks=SLOW),
        pytest.param("steps", "D061", marks=SLOW),
        ("batches", "D055"),
        pytest.param("batches", "D043", marks=SLOW),
        ("turns", "D036"),
    ],
)
def test_a_defect_between_calls_is_seen(schedule, name):
    broken = spoiled(schedule, name)
    assert broken is not None
    assert not broken.raised
    assert broken.suspect[1] > 1


def test_a_store_that_is_given_shared_arrays_is_seen(monkeypatch):
    monkeypatch.setattr("dsv4_mlx.cache.LayerCache.__deepcopy__", lambda self, memo: self)
    assert any(judged(life).broken for life in served.lives("turns", 0))


def test_a_cache_that_grants_any_rewind_is_seen(monkeypatch):
    """mlx-lm's store trims the copy of a longer entry and does not look at what `trim` says."""
    monkeypatch.setattr("dsv4_mlx.cache.LayerCache.is_trimmable", lambda self: True)
    monkeypatch.setattr("dsv4_mlx.cache.LayerCache.trim", lambda self, n: 0)
    assert any(judged(life).broken for life in served.lives("turns", 0))


def test_one_offset_for_all_requests_of_a_batch_is_seen(monkeypatch):
    monkeypatch.setattr("dsv4_mlx.positions.Call.starts", property(lambda self: [self.start] * len(self.rows)))
    broken = judged(served.lives("batches", 0)[0]).broken
    assert broken is not None
    assert "BatchGenerator" in broken.sentence


def test_what_raises_is_a_crash_and_what_refuses_is_none(monkeypatch):
    def wrong(self, *given):
        raise KeyError("row")

    def refusing(self, *given):
        raise ValueError("LayerCache does not support batches that grow.")

    life = served.lives("batches", 0)[0]
    with monkeypatch.context() as patch:
        patch.setattr("dsv4_mlx.cache.LayerCache.extend", wrong)
        broken = judged(life).broken
        assert (broken.raised, "serve_batches raised KeyError: 'row'" in broken.sentence) == (True, True)
    monkeypatch.setattr("dsv4_mlx.cache.LayerCache.extend", refusing)
    lives = judged(life)
    assert lives.broken is None
    said = "mlx-lm's BatchGenerator is refused: LayerCache does not support batches that grow."
    assert lives.lacking == {"serve_batches": said}


def test_what_the_caches_do_not_offer_is_told_by_name(right):
    assert served.lacking("batches", right, {}) == ""
    said = "The port offers no batches: LayerCache has no merge."
    assert served.lacking("batches", right, {"merge": said}) == f"mlx-lm needs batches for it. {said}"
    assert served.lacking("steps", right, {"merge": said}) == ""

    class Bare:
        """No cache of mlx-lm's."""

    right.make_cache, make = (lambda: [Bare()]), right.make_cache
    try:
        assert served.lacking("steps", right, {}) == "mlx-lm needs `state` for it, which Bare does not have."
    finally:
        right.make_cache = make


@pytest.mark.parametrize(
    "life",
    [
        ("serve_steps", {"prompt": 0, "tokens": 0, "step": 1}),
        ("serve_batches", {"prompts": [1, 0], "arrivals": [0, 0], "tokens": [0, 0], "again": 0, "step": 1}),
        ("serve_batches", {"prompts": [0], "arrivals": [0], "tokens": [0], "again": 1, "step": 1}),
        ("serve_turns", {"prompt": 0, "shared": 0, "more": 0, "tokens": 0, "step": 1}),
        ("serve_turns", {"prompt": 1, "shared": 1, "more": 0, "tokens": 0, "step": 1}),
    ],
)
def test_whatever_a_life_is_cut_down_to_can_be_lived(right, life):
    """Else a deviation would shrink to a crash that is the harness's."""
    name, given = life
    for seed in range(3):
        assert judged([(name, given | {"seed": seed})], right).broken is None


def test_a_deviation_is_not_cut_down_to_another_fault(monkeypatch):
    """With fewer tokens this port raises, which is no shorter form of what was found."""

    def call(self, batch, tokens, padding=None):
        if tokens > 1 and self.offset == 0 and tokens < 4:
            raise KeyError("few")
        return kept(self, batch, tokens, padding)

    kept = LayerCache.call
    monkeypatch.setattr(LayerCache, "call", call)
    monkeypatch.setattr("dsv4_mlx.positions.Call.starts", property(lambda self: [self.start] * len(self.rows)))
    model = port(CONFIG, 0, "float32")
    life = [("first", {"tokens": 9, "seed": 0}), ("new", {"tokens": 5, "seed": 1}), ("merge", {"which": [0, 1]})]
    broken = shorter(model, frozenset(), relive(Lives(model), life).broken)
    assert not broken.raised


def test_a_broken_request_is_a_life_that_can_be_told_again(monkeypatch):
    monkeypatch.setattr("dsv4_mlx.positions.Call.starts", property(lambda self: [self.start] * len(self.rows)))
    life = Life(CONFIG, 0, [list(one) for one in served.lives("batches", 0)[0]])
    search = LifeSearch(PAIR, "float32", None, 0)
    assert search.replay(Life.from_json(life.to_json())).verdict is Verdict.DIVERGES


def last_alone(whole):
    """A port that gives the logits of a call's last token alone, held to itself."""
    last = lambda logits: logits[:, -1:]  # noqa: E731
    alone = lambda ids: last(whole.call(ids, whole.make_cache()))  # noqa: E731
    call = lambda ids, cache: last(whole.call(ids, cache))  # noqa: E731
    return Port(whole.model, whole.vocabulary, Limits(1e-3), whole.make_cache, call=call, alone=alone)


def test_a_port_that_gives_a_calls_last_logits_alone_is_held_to_each_beginning(right):
    """Not to the last token's logits for every token of a request, as jang's once was."""
    life = [("serve_steps", {"prompt": 5, "tokens": 4, "step": 3, "seed": 7})]
    lives = judged(life, last_alone(right))
    assert lives.broken is None
    assert lives.tokens == 5
    assert lives.ratio <= 1
    with applied([catalogue()["D033"]], "dsv4_mlx"):
        model = last_alone(port(CONFIG, 0, "float32"))
        assert any(judged(life, model).broken for life in served.lives("steps", 0))
