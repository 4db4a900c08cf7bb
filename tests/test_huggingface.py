"""A witness that shares no code with this project: Hugging Face's DeepSeek-V4, in float32, on the same files.

Run: pytest tests/test_huggingface.py
"""

import inspect

import mlx.core as mx
import pytest
import torch
from helpers import Judge, in_calls, tiny, token_ids, write_folder

import dsv4_mlx
import reference_torch
from parity.judging.sides import from_mlx

transformers = pytest.importorskip("transformers", reason="the witness comes with the extra [test]")
transformers.utils.logging.disable_progress_bar()

# It knows the ratios 0, 4 and 128 only, always clamps, and rounds its cache of compressed rows nowhere.
LISTS = {"flash-like": (0, 0, 4, 128, 4, 128), "pro-like": (128, 128, 4, 128, 4)}
TOKENS = 140  # one row at ratio 128, 35 at ratio 4 where 8 are kept, and the window long since full
SCHEDULES = {
    "prefill, then one by one": (100, *[1] * 40),
    "one, then one chunk": (1, 139),
    "one by one around 128": (126, 1, 1, 1, 1, 10),
    "chunks across groups": (7, 2, 60, 3, 66, 2),
}
SCORING = {"flash-like": "sqrtsoftplus", "pro-like": "sigmoid"}
SEEDS = {"flash-like": 2, "pro-like": 1}  # the first whose margins are clear; a test asserts that they are


class Witness:
    """One checkpoint folder, loaded by all three programs."""

    def __init__(self, name, folder):
        config = tiny(
            LISTS[name],
            head_dim=32,  # its rope width is head_dim * (qk_rope_head_dim / head_dim), which must be exact
            sliding_window=16,
            index_topk=8,
            scoring_func=SCORING[name],
            max_position_embeddings=1024,  # 16 times the original length, or it warns
        )
        self.ids = token_ids(config, TOKENS)
        self.judge = Judge(config, self.ids, seed=SEEDS[name])
        self.folder = write_folder(folder, config, self.judge.tensors)
        self.hugging_face = self.load(self.folder)

    @staticmethod
    def load(folder):
        model, info = transformers.DeepseekV4ForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        assert not any(info.values()), f"the witness did not load every tensor: {info}"
        return model.eval()

    def one_shot(self, model=None):
        with torch.no_grad():
            return (model or self.hugging_face)(self.ids, use_cache=False).logits

    def in_chunks(self, chunks):
        known = inspect.signature(self.hugging_face.forward).parameters
        name = "cache" if "cache" in known else "past_key_values"  # since transformers 5.24, and before
        cache = {name: transformers.DynamicCache(config=self.hugging_face.config)}

        def step(start, stop):
            ids = self.ids[:, start:stop]
            return self.hugging_face(ids, **cache, use_cache=True).logits

        with torch.no_grad():
            return in_calls(step, chunks)


@pytest.fixture(scope="module", params=LISTS)
def witness(request, tmp_path_factory):
    return Witness(request.param, tmp_path_factory.mktemp("checkpoint"))


def test_no_decision_hangs_on_rounding(witness):
    config, margins = witness.judge.config, witness.judge.margins()
    routers = config["num_hidden_layers"] - config["num_hash_layers"]
    assert len(margins) == routers + config["compress_ratios"].count(4)
    assert min(margins.values()) > 1, margins


def test_witness_computes_what_the_reference_computes(witness):
    assert witness.judge.measure(witness.one_shot()).ratio <= 1


@pytest.mark.parametrize("chunks", SCHEDULES.values(), ids=SCHEDULES)
def test_witness_with_its_cache(witness, chunks):
    assert witness.judge.measure(witness.in_chunks(chunks)).ratio <= 1


@pytest.mark.parametrize("chunks", [(TOKENS,), *SCHEDULES.values()], ids=["one shot", *SCHEDULES])
@pytest.mark.parametrize("package", ["reference_torch", "dsv4_mlx"])
def test_both_packages_compute_what_the_witness_computes(witness, package, chunks):
    """Here the witness takes the place of the exact run."""
    if package == "dsv4_mlx":
        model = dsv4_mlx.load(witness.folder, mx.float32)
        ids, cache = mx.array(witness.ids.numpy()), model.make_cache()
        got = in_calls(lambda start, stop: from_mlx(model(ids[:, start:stop], cache)), chunks)
    else:
        model = reference_torch.load(witness.folder)
        state = model.new_state()
        got = in_calls(lambda start, stop: model(witness.ids[:, start:stop], state), chunks)
    assert witness.judge.measure(got, truth=witness.one_shot()).ratio <= 1


@pytest.mark.parametrize(
    "name",
    ["norm.weight", "embed.weight", "layers.0.attn.wq_a.weight", "layers.4.ffn.experts.5.w2.weight"],
)
def test_one_weight_off_by_a_thousandth_is_seen(witness, tmp_path, name):
    changed = witness.judge.tensors[name].clone()
    changed.view(-1)[changed.abs().argmax()] += 1e-3
    folder = write_folder(tmp_path, witness.judge.config, witness.judge.tensors | {name: changed})
    assert witness.judge.measure(witness.one_shot(witness.load(folder))).ratio > 1
