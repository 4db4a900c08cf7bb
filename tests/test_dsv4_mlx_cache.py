"""What a cache keeps: saved, restored and split off at any point, it goes on as if nothing had happened.

Run: pytest tests/test_dsv4_mlx_cache.py
"""

import mlx.core as mx
import pytest
from helpers import tiny, token_ids
from mlx_lm.models import cache as mlx_lm_cache

from dsv4_mlx import LayerCache
from dsv4_mlx.cache import Pool, Ring
from parity.sides import MLXSide
from parity.strategies import checkpoint_tensors

CONFIG = tiny((0, 4, 8))
IDS = mx.array(token_ids(CONFIG, 31, batch=2).numpy())


@pytest.fixture(scope="module")
def model():
    return MLXSide(CONFIG, {}, checkpoint_tensors(CONFIG, 0, "float32"), "float32").model


def filled(model, tokens):
    caches = model.make_cache()
    if tokens:
        model(IDS[:, :tokens], cache=caches)
    return caches


def through_memory(caches, tmp_path):
    return [LayerCache.from_state(cache.state) for cache in caches]


def through_a_file(caches, tmp_path):
    """mlx-lm finds cache classes in its own module, so a model file that brings one registers it there."""
    mlx_lm_cache.save_prompt_cache(str(tmp_path / "cache.safetensors"), caches)
    return mlx_lm_cache.load_prompt_cache(str(tmp_path / "cache.safetensors"))


@pytest.mark.parametrize("restored", [through_memory, through_a_file])
@pytest.mark.parametrize("tokens", [0, 1, 3, 4, 7, 8, 9, 17, 24])  # empty, inside blocks of 4 and 8, at their ends
def test_restored_cache_continues(model, tmp_path, monkeypatch, restored, tokens):
    monkeypatch.setattr(mlx_lm_cache, "LayerCache", LayerCache, raising=False)
    caches = filled(model, tokens)
    copies = restored(caches, tmp_path)
    for start, stop in ((tokens, tokens + 1), (tokens + 1, tokens + 7)):
        expected = model(IDS[:, start:stop], cache=caches)
        assert mx.array_equal(model(IDS[:, start:stop], cache=copies), expected)
    assert [copy.size() for copy in copies] == [tokens + 7] * 3


def test_branches_of_one_cache_do_not_disturb_each_other(model):
    """Caches write in place; what was split off keeps its own rows."""
    trunk = filled(model, 9)
    branch = [LayerCache.from_state(cache.state) for cache in trunk]
    model(IDS[:, 20:30], cache=branch)
    alone = filled(model, 9)
    assert mx.array_equal(model(IDS[:, 9:20], cache=trunk), model(IDS[:, 9:20], cache=alone))


def test_state_can_be_evaluated_as_mlx_lm_does(model):
    for tokens in (0, 5):
        caches = filled(model, tokens)
        mx.eval([cache.state for cache in caches])
        assert [cache.meta_state for cache in caches] == [""] * 3


def test_foreign_meta_state_is_refused():
    with pytest.raises(ValueError, match=r"^LayerCache keeps nothing in meta_state, but one was set\.$"):
        LayerCache(4, 0).meta_state = "3"


def test_nbytes_counts_every_array(model):
    window, compressed = filled(model, 9)[:2]
    dim = CONFIG["head_dim"]
    assert window.nbytes == 4 * 2 * CONFIG["sliding_window"] * dim
    assert compressed.nbytes > window.nbytes + 4 * 2 * 2 * dim  # and at least two compressed rows


# --- its parts ---------------------------------------------------------------------------------------------


def marked(start, stop):
    """Rows that carry their own positions."""
    return mx.arange(start, stop).reshape(1, -1, 1).astype(mx.float32)


@pytest.mark.parametrize("calls", [(1,) * 12, (12,), (3, 1, 5, 3), (4, 4, 4), (11, 1), (5, 7)])
def test_ring_keeps_the_last_window(calls):
    ring, start = Ring(4), 0
    for tokens in calls:
        before = ring.before(marked(start, start + tokens), start)
        assert before.flatten().tolist() == list(range(max(start - 3, 0), start))
        slots = ring.write(marked(start, start + tokens), start)
        start += tokens
        for position in range(max(start - 4, 0), start):
            assert slots[0, position % 4].item() == position


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("calls", [(1,) * 11, (11,), (3, 1, 5, 2), (4, 4, 3), (2, 9), (7, 4)])
def test_pool_hands_out_whole_blocks_in_order(calls, overlap):
    pool, start, done = Pool(4, overlap), 0, []
    for tokens in calls:
        kv, gate = pool.push(marked(start, start + tokens), -marked(start, start + tokens), start)
        start += tokens
        assert mx.array_equal(gate, -kv)
        done += kv.flatten().tolist()
        assert done == list(range(start // 4 * 4))
        if overlap and done:
            assert pool.before[0].flatten().tolist() == done[-4:]
        assert overlap or pool.before is None


def test_pool_grows_in_steps_and_keeps_its_rows():
    pool = Pool(4, overlap=False)
    for start in range(0, 600, 50):
        pool.append(marked(start, start + 50))
    like = mx.zeros((1, 1, 1))
    assert pool.rows(like, 1).flatten().tolist() == list(range(600))
    assert pool.store.shape[1] == 768
