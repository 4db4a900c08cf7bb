"""Whatever the schedule - calls, batches, padding, rewinds, files - a cache gives what one call without it gives.

The one call itself is held against the reference in test_dsv4_mlx_model.py. Run: pytest tests/test_dsv4_mlx_cache.py
"""

import copy
import gc

import mlx.core as mx
import pytest
from cache_sessions import (
    CONFIG,
    IDS,
    NEAR,
    Session,
    built,
    copied,
    deep_copied,
    merged,
    through_a_file,
    through_memory,
)
from helpers import sentence, tiny
from mlx_lm.models import cache as mlx_lm_cache

from dsv4_mlx import LayerCache, UsageError, token_wise
from dsv4_mlx.pool import REWIND, Pool
from dsv4_mlx.positions import Call, Row
from dsv4_mlx.ring import Ring


@pytest.fixture(scope="module")
def model():
    return built()


@pytest.fixture(scope="module")
def expected(model):
    """Logits of all sequences in one call without a cache: what comes later changes nothing before."""
    return model(IDS)


@pytest.fixture
def session(model, expected):
    return lambda *sequences, **given: Session(model, expected, sequences or (0,), **given)


# --- schedules ---------------------------------------------------------------------------------------------

PHASES = [1, 2, 3, 5, 31, 127, 128, 129]


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), *PHASES[1:]])
def test_chunks_of_any_size(session, size):
    run = session(0)
    while run.seen[0] < 264:
        run.feed(min(size, 264 - run.seen[0]))


@pytest.mark.parametrize("first", [1, 2, 3, 5, 127])
def test_a_prompt_then_token_by_token(session, first):
    run = session(0, 1).feed(first)
    for _ in range(40):
        run.feed(1)


@pytest.mark.parametrize("batch", [2, 8])
def test_equal_batches(session, batch):
    run = session(*range(batch))
    for tokens in (5, 1, 1, 1, 26, 1, 97, 1, 1, 129, 1):
        run.feed(tokens)


LENGTHS = [140, 3, 17, 128, 1, 64, 5, 33]


@pytest.mark.parametrize("batch", [2, 3, 8])
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_ragged_batches_padded_on_either_side(session, batch, left):
    run = session(*range(batch)).feed(*LENGTHS[:batch], left=left)
    for _ in range(10):
        run.feed(1)
    run.feed(*LENGTHS[:batch][::-1], left=left)  # a second turn
    run.feed(2)
    run.feed(1)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_padding_alone_moves_nothing(session, left):
    run = session(0, 1).feed(9, 9, left=left, padded=5)
    run.feed(1).feed(0, 4, left=left, padded=20).feed(3, 0, left=left).feed(30).feed(1)


def test_padding_over_several_calls(session, model, expected):
    """mlx-lm announces padding once and then sends a long prompt in chunks."""
    run = session(0, 1, 2)
    lengths, width = [50, 7, 23], 50
    rows = [IDS[i, :n].tolist() + [0] * (width - n) for i, n in enumerate(lengths)]
    for layer in run.cache:
        layer.prepare(lengths=lengths, right_padding=[width - n for n in lengths])
    for start in range(0, width, 12):
        logits = model(mx.array(rows)[:, start : start + 12], cache=run.cache)
        for i, n in enumerate(lengths):
            run.check(logits[i, : max(n - start, 0)], expected[i, start : min(start + 12, n)])
    for layer in run.cache:
        layer.finalize()
    run.seen = lengths
    run.feed(1).feed(4).feed(1)


# --- copies, files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("restored", [through_memory, through_a_file, copied, deep_copied])
@pytest.mark.parametrize("tokens", [0, 1, 3, 4, 7, 8, 9, 17, 24, 130])  # inside blocks and at their ends
def test_restored_cache_continues(session, model, tmp_path, restored, tokens):
    run = session(0, 1)
    if tokens:
        run.feed(tokens)
    copies = restored(run.cache, tmp_path)
    for start, stop in ((tokens, tokens + 1), (tokens + 1, tokens + 7)):
        expected = model(IDS[:2, start:stop], cache=run.cache)
        assert mx.array_equal(model(IDS[:2, start:stop], cache=copies), expected)
    assert [copy.size() for copy in copies] == [tokens + 7] * 5
    assert [copy.state[:5] for copy in copies] == [cache.state[:5] for cache in run.cache]


def test_a_ragged_batch_goes_through_a_file(session, tmp_path):
    run = session(0, 1, 2).feed(130, 2, 40).feed(1).trim(1)
    run.cache = through_a_file(run.cache, tmp_path)
    run.feed(1).feed(9, 20, 13)


