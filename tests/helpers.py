"""What several test files need: a tiny config, tokens, weights, and logits judged by the computed tolerance."""

import json
from functools import cached_property

import pytest
import torch
from safetensors.torch import save_file

from parity.cases.strategies import checkpoint_tensors
from parity.judging import oracle
from parity.judging.sides import TorchSide
from parity.judging.tolerance import Measurement, measure

# As the command does: tensors are tiny, and threads that wait for each other cost ten times as much.
torch.set_num_threads(1)

# Every size differs from every other; YaRN and the window act within the first tokens.
TINY = {
    "model_type": "deepseek_v4",
    "vocab_size": 48,
    "hidden_size": 24,
    "num_hash_layers": 1,
    "num_attention_heads": 4,
    "head_dim": 16,
    "qk_rope_head_dim": 8,
    "q_lora_rank": 12,
    "o_groups": 2,
    "o_lora_rank": 10,
    "sliding_window": 5,
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 64,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "index_n_heads": 16,
    "index_head_dim": 32,
    "index_topk": 3,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "scoring_func": "sqrtsoftplus",
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "rms_norm_eps": 1e-6,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 3,  # not 20, which half the time of a layer would go into
    "hc_eps": 1e-6,
}


def tiny(ratios, mtp=0, **changed) -> dict:
    """A raw config with these compression ratios, the last `mtp` of them those of MTP blocks."""
    layers = {"num_hidden_layers": len(ratios) - mtp, "num_nextn_predict_layers": mtp}
    return TINY | layers | {"compress_ratios": list(ratios)} | changed


def token_ids(config, tokens, batch=1, seed=0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, config["vocab_size"], (batch, tokens), generator=random)


def write_folder(folder, config, tensors):
    """A checkpoint folder as published ones are laid out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def in_calls(step, chunks) -> torch.Tensor:
    """step(start, stop) for calls of these many tokens, the outputs joined along the tokens."""
    outputs, start = [], 0
    for tokens in chunks:
        outputs.append(step(start, start + tokens))
        start += tokens
    return torch.cat(outputs, dim=1)


def sentence(error, call, *args) -> str:
    """What `call` raises, which must be one line that ends like a sentence."""
    with pytest.raises(error) as caught:
        call(*args)
    said = str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in said
    assert said.endswith((".", "?"))
    return said


class Judge:
    """The reference's logits of one model and its tokens: exact, in the run's type, and with other rounding.

    All runs take the exact run's decisions, so that `margins` must be clear where a candidate decides itself.
    """

    def __init__(self, config, ids, seed=0, dtype="float32", options=None):
        self.config, self.ids, self.seed, self.dtype = config, ids, seed, dtype
        self.tensors = checkpoint_tensors(config, seed, dtype)
        self.options = options or {}
        self.paths = oracle.decision_paths(config)

    def observe(self, side, replay=None):
        return oracle.observe(side, lambda: {"logits": side.model(self.ids)}, self.paths, replay)

    @cached_property
    def exact_side(self):
        return TorchSide(self.config, self.options, self.tensors, "float64")

    @cached_property
    def side(self):
        return TorchSide(self.config, self.options, self.tensors, self.dtype)

    @cached_property
    def exact(self):
        return self.observe(self.exact_side)

    @cached_property
    def runs(self):
        """The baseline, then the members of the null."""
        replay = oracle.replayable(self.exact, self.paths)
        run = lambda: {"logits": self.side.model(self.ids)}  # noqa: E731
        nulls = oracle.null_runs(self.side, run, self.paths, replay, self.dtype, self.seed)
        return [self.observe(self.side, replay), *nulls]

    def measure(self, logits, truth=None) -> Measurement:
        """Logits against the exact ones, or against another program's."""
        truth = self.exact.taps["logits"] if truth is None else truth
        baseline, *nulls = [run.taps["logits"] for run in self.runs]
        return measure(truth, baseline, nulls, logits, self.dtype)

    def margins(self) -> dict[str, float]:
        """Of every choice by score: the narrowest gap at its cut, in units of what noise can close."""
        found = {}
        for path, scores in self.exact.scores.items():
            if self.paths[path] == "table":
                continue
            module = self.exact_side.model.get_submodule(path)
            allowed, k = oracle.allowed_items(module, scores)
            baseline, *nulls = [run.scores[path].masked_fill(~allowed, 0) for run in self.runs]
            noise = measure(scores.masked_fill(~allowed, 0), baseline, nulls, baseline, self.dtype).limit_max
            ranked = scores + (module.bias if hasattr(module, "bias") else 0)
            ranked = ranked.masked_fill(~allowed, -torch.inf).sort(-1, descending=True)[0]
            if ranked.shape[-1] > k:
                gap = ranked[..., k - 1] - ranked[..., k]
                gap = gap.nan_to_num(nan=torch.inf)  # -inf - -inf: too few to choose from
                found[path] = float(gap.min()) / (2 * noise)
        return found
