"""mlx-lm's model contract: what `mlx_lm` asks of a model file, and that its generation gives the reference's tokens.

Run: pytest tests/test_dsv4_mlx_model.py
"""

import mlx.core as mx
import pytest
import torch
from helpers import Judge, tiny, token_ids, write_folder
from mlx.utils import tree_flatten
from mlx_lm import utils
from mlx_lm.generate import generate_step

import dsv4_mlx
from dsv4_mlx import LayerCache, Model, ModelArgs
from dsv4_mlx.router import Router
from parity.cases.strategies import Case, checkpoint_tensors
from parity.jobs.examples import judge_case
from parity.judging.sides import MLXSide, from_mlx, to_mlx
from parity.judging.tolerance import measure
from parity.pairs import registry
from reference_torch.router import score

CONFIG = tiny((0, 4, 8), mtp=1)


@pytest.fixture(scope="module")
def model():
    return MLXSide(CONFIG, {}, checkpoint_tensors(CONFIG, 0, "float32"), "float32").model


@pytest.mark.parametrize("logit", [-10.0, -17.0, -39.9, -40.1, -90.0, -102.0, -160.0])
def test_router_weights_far_below_zero(logit):
    """MLX's exp gives 0 below -88 on the CPU; the weights must not be 0/0 there."""
    logits = torch.tensor([[[logit, logit - 1, logit + 1]]], dtype=torch.float64)
    scores = torch.nn.functional.softplus(logits).sqrt()
    exact = 1.5 * scores / scores.sum(-1, keepdim=True)
    config = tiny((0,), n_routed_experts=3, num_experts_per_tok=3, num_hash_layers=0, hidden_size=3)
    router = Router(ModelArgs.from_dict(config), hashed=False)
    router.weight = mx.eye(3)
    weights = router.weigh(router.scores(to_mlx(logits.float())), mx.array([[[0, 1, 2]]]))
    assert torch.allclose(from_mlx(weights).double(), exact, rtol=1e-5)
    assert torch.allclose(score(logits.float(), "sqrtsoftplus").double(), scores, rtol=1e-5, atol=0)


# --- the contract ------------------------------------------------------------------------------------------


def test_names_that_mlx_lm_looks_for():
    assert (dsv4_mlx.Model, dsv4_mlx.ModelArgs) == (Model, ModelArgs)
    built = Model(ModelArgs.from_dict(CONFIG))
    assert built.model_type == "deepseek_v4"
    assert built.args.compress_ratios == [0, 4, 8]
    assert len(built.layers) == 2  # the backbone alone: MTP blocks are not layers of a generation
    assert len(built.mtp) == 1


def test_cache_has_an_entry_a_layer(model):
    caches = model.make_cache()
    assert [type(cache) for cache in caches] == [LayerCache] * 2
    assert all(cache.empty() and cache.size() == 0 and cache.nbytes == 0 for cache in caches)
    assert all(cache.is_trimmable() for cache in caches)
    assert len(model.make_mtp_cache()) == 1
    model(mx.array([[1, 2, 3]]), cache=caches)
    assert [cache.size() for cache in caches] == [3, 3]
    assert all(cache.nbytes > 0 for cache in caches)


def test_logits_of_every_position_in_float32():
    side = MLXSide(CONFIG, {}, checkpoint_tensors(CONFIG, 0, "bfloat16"), "bfloat16")
    logits = side.model(mx.array([[1, 2, 3], [4, 5, 6]]))
    assert logits.shape == (2, 3, CONFIG["vocab_size"])
    assert logits.dtype == mx.float32


def test_only_what_is_stored_in_float32_may_not_be_cast(model):
    """Spec 2: hyper-connections, sinks, ape, and the router's bias."""
    keep = {path for path, _ in tree_flatten(model.parameters()) if not model.cast_predicate(path)}
    layer_parts = [
        "attn.attn_sink",
        *(f"hc_{site}.{part}" for site in ("attn", "ffn") for part in ("fn", "base", "scale")),
    ]
    expected = {f"{block}.{part}" for block in ("layers.0", "layers.1", "mtp.0") for part in layer_parts}
    expected |= {f"{head}.{part}" for head in ("hc_head", "mtp.0.hc_head") for part in ("fn", "base", "scale")}
    expected |= {"layers.1.attn.compressor.ape", "layers.1.attn.indexer.compressor.ape"}
    expected |= {"mtp.0.attn.compressor.ape", "layers.1.ffn.gate.bias", "mtp.0.ffn.gate.bias"}
    assert keep == expected  # layer 0 routes by table and has no bias


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mlx_lm_loads_a_folder(tmp_path, dtype):
    folder = write_folder(tmp_path, CONFIG, checkpoint_tensors(CONFIG, 0, dtype))
    loaded, config = utils.load_model(folder, get_model_classes=lambda config: (Model, ModelArgs))
    assert config["model_type"] == "deepseek_v4"
    own = dsv4_mlx.load(folder, mx.float32)
    ids = mx.array(token_ids(CONFIG, 12).numpy())
    if dtype == "float32":
        assert mx.array_equal(loaded(ids), own(ids))
    assert {path for path, _ in tree_flatten(loaded.parameters())} == {
        path for path, _ in tree_flatten(own.parameters())
    }


