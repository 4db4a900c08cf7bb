"""What dsv4_mlx computes in parts, in groups or compiled equals what it computes plainly.

Run: pytest tests/test_dsv4_mlx_blocks.py
"""

from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest
from helpers import tiny, write_folder

import dsv4_mlx
from dsv4_mlx import attention, experts, token_wise
from dsv4_mlx.attention import in_blocks, sink_attention
from parity.cases.strategies import checkpoint_tensors
from parity.judging.taps import as_written

WINDOW, ROWS, HEADS, DIM = 20, 7, 3, 8


def normal(*shape, seed=0):
    return mx.random.normal(shape, key=mx.random.key(seed))


@pytest.mark.parametrize("past", [0, 5, 19], ids="past={}".format)
@pytest.mark.parametrize("tokens", [128, 129, 300], ids="tokens={}".format)
def test_blocks_of_queries_give_what_one_gives(tokens, past):
    key_at, query_at = mx.arange(-past, tokens), mx.arange(tokens)[:, None]
    local = (key_at <= query_at) & (key_at > query_at - WINDOW)
    seen = mx.arange(ROWS) * 40 <= query_at
    mask = mx.concatenate([local, seen], axis=-1)[None]
    q, keys = normal(2, tokens, HEADS, DIM), normal(2, past + tokens + ROWS, DIM, seed=1)
    sink = normal(HEADS, seed=2)
    whole = sink_attention(q, keys, mask, sink, 0.3)
    assert mx.allclose(in_blocks(q, keys, mask, sink, 0.3, WINDOW, ROWS), whole, rtol=1e-5, atol=1e-6)


def test_scores_are_never_held_for_more_than_a_block(monkeypatch):
    held = []
    keep = lambda q, keys, *rest: held.append((q.shape[1], keys.shape[1])) or sink_attention(q, keys, *rest)  # noqa: E731
    monkeypatch.setattr(attention, "sink_attention", keep)
    q, keys = normal(1, 1000, 1, DIM), normal(1, 1000 + ROWS, DIM)
    in_blocks(q, keys, mx.ones((1, 1000, 1000 + ROWS), dtype=mx.bool_), normal(1), 1.0, WINDOW, ROWS)
    assert max(queries for queries, _ in held) == attention.BLOCK
    assert max(count for _, count in held) == attention.BLOCK + WINDOW - 1 + ROWS


def test_grouped_experts_give_each_token_its_own(monkeypatch):
    config = tiny((0,), num_hash_layers=0)
    model = dsv4_mlx.Model(dsv4_mlx.ModelArgs.from_dict(config))
    weights = {name: mx.array(value.numpy()) for name, value in checkpoint_tensors(config, 0, "float32").items()}
    model.load_weights(list(model.sanitize(weights).items()))
    x, ids = normal(2, 40, config["hidden_size"]), mx.zeros((2, 40), dtype=mx.int32)
    grouped = model.layers[0].ffn(x, ids)
    monkeypatch.setattr(experts, "GROUPED_FROM", 10_000)
    assert mx.allclose(grouped, model.layers[0].ffn(x, ids), rtol=1e-4, atol=1e-5)


def loaded(tmp_path, ratios, dtype="float32"):
    config = tiny(ratios, vocab_size=64)
    folder = write_folder(tmp_path / "model", config, checkpoint_tensors(config, 0, dtype))
    return dsv4_mlx.load(folder, getattr(mx, dtype))


def test_a_long_decode_is_compiled_and_gives_what_it_gives_as_written(tmp_path, monkeypatch):
    """Weights that change after the compilation are seen: they are its inputs."""
    monkeypatch.setattr(token_wise, "REPEATED", 2)
    model, ids = loaded(tmp_path, (0, 4, 8)), mx.random.randint(0, 64, (2, 60), key=mx.random.key(3))

    def decoded():
        cache = model.make_cache()
        return mx.concatenate([model(ids[:, i : i + 1], cache) for i in range(60)], axis=1)

    before = decoded()
    for factor in (1.0, 3.0):
        model.update({"layers": [{"ffn_norm": {"weight": model.layers[0].ffn_norm.weight * factor}}]})
        compiled = decoded()
        with as_written():
            written = decoded()
        assert mx.allclose(compiled, written, rtol=1e-4, atol=1e-4)
        assert factor == 1.0 or not mx.allclose(compiled, before, rtol=1e-2, atol=1e-2)
        before = compiled
    for block in model.layers:
        assert len(vars(block)["_for_one_token"]) == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_in_parts_give_what_they_give_together(tmp_path, monkeypatch, dtype):
    model, ids = loaded(tmp_path, (0, 4, 8), dtype), mx.random.randint(0, 64, (2, 301), key=mx.random.key(3))
    together, further = model(ids), [mx.new_stream(mx.cpu) for _ in range(2)]
    monkeypatch.setattr(token_wise, "LEAST", 100)
    monkeypatch.setattr(token_wise, "_further", lambda: further)
    built = []
    spread = token_wise.spread
    monkeypatch.setattr(token_wise, "spread", lambda tasks: built.append(found := spread(tasks)) or found)
    assert mx.array_equal(model(ids), together)
    assert {len(found) for found in built} == {3}


def test_a_server_thread_computes_in_parts_too(tmp_path, monkeypatch):
    """mlx-lm's server generates in a thread that is not the one which loaded the model."""
    model, ids = loaded(tmp_path, (0, 4)), mx.random.randint(0, 64, (1, 200), key=mx.random.key(3))
    monkeypatch.setattr(token_wise, "LEAST", 100)
    expected = model(ids)
    mx.eval(expected)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: mx.array_equal(model(ids), expected).item()).result()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matrices_lie_inputs_first_after_loading(tmp_path, dtype):
    """In the memory of a product of one token; names, shapes and values are the checkpoint's."""
    model = loaded(tmp_path, (4,), dtype)
    layer = model.layers[0]
    for weight in (layer.attn.wq_b.weight, layer.attn.wo_a.weight, layer.ffn.experts.w1.weight, layer.hc_attn.fn):
        rows = memoryview(weight.astype(mx.float32) if dtype == "bfloat16" else weight)
        assert rows.strides[-1] > rows.strides[-2]
    assert model(mx.array([[1, 2, 3]])).shape == (1, 3, 64)