@pytest.mark.parametrize("branched", [copied, deep_copied, through_memory])
def test_branches_of_one_cache_do_not_disturb_each_other(session, model, tmp_path, branched):
    """Caches write in place; what was split off keeps its own rows."""
    run = session(0).feed(40)
    branch = session(0, cache=branched(run.cache, tmp_path), seen=[40])
    model(IDS[3:4, 100:150], cache=branched(run.cache, tmp_path))
    run.feed(1).feed(20)
    branch.feed(3).feed(1)


# --- batches -----------------------------------------------------------------------------------------------


def test_sequences_join_and_leave_a_batch(session):
    """As in mlx-lm's BatchGenerator: merge, extend, filter, extract."""
    runs = [session(i).feed(n) if n else session(i) for i, n in enumerate((130, 0, 9))]
    batch = session(0, 1, 2, cache=merged(*runs), seen=[130, 0, 9])
    batch.feed(1, 20, 3).feed(1)
    late = session(3, 4).feed(5, 31)
    for layer, other in zip(batch.cache, late.cache, strict=True):
        layer.extend(other)
    batch.sequences, batch.seen = batch.sequences + late.sequences, batch.seen + late.seen
    batch.feed(1).feed(2)
    alone = session(4, cache=[layer.extract(4) for layer in batch.cache], seen=[batch.seen[4]])
    for layer in batch.cache:
        layer.filter([3, 0])
    batch.sequences, batch.seen = [3, 0], [batch.seen[3], batch.seen[0]]
    alone.feed(1).feed(17)
    batch.feed(1).feed(4, 9).feed(1)
    runs[0].feed(1)  # what was merged went on living by itself
    with_itself = session(4, 4, cache=merged(alone, alone), seen=alone.seen * 2)
    with_itself.feed(1)


def test_empty_caches_merge(session):
    run = session(0, 1, 2, cache=merged(session(0), session(1), session(2)))
    assert run.cache[0].empty()
    run.feed(4, 1, 9).feed(1)


def test_extracted_and_filtered_caches_are_small(session):
    run = session(0, 1, 2, 3).feed(200, 2, 3, 4)
    alone = [layer.extract(1) for layer in run.cache]
    assert 4 * sum(layer.nbytes for layer in alone) == sum(layer.nbytes for layer in run.cache)


# --- masks -------------------------------------------------------------------------------------------------


def lowest(mask):
    return mx.where(mask, 0.0, -mx.inf)


@pytest.mark.parametrize(
    "form", [lambda m: m, lowest, lambda m: mx.where(m, 0, -1e9).astype(mx.bfloat16), mx.array.astype]
)
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("cached", [False, True])
def test_masks_mark_padding(model, expected, form, left, cached):
    lengths, width = [5, 40, 22], 40
    rows = [IDS[i, :n].tolist() for i, n in enumerate(lengths)]
    pads = [[0] * (width - n) for n in lengths]
    ids = mx.array([p + r if left else r + p for p, r in zip(pads, rows, strict=True)])
    places = mx.arange(width)
    real = mx.stack([places >= width - n if left else places < n for n in lengths])
    mask = real.astype(mx.int32) if form is mx.array.astype else form(real)
    causal = mlx_lm_causal(width) & real[:, None, None]
    cache = model.make_cache() if cached else None
    for given in (mask, causal if form is mx.array.astype else form(causal)):
        logits = model(ids, cache=copy.deepcopy(cache), mask=given)
        for i, n in enumerate(lengths):
            got = logits[i, width - n :] if left else logits[i, :n]
            assert mx.abs(got - expected[i, :n]).max().item() < NEAR


def mlx_lm_causal(tokens, offset=0):
    from mlx_lm.models.base import create_causal_mask

    return create_causal_mask(tokens, offset)


@pytest.mark.parametrize("form", [lambda m: m, lowest])
def test_a_causal_mask_changes_nothing(session, model, form):
    run = session(0, 1).feed(9)
    plain = model(IDS[:2, 9:14], cache=copy.deepcopy(run.cache))
    for mask in (mlx_lm_causal(5, 9), mlx_lm_causal(5)):
        assert mx.array_equal(model(IDS[:2, 9:14], cache=copy.deepcopy(run.cache), mask=form(mask)), plain)


