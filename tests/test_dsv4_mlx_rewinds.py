"""Rewinds of any length: what follows is what one call without a cache gives, however it is stored in between.

Run: pytest tests/test_dsv4_mlx_rewinds.py
"""

import copy
import re
from pathlib import Path

import mlx.core as mx
import pytest
from cache_sessions import CONFIG, IDS, Session, built, copied, deep_copied, merged, through_a_file, through_memory
from helpers import sentence
from mlx_lm.models.cache import LRUPromptCache

import dsv4_mlx
from dsv4_mlx import LayerCache, UsageError
from dsv4_mlx import model as model_module
from dsv4_mlx.cache import ExtractedLayerCache
from dsv4_mlx.pool import REWIND
from dsv4_mlx.positions import Row


@pytest.fixture(scope="module")
def model():
    return built()


@pytest.fixture(scope="module")
def expected(model):
    return model(IDS)


@pytest.fixture
def session(model, expected):
    return lambda *sequences, **given: Session(model, expected, sequences or (0,), **given)


@pytest.fixture
def called(model, monkeypatch):
    """The shapes of the ids that the model was called with."""
    shapes, streams = [], type(model).streams

    def noted(self, ids, *rest):
        shapes.append((*ids.shape,))
        return streams(self, ids, *rest)

    monkeypatch.setattr(type(model), "streams", noted)
    return shapes


# --- drafts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 4, 9, 16])
@pytest.mark.parametrize("before", [17, 40, 130, 150])
def test_a_rewound_draft_leaves_no_trace(session, called, before, tokens):
    run = session(0, 3).feed(before).stray(tokens).trim(tokens).feed(1).feed(1).feed(30).feed(1)
    assert len(called) == 6  # nothing is computed anew
    assert run.cache[0].held == 22


def test_rewinds_of_a_ragged_batch(session):
    run = session(0, 1, 2).feed(130, 2, 40).feed(1).feed(9, 20, 13).trim(9)
    run.feed(4).trim(4).feed(1).trim(1).feed(25)


def test_a_short_sequence_can_be_rewound_to_any_length(session, called):
    session(0).feed(21).trim(20).feed(1).trim(2).feed(24)
    assert len(called) == 3


def test_trim_says_how_far_it_went(session):
    run = session(0, 1).feed(3, 9)
    assert [layer.trim(5) for layer in run.cache] == [5] * 5
    assert [row.offset for row in run.cache[0].rows] == [0, 4]
    assert run.cache[0].trim(0) == 0
    assert "give 0 or more" in sentence(UsageError, run.cache[0].trim, -1)


# --- any number --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [(1, 1, 30), (9, 1), (130,)])
@pytest.mark.parametrize(("before", "tokens"), [(8, 17), (0, 25), (0, 150), (3, 40), (40, 17), (100, 31), (131, 60)])
@pytest.mark.parametrize("sequences", [(0,), (0, 3)])
def test_a_rewind_of_any_length_leaves_no_trace(session, sequences, before, tokens, after):
    run = session(*sequences)
    if before:
        run.feed(before)
    run.stray(tokens).trim(tokens)
    for count in after:
        run.feed(count)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_some_of_a_ragged_batch_are_computed_anew(session, called, left):
    run = session(0, 1, 2, 3).feed(130, 2, 20, 41, left=left).stray(20).trim(20)
    called.clear()
    run.feed(1)
    assert called == [(4, 1), (1, 130), (1, 20), (1, 41)]  # sequence 1 never outgrew the rings
    run.feed(9, 20, 3, 1, left=left).trim(17)
    run.feed(4, 30, 1, 2, left=left)  # padding announced ahead of what is computed anew
    run.feed(1).trim(60).feed(2, 0, 5, 9, padded=3).feed(1)


def test_rewinds_add_up(session, called):
    run = session(0).feed(100).trim(10).trim(6)
    assert REWIND == 16
    run.trim(1)
    called.clear()
    run.feed(3)
    assert called == [(1, 3), (1, 83)]
    run.trim(3).feed(20).trim(50).trim(30).feed(1).trim(1).feed(1)
    assert called[3:] == [(1, 1), (1, 23), (1, 1)]


