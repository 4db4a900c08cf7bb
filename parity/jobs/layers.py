"""The whole model layer by layer: isolated on the reference's input, which judges, and accumulated, which explains
(method, section 4)."""

from __future__ import annotations

from torch import Tensor

from ..cases.strategies import Case, checkpoint_tensors
from ..cases.strategies.configs import FIXED
from ..cases.strategies.weights import DTYPES
from ..judging import oracle, taps
from ..judging.sides import MLXSide, TorchSide
from ..judging.tolerance import rms
from ..results import LayerResult, Verdict

# Long enough for the window to slide, for several rows more than index_topk, and for two rows at ratio 128 over the
# two models.
TOKENS = 140
SIZES = FIXED | {
    "vocab_size": 64,
    "hidden_size": 40,
    "num_nextn_predict_layers": 0,
    "num_hash_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 28,
    "qk_rope_head_dim": 8,
    "q_lora_rank": 20,
    "o_groups": 2,
    "o_lora_rank": 12,
    "sliding_window": 16,
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
    "index_head_dim": 16,
    "index_topk": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "scoring_func": "sqrtsoftplus",
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "rms_norm_eps": 1e-6,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
}
MODELS = {"flash-like": (0, 0, 4, 128, 4, 128), "pro-like": (128, 128, 4, 128, 4)}
KINDS = {0: "window", 4: "ratio 4"}


def judge_layers(name: str, dtype: str, seed: int) -> list[LayerResult]:
    """All layers of one of MODELS in one type; where the candidate raises, one row that says so."""
    try:
        return _judge_layers(name, dtype, seed)
    except oracle.CandidateRaised:
        inf = float("inf")
        return [LayerResult(name, dtype, 0, "whole model", inf, inf, inf, 0.0, Verdict.CRASHED)]


def _judge_layers(name: str, dtype: str, seed: int) -> list[LayerResult]:
    ratios = MODELS[name]
    config = SIZES | {"compress_ratios": list(ratios), "num_hidden_layers": len(ratios)}
    case = Case(config=config, seed=seed, chunks=(TOKENS,))
    tensors = checkpoint_tensors(config, seed, dtype)
    paths = oracle.decision_paths(config)
    mlx, base, exact = (
        side(config, case.options, tensors, kind)
        for side, kind in ((MLXSide, dtype), (TorchSide, dtype), (TorchSide, "float64"))
    )
    free = oracle.observe_candidate(mlx, lambda: streams(mlx, case), paths)
    replay = oracle.replayable(free, paths)
    free_base, free_exact = (
        oracle.observe(side, lambda side=side: streams(side, case), paths, replay) for side in (base, exact)
    )
    rows = []
    for layer, ratio in enumerate(ratios):
        before = f"layers.{layer - 1}" if layer else "embedded"
        given = free_base.taps[before].to(DTYPES[dtype]).double()
        judged = judge_alone(layer, given, case, paths, dtype, mlx, base, exact)
        tap = f"layers.{layer}"
        truth = free_exact.taps[tap].double()
        alone = judged.taps.get("streams")
        rows.append(
            LayerResult(
                model=name,
                dtype=dtype,
                layer=layer,
                kind=KINDS.get(ratio, f"ratio {ratio}"),
                isolated_ratio=judged.ratio,
                isolated_error=alone.error_rms / alone.scale if alone else float("inf"),
                accumulated_error=rms(free.taps[tap].double() - truth) / rms(truth),
                accumulated_baseline=rms(free_base.taps[tap].double() - truth) / rms(truth),
                verdict=Verdict.DIVERGES if judged.ratio > 1 else Verdict.PARITY,
                ties=sum(choice.ties for choice in judged.choices.values()),
            )
        )
    return rows


def streams(side, case: Case) -> dict[str, Tensor]:
    """The streams after every layer, and before the first."""
    points = {f"layers.{i}": (f"layers.{i}", "") for i in range(case.config["num_hidden_layers"])}
    with taps.recording(side.model, points | {"embed": ("embed", "")}) as record:
        side.model.streams(side.integers(case.ids()))
    found = {name: side.tensor(outputs[0]) for name, outputs in record.items() if name != "embed"}
    embedded = side.tensor(record["embed"][0])
    return found | {"embedded": embedded[:, :, None].expand(-1, -1, case.config["hc_mult"], -1)}


def judge_alone(layer: int, given: Tensor, case: Case, paths: dict, dtype: str, mlx, base, exact) -> oracle.Judged:
    """One block of the candidate on the reference's input streams."""
    prefix = f"layers.{layer}."
    paths = {path: kind for path, kind in paths.items() if path.startswith(prefix)}

    def run(side):
        ids = side.integers(case.ids())
        return lambda: {"streams": side.tensor(side.model.layers[layer](side.array(given), ids))}

    candidate = oracle.observe_candidate(mlx, run(mlx), paths)
    replay = oracle.replayable(candidate, paths)
    truth, baseline = (oracle.observe(side, run(side), paths, replay) for side in (exact, base))
    nulls = oracle.null_runs(base, run(base), paths, replay, dtype, case.seed + layer)
    return oracle.judge(truth, baseline, nulls, candidate, exact.model, dtype)