def test_masked_tokens_are_not_in_the_cache(session, model):
    run = session(0, 1)
    model(IDS[:2, :12], cache=run.cache, mask=mx.array([[1] * 12, [1] * 7 + [0] * 5]))
    run.seen = [12, 7]
    run.feed(1).feed(9)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (mx.array([[1, 0, 1, 1]]), "hides a token between two real ones"),
        (mx.ones((2, 4)) > 0, r"shape \[2, 4\] does not fit 1 x 4 tokens"),
        (mx.array([[0, 0, 0.5, 0]]), "must hold 0 or at most -10000"),
        (mx.ones((4, 4)) > 0, "not causal"),
        (mx.concatenate([mx.zeros((4, 3)) > 1, mlx_lm_causal(4)], 1), "hides tokens that the cache holds"),
    ],
)
def test_masks_that_cannot_be_honoured_are_refused(session, model, mask, said):
    run = session(0).feed(3)
    with pytest.raises(UsageError, match=said):
        model(IDS[:1, 3:7], cache=run.cache, mask=mask)
    run.feed(4)


# --- misuse ------------------------------------------------------------------------------------------------


MISUSE = {
    "a cache of fewer layers": (lambda cache: (IDS[:1, :3], cache[:3]), "has 3 entries for 5 layers"),
    "mlx-lm's own cache": (
        lambda cache: (IDS[:1, :3], [mlx_lm_cache.KVCache()] * 5),
        "Entry 0 of the cache is a KVCache",
    ),
    "layers of one kind exchanged": (
        lambda cache: (IDS[:1, :3], [cache[i] for i in (0, 4, 2, 3, 1)]),
        r"Entry 1 of the cache was made for another place; take all from one make_cache\(\)",
    ),
    "layers in another order": (lambda cache: (IDS[:1, :3], cache[::-1]), "belongs to a layer of another model"),
    "another batch": (lambda cache: (IDS[:3, :3], cache), "holds 1 sequences, but 3 came"),
    "an empty prompt": (lambda cache: (IDS[:1, :0], cache), "The prompt is empty"),
    "a token too large": (lambda cache: (mx.array([[1, 48]]), cache), "Token id 48 is outside the vocabulary of 48"),
    "a negative token": (lambda cache: (mx.array([[-1, 3]]), cache), "Token id -1 is outside"),
    "no batch axis": (lambda cache: (IDS[0, :3], cache), r"have the shape \[3\]"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_ends_in_a_sentence_and_changes_nothing(session, model, name):
    make, said = MISUSE[name]
    run = session(0).feed(9)
    with pytest.raises(UsageError, match=said) as caught:
        model(make(run.cache)[0], cache=make(run.cache)[1])
    assert str(caught.value).endswith(".")
    run.feed(1).feed(8)


def test_a_cache_of_another_model_is_refused(model):
    for changed in ({"sliding_window": 7}, {"head_dim": 20}, tiny((0, 4, 4, 128, 4), sliding_window=6)):
        other = built(**changed)
        cache = other.make_cache()
        other(IDS[:1, :9], cache=cache)
        said = sentence(UsageError, lambda: model(IDS[:1, :3], cache=cache))  # noqa: B023
        assert "another model" in said
        with pytest.raises(UsageError, match="cannot be merged"):
            [a.merge([a, b]) for a, b in zip(filled(model, 9), cache, strict=True)]


def filled(model, tokens):
    cache = model.make_cache()
    model(IDS[:1, :tokens], cache=cache)
    return cache


def test_layers_at_different_tokens_are_refused(model):
    cache = filled(model, 9)
    cache[2].trim(1)
    assert "at different tokens" in sentence(UsageError, lambda: model(IDS[:1, :3], cache=cache))


def test_batches_of_other_sizes_are_refused(session):
    run = session(0, 1).feed(9)
    assert "number 2 was asked for" in sentence(UsageError, run.cache[0].filter, [0, 2])
    assert "padding for 3 came" in sentence(UsageError, lambda: run.cache[0].prepare(left_padding=[1, 2, 3]))
    assert "needs lengths" in sentence(UsageError, lambda: run.cache[0].prepare(right_padding=[1, 0]))
    run.feed(3)


# --- mlx-lm's questions ------------------------------------------------------------------------------------


def test_size_empty_offset(session):
    run = session(0, 1)
    assert [layer.empty() for layer in run.cache] == [True] * 5
    run.feed(9)
    assert {(layer.size(), layer.empty(), layer.offset) for layer in run.cache} == {(9, False, 9)}
    run.feed(3, 1)
    assert (run.cache[0].size(), run.cache[0].offset.tolist()) == (12, [12, 10])


def test_state_can_be_evaluated_as_mlx_lm_does(model):
    for tokens in (0, 5):
        caches = filled(model, tokens) if tokens else model.make_cache()
        mx.eval([cache.state for cache in caches])
        assert [cache.meta_state for cache in caches] == [""] * 5


def test_foreign_meta_state_is_refused():
    with pytest.raises(ValueError, match=r"^LayerCache keeps nothing in meta_state, but one was set\.$"):
        LayerCache(4, 0).meta_state = "3"


def test_nbytes_is_what_the_formula_says(session):
    """docs/serving.md: a ring of keys; rings of K and Z; rows in steps of 256; once the ids, too."""
    run = session(0, 1).feed(130)
    d, di, window = CONFIG["head_dim"], CONFIG["index_head_dim"], CONFIG["sliding_window"]
    ring = 2 * 4 * (window + REWIND) * d
    ids = 2 * 4 * 256
    small = {4: 24, 8: 24, 128: 256}
    sizes = {ratio: ring + 2 * 4 * d * (2 * small[ratio] + 256) for ratio in (8, 128)}
    sizes |= {0: ring, 4: ring + 2 * 4 * sum(2 * small[4] * 2 * dim + 256 * dim for dim in (d, di))}
    assert [layer.nbytes for layer in run.cache] == [
        sizes[ratio] + ids * (index == 0) for index, ratio in enumerate(CONFIG["compress_ratios"])
    ]


@pytest.mark.parametrize("sequences", [(0,), pytest.param((0, 1), marks=pytest.mark.slow)])
def test_a_long_decode_keeps_the_number_of_live_arrays(session, model, sequences, monkeypatch):
    """Nothing hangs on anything: evaluating the logits alone, nothing is kept for a token until a store grows."""
    monkeypatch.setattr(token_wise, "REPEATED", 10_000)  # what a compilation keeps would count
    run = session(*sequences).feed(*[257, 259][: len(sequences)])  # a row in every pool, the second step of the ids

    def memory_after(tokens):
        for _ in range(tokens):
            mx.eval(model(IDS[: len(sequences), 9:10], cache=run.cache))
        gc.collect()
        return mx.get_active_memory(), sum(type(x) is mx.array for x in gc.get_objects())

    memory_after(6)  # what a first call of one token leaves
    (first, arrays), (last, same) = memory_after(10), memory_after(150)
    assert arrays == same
    assert last - first < 150 * 4  # not one number a token; what other tests left to be freed may come and go


# --- its parts ---------------------------------------------------------------------------------------------


def marked(start, stop):
    """Vectors that carry their own positions."""
    return mx.arange(start, stop).reshape(1, -1, 1).astype(mx.float32)


@pytest.mark.parametrize("calls", [(1,) * 12, (12,), (3, 1, 5, 3), (4, 4, 4), (11, 1), (5, 7)])
def test_ring_keeps_the_last_positions(calls):
    ring, start = Ring(4), 0
    for tokens in calls:
        x = marked(start, start + tokens)
        slots = ring.write(x, Call.of(start, x))
        start += tokens
        for position in range(max(start - 4, 0), start):
            assert slots[0, position % 4].item() == position
        kept = min(start, 4)
        assert ring.read(start - kept, kept).flatten().tolist() == list(range(start - kept, start))


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("calls", [(1,) * 11, (11,), (3, 1, 5, 2), (4, 4, 3), (2, 9), (7, 4)])
def test_pool_hands_out_whole_blocks_in_order(calls, overlap):
    pool, start, done = Pool(4, overlap), 0, []
    for tokens in calls:
        x = marked(start, start + tokens)
        blocks = pool.push(x, -x, Call.of(start, x))
        start += tokens
        if blocks is not None:
            assert mx.array_equal(blocks.gate, -blocks.kv)
            assert blocks.first == len(done) // 4
            if overlap and done:
                assert blocks.before[0].flatten().tolist() == done[-4:]
            else:
                assert blocks.before is None
            done += blocks.kv.flatten().tolist()
        assert done == list(range(start // 4 * 4))


def test_pool_grows_in_steps_and_keeps_its_rows():
    pool = Pool(1, overlap=False)
    for start in range(0, 600, 50):
        rows = marked(start, start + 50)
        call = Call.of(start, rows)
        pool.write(rows, call)
    assert pool.rows(call, rows, 1).flatten().tolist() == list(range(600))
    assert pool.store.shape[1] == 768


def test_rows_of_a_call_know_their_positions():
    call = Call((Row(5, 9, left=2), Row(3, 3, length=1), Row(0)), tokens=3)
    assert (call.starts, call.ends, call.last, call.uniform) == ([5, 3, 0], [6, 4, 3], 6, False)
    assert call.positions.tolist() == [[5, 6, 7], [3, 4, 5], [0, 1, 2]]
    assert call.after == (Row(6, 9), Row(4, 4, length=0), Row(3, 3))
    ids = mx.array([[0, 0, 1], [2, 0, 0], [3, 4, 5]])
    assert call.inward(ids).tolist() == [[1, 0, 0], [2, 0, 0], [3, 4, 5]]
    assert call.outward(call.inward(ids)).tolist() == ids.tolist()