def test_a_prefix_is_computed_in_chunks(session, called, monkeypatch):
    monkeypatch.setattr(model_module, "CHUNK", 50)
    run = session(0).feed(200).trim(80)
    called.clear()
    run.feed(1)
    assert called == [(1, 1), (1, 50), (1, 50), (1, 20)]
    run.feed(30)


def test_ids_are_kept_in_steps(session):
    """As tokens and padding come and go: [B, n] of the real ones, in place."""
    run = session(0, 1).feed(250, 3).feed(1).trim(2).feed(4, 30, padded=2).feed(9)
    kept = run.cache[0].tokens.store
    assert (kept.shape, kept.dtype) == ((2, 512), mx.int32)
    for row, (i, seen) in enumerate(zip(run.sequences, run.seen, strict=True)):
        assert mx.array_equal(kept[row, :seen], IDS[i, :seen])
        assert not kept[row, seen:].any()
    assert [layer.tokens for layer in run.cache[1:]] == [None] * 4


def test_nothing_piles_up_behind_the_ids(session, model):
    """A decode step that evaluates its logits has evaluated the ids: nothing else reads them."""
    from parity.lives.offers import _operations

    run = session(0).feed(30)
    for _ in range(9):
        mx.eval(model(mx.array([[3]]), cache=run.cache))
    assert _operations([run.cache[0].tokens.store]) == 0


# --- in between --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restored", [through_memory, through_a_file, copied, deep_copied])
def test_a_rewound_cache_is_stored_and_restored(session, tmp_path, restored):
    run = session(0, 1).feed(60, 9).stray(40).trim(40)
    copies = restored(run.cache, tmp_path)
    session(0, 1, cache=copies, seen=run.seen).feed(1).feed(30).trim(45).feed(12)
    run.feed(30).feed(1)


def test_rewound_sequences_join_and_leave_a_batch(session):
    long, short = session(0).feed(90).stray(50).trim(50), session(1).feed(9)
    batch = session(0, 1, cache=merged(long, short), seen=[90, 9])
    late = session(2, 3).feed(70, 30).stray(20).trim(30)
    for layer, other in zip(batch.cache, late.cache, strict=True):
        layer.extend(other)
    batch.sequences, batch.seen = [0, 1, 2, 3], [90, 9, 60, 20]
    alone = session(2, cache=[layer.extract(2) for layer in batch.cache], seen=[60])
    for layer in batch.cache:
        layer.filter([3, 0, 1])
    batch.sequences, batch.seen = [3, 0, 1], [20, 90, 9]
    batch.feed(1).feed(9, 1, 30).trim(35).feed(4)
    alone.feed(20)
    session(2, cache=copy.deepcopy(alone.cache), seen=[80]).trim(70).feed(3)
    long.feed(1)


def test_a_call_that_is_refused_leaves_a_rewound_cache_as_it_is(session, model, called):
    run = session(0, 1).feed(60, 9).stray(40).trim(40)
    called.clear()
    for ids in (mx.array([[1, 48]] * 2), IDS[:2, :0], IDS[:3, :1], IDS[0]):
        assert sentence(UsageError, lambda: model(ids, cache=run.cache)).endswith(".")  # noqa: B023
    assert len(called) == 4  # nothing was computed anew for them
    run.feed(1).feed(30)


def test_an_entry_by_itself_refuses_what_is_gone():
    """It has no ids to compute a prefix from; nor have the entries of MTP blocks."""
    alone = LayerCache(6, 4)
    alone.rows = (Row(60, 60),)
    said = sentence(UsageError, alone.trim, 17)
    assert said.startswith("The cache cannot be trimmed by 17 tokens: of a sequence of 60 it can take back 16 at most")
    assert alone.rows == (Row(60, 60),)
    assert alone.trim(10) == 10
    assert "of a sequence of 50 it can take back 6 at most" in sentence(UsageError, alone.trim, 7)


# --- mlx-lm's questions ------------------------------------------------------------------------------------