# --- generation --------------------------------------------------------------------------------------------

PROMPT, NEW = 13, 24  # decoding crosses blocks of 4 and of 8, the window, and more rows than the indexer keeps


@pytest.fixture(scope="module")
def greedy():
    """The reference's own greedy continuation in float32, without a state; and the judge of all of it."""
    config = tiny((0, 4, 8))
    judge = Judge(config, token_ids(config, PROMPT), seed=3)
    ids = judge.ids
    for _ in range(NEW):
        logits = judge.side.model(ids)
        ids = torch.cat((ids, logits[:, -1:].argmax(-1)), 1)
    return Judge(config, ids, seed=3)


def test_greedy_choices_are_clear(greedy):
    logits = greedy.exact.taps["logits"][0, PROMPT - 1 : -1]
    best, second = logits.topk(2)[0].unbind(-1)
    noise = greedy.measure(greedy.runs[0].taps["logits"]).limit_max
    assert (best - second).min() > 2 * noise
    assert min(greedy.margins().values()) > 1


@pytest.mark.parametrize("step", [1, 3, 8, 2048])
def test_generate_step_is_the_references_greedy_decoding(greedy, step):
    side = MLXSide(greedy.config, {}, greedy.tensors, "float32")
    prompt = mx.array(greedy.ids[0, :PROMPT].numpy())
    steps = generate_step(prompt, side.model, max_tokens=NEW, prefill_step_size=step)
    generated, logprobs = zip(*steps, strict=True)
    assert [int(token) for token in generated] == greedy.ids[0, PROMPT:].tolist()
    # and the distributions that it chose from, not only the winners
    exact = greedy.exact.taps["logits"][:, PROMPT - 1 : -1].log_softmax(-1)
    baseline, *nulls = [run.taps["logits"][:, PROMPT - 1 : -1].log_softmax(-1) for run in greedy.runs]
    got = from_mlx(mx.stack(logprobs))[None]
    assert measure(exact, baseline, nulls, got, "float32").ratio <= 1


def test_generation_continues_a_cache(greedy):
    side = MLXSide(greedy.config, {}, greedy.tensors, "float32")
    ids = mx.array(greedy.ids[0].numpy())
    cache = side.model.make_cache()
    side.model(ids[None, : PROMPT + 5], cache=cache)
    steps = generate_step(ids[PROMPT + 5 : PROMPT + 8], side.model, max_tokens=6, prompt_cache=cache)
    assert [int(token) for token, _ in steps] == ids[PROMPT + 8 : PROMPT + 14].tolist()


# --- the same model in one shot, in chunks, in batches -----------------------------------------------------

LISTS = {"window": (0, 0), "ratio 2": (2, 0, 2), "ratio 8": (8, 0, 8), "flash-like": (0, 4, 128), "pro-like": (128, 4)}
SCHEDULES = {
    "one shot": (135,),
    "one shot and a cache": (135,),
    "chunks": (7, 2, 60, 3, 61, 2),
    "prefill, then one by one": (125, *[1] * 10),
    "one, then one chunk": (1, 134),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", LISTS)
def test_any_schedule_gives_what_the_reference_gives_in_one_shot(name, schedule, dtype):
    """Two rows a batch; the candidate's own decisions are replayed and must be legal."""
    chunks = SCHEDULES[schedule]
    case = Case(tiny(LISTS[name]), seed=5, batch=2, chunks=chunks, cached=schedule != "one shot")
    judged = judge_case(registry()["model"], case, dtype)
    assert judged.ratio <= 1, judged.worst()
    assert sum(choice.tokens for choice in judged.choices.values()) > 0


@pytest.mark.parametrize("ratio", [0, 4, 8])
@pytest.mark.parametrize("chunks", [(21,), (6, 1, 1, 13)])
def test_mtp(ratio, chunks):
    case = Case(tiny((0, ratio), mtp=1), seed=5, batch=2, chunks=chunks, cached=len(chunks) > 1)
    judged = judge_case(registry()["mtp"], case, "float32")
    assert judged.ratio <= 1, judged.worst()
