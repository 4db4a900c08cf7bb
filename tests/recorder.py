"""Recordings in the format of fixtures/golden/README.md, made by the reference under other rounding: what another
program might record."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from parity.cases.strategies import checkpoint_tensors
from parity.judging import taps
from parity.judging.rounding import OtherRounding
from reference_torch import Config, Options, build
from reference_torch.quantization import hadamard, round_to_e4m3

FP8 = (
    "wq_a",
    "wq_b",
    "wkv",
    "wo_a",
    "wo_b",
    "shared_experts.w1",
    "shared_experts.w2",
    "shared_experts.w3",
    "e_proj",
    "h_proj",
)


def record(
    folder: Path,
    config: dict,
    options: Options,
    tokens: int,
    prefill: int,
    seed: int = 0,
    packed: bool = False,
    batch: int = 1,
    native: bool = False,
) -> Path:
    """Write one case: weights drawn from `seed`, float32 or `native` arithmetic, a prefill, then token by token."""
    folder.mkdir(parents=True)
    tensors = checkpoint_tensors(config, seed, "bfloat16")
    if packed:
        tensors = pack(tensors)
    model = build(Config.from_dict(config), tensors, torch.bfloat16 if native else torch.float32, options)
    ids = torch.randint(0, config["vocab_size"], (batch, tokens), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad(), OtherRounding(seed + 1, sequential=False):
        vectors = run(model, config, options, ids, prefill)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    vectors = {name: value.float() if value.is_floating_point() else value for name, value in vectors.items()}
    save_file({name: value.contiguous() for name, value in vectors.items()}, folder / "vectors.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    case = {
        "name": folder.name,
        "arithmetic": "bfloat16" if native else "float32",
        "incremental": {"prefill": prefill, "then": "one token at a time"},
        "options": {
            "shared_expert_clamp": options.shared_expert_clamp,
            "quantization_simulation": options.quantization_simulation,
        },
    }
    (folder / "case.json").write_text(json.dumps(case))
    return folder


def run(model, config: dict, options: Options, ids: Tensor, prefill: int) -> dict[str, Tensor]:
    """All vectors of one case."""
    layers = range(config["num_hidden_layers"])
    points = {}
    for layer in layers:
        prefix, ratio = f"layers.{layer}", config["compress_ratios"][layer]
        points |= {
            f"{prefix}.streams": (prefix, ""),
            f"{prefix}.attn": (f"{prefix}.attn", ""),
            f"{prefix}.ffn": (f"{prefix}.ffn", ""),
        }
        points[f"{prefix}.router"] = (f"{prefix}.ffn.gate", "")
        if ratio and ids.shape[1] >= ratio:
            points[f"{prefix}.compressed_kv"] = (f"{prefix}.attn.compressor", "")
            if ratio == 4:
                points[f"{prefix}.indexer.compressed"] = (f"{prefix}.attn.indexer.compressor", "")
                points[f"{prefix}.indexer.rows"] = (f"{prefix}.attn.indexer", "")
    with taps.recording(model, points) as seen:
        streams = model.streams(ids)
    vectors = {"input_ids": ids, "logits.oneshot": model.logits(streams)}
    for name, (output,) in seen.items():
        if name.endswith(".router"):
            vectors[f"{name}.weights"], vectors[f"{name}.experts"] = output[0], output[1].int()
        elif name.endswith(".rows"):
            vectors[name] = output.int()
        elif name.endswith("indexer.compressed") and options.quantization_simulation == "none":
            vectors[name] = hadamard(output)
        else:
            vectors[name] = output
    state = model.new_state()
    parts = [model(ids[:, :prefill], state)] + [model(ids[:, t : t + 1], state) for t in range(prefill, ids.shape[1])]
    vectors["logits.incremental"] = torch.cat(parts, 1)
    if config["num_nextn_predict_layers"]:
        vectors["mtp.logits.oneshot"] = model.mtp_logits(streams[:, :-1], ids[:, 1:])
    return vectors


def pack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as published checkpoints store them: fp8 in tiles of 128x128, experts in fp4 with one scale for 32."""
    packed = {}
    for name, value in tensors.items():
        owner = name.removesuffix(".weight")
        if ".experts." in name and value.shape[1] % 32 == 0:
            groups = value.float().unflatten(1, (-1, 32))
            scale = power_of_two(groups.abs().amax(-1) / 6)
            grid = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
            code = (groups.abs() / scale[..., None] - grid[:, None, None, None]).abs().argmin(0) + 8 * (groups < 0)
            code = code.flatten(1)
            packed[name] = (code[:, ::2] + 16 * code[:, 1::2]).to(torch.uint8).view(torch.int8)
            packed[f"{owner}.scale"] = e8m0(scale)
        elif owner.endswith(FP8) and ".compressor." not in owner:
            rows, columns = value.shape
            tiles = [-(-rows // 128), -(-columns // 128)]
            scale = torch.empty(tiles)
            values = value.float().clone()
            for i in range(tiles[0]):
                for j in range(tiles[1]):
                    tile = values[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128]
                    scale[i, j] = power_of_two(tile.abs().max() / 448)
                    tile /= scale[i, j]
            packed[name] = round_to_e4m3(values).to(torch.float8_e4m3fn)
            packed[f"{owner}.scale"] = e8m0(scale)
        else:
            packed[name] = value
    return packed


def power_of_two(x: Tensor) -> Tensor:
    return torch.exp2(torch.ceil(torch.log2(x)))


def e8m0(scale: Tensor) -> Tensor:
    return (torch.log2(scale) + 127).to(torch.uint8).view(torch.float8_e8m0fnu)