def test_is_trimmable_does_not_look_at_its_caller(session):
    run = session(0).feed(40)
    assert all(layer.is_trimmable() for layer in run.cache)
    for file in Path(dsv4_mlx.__file__).parent.glob("*.py"):
        assert not re.search(r"_getframe|\binspect\b|f_back|f_locals|LRUPromptCache", file.read_text()), file


def continued(session, store, ids, sequence):
    """What the store gives for a prompt of ``sequence``, fed on to its end and further; tokens that were in it."""
    cache, rest = store.fetch_nearest_cache("model", ids)
    found = len(ids) - len(rest)
    run = session(sequence, cache=cache, seen=[found])
    if cache is not None:
        assert cache[0].size() == found
    run.feed(len(rest)).feed(1).feed(9)
    return found


def test_mlx_lms_store_of_prompts_rewinds_to_any_prefix(session):
    """Served alone: the live cache is stored. The store takes shorter prefixes out, and trims without a look."""
    store, ids = LRUPromptCache(), IDS[0].tolist()
    store.insert_cache("model", ids[:20], session(0).feed(20).cache)
    store.insert_cache("model", ids[:90], session(0).feed(90).cache)
    assert len(store) == 1
    assert continued(session, store, ids[:60], 0) == 59
    assert continued(session, store, ids[:120], 0) == 90
    assert continued(session, store, ids[:12], 0) == 11
    for common in (1, 30, 80):
        other = session(0).feed(common)
        cache, rest = store.fetch_nearest_cache("model", [*ids[:common], 47, 46])
        for layers in (cache, other.cache):
            assert layers[0].size() == common == len(ids[: common + 2]) - len(rest)
        got, right = (other.model(mx.array([rest]), cache=layers) for layers in (cache, other.cache))
        other.check(got, right)
    assert continued(session, store, ids[:120], 0) == 90  # what is stored stays as it is


def test_what_batches_store_keeps_its_prefixes(session):
    """A system prompt that many share is not computed anew for each of them."""
    store, ids = LRUPromptCache(), IDS[0].tolist()
    for length in (30, 90):
        run = session(0, 1).feed(length, 5)
        store.insert_cache("model", ids[:length], [layer.extract(0) for layer in run.cache])
    assert len(store) == 2
    assert continued(session, store, ids[:60], 0) == 30
    assert continued(session, store, ids[:120], 0) == 90
    short = session(1, 0).feed(12, 3)
    store.insert_cache("model", IDS[1, :12].tolist(), [layer.extract(0) for layer in short.cache])
    assert continued(session, store, IDS[1, :8].tolist(), 1) == 7  # nothing was overwritten


def extracted(session, length):
    run = session(0, 1).feed(length, 5)
    return [layer.extract(0) for layer in run.cache]


def test_an_extracted_cache_is_like_any_other(session, tmp_path):
    for length, trimmable in ((22, True), (23, False)):
        alone = extracted(session, length)
        assert {type(layer) for layer in alone} == {ExtractedLayerCache}
        assert [layer.is_trimmable() for layer in alone] == [trimmable] * 5
        for made in (copied, deep_copied, through_memory, through_a_file):
            again = made(alone, tmp_path)
            assert {type(layer) for layer in again} == {LayerCache}
            assert all(layer.is_trimmable() for layer in again)
            session(0, cache=again, seen=[length]).feed(1).trim(20).feed(3)
        run = session(0, cache=alone, seen=[length])
        batch = session(0, 2, cache=merged(run, session(2).feed(9)), seen=[length, 9])
        assert type(batch.cache[0]) is LayerCache
        batch.feed(1).trim(10).feed(3)
        run.feed(1).feed(30)
        for layer, other in zip(alone, extracted(session, 7), strict=True):
            layer.extend(other)
        session(0, 0, cache=alone, seen=[run.seen[0], 7]).feed(1)


def test_nbytes_of_the_ids(session):
    run = session(0).feed(257)
    bare = LayerCache(CONFIG["sliding_window"], 0)
    bare._replace(run.cache[0]._arrays()[:-1])
    assert run.cache[0].nbytes - bare.nbytes == 4 * 512
