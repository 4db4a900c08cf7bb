"""Weights as published: fp8 matrices with a scale for 128x128 elements, experts in fp4 with one for 32."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_torch.quantization import E2M1_MAX, E4M3_MAX, FP4_VALUES, power_of_two_at_least

from . import Probe
from .experts import NEARLY_ALL, routed, shared
from .weights import Weights, config

SIZES = {
    "hidden_size": 128,
    "head_dim": 128,
    "q_lora_rank": 128,
    "o_lora_rank": 128,
    "moe_intermediate_size": 128,
    "num_attention_heads": 2,
}
PACKED = {
    "expert_dtype": "fp4",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
    },
}
SHORT = {"tokens": 20, "prompt": 17, "chunks": (7, 1, 12), "schedules": ("oneshot", "cached")}
IN_FP8 = ("wq_a", "wq_b", "wkv", "wo_a", "wo_b")


def pack_fp8(weight: Tensor, block: int = 128) -> tuple[Tensor, Tensor]:
    """[out, in] -> e4m3 codes and E8M0 scales of its tiles (spec 12.1)."""
    rows, columns = weight.shape
    tiles = F.pad(weight.float(), (0, -columns % block, 0, -rows % block))
    tiles = tiles.unflatten(0, (-1, block)).unflatten(2, (-1, block))
    scale = power_of_two_at_least((tiles.abs().amax((1, 3)) / E4M3_MAX).clamp_min(2.0**-100))
    wide = scale.repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :columns]
    return (weight.float() / wide).to(torch.float8_e4m3fn), scale.to(torch.float8_e8m0fnu)


def pack_fp4(weight: Tensor, group: int = 32) -> tuple[Tensor, Tensor]:
    """[out, in] -> two e2m1 codes a byte, the low nibble first, and E8M0 scales of 32 elements (spec 12.3)."""
    groups = weight.float().unflatten(1, (-1, group))
    scale = power_of_two_at_least((groups.abs().amax(-1) / E2M1_MAX).clamp_min(2.0**-100))
    values = (groups / scale[..., None]).flatten(1)
    code = (values.abs()[..., None] - torch.tensor(FP4_VALUES)).abs().argmin(-1)
    code = (code + 8 * (values < 0)).to(torch.uint8).unflatten(1, (-1, 2))
    return (code[..., 0] | code[..., 1] << 4).view(torch.int8), scale.to(torch.float8_e8m0fnu)


def packed(weights: Weights, experts_only: bool = False) -> None:
    """Packed what published checkpoints pack, all else in float32.

    Published checkpoints have bfloat16 there. But MLX's quantised products on the CPU add up in the type of the
    activations: in bfloat16 that is three times the rounding of any other program (mlx-vlm 0.6.3), and no port's fault.
    """
    tensors = {}
    for name, tensor in weights.tensors.items():
        leaf = name.split(".")[-2] if name.endswith(".weight") else ""
        if ".experts." in name or (not experts_only and (".shared_experts." in name or leaf in IN_FP8)):
            pack = pack_fp4 if ".experts." in name else pack_fp8
            tensors[name], tensors[name.removesuffix("weight") + "scale"] = pack(tensor)
        else:
            tensors[name] = tensor
    weights.tensors = tensors


def in_form(probe: Probe, experts_only: bool) -> Probe:
    """Any probe with its weights packed, for ports that take no others."""

    def recipe(weights: Weights) -> None:
        probe.recipe(weights)
        packed(weights, experts_only)

    return replace(probe, config=probe.config | PACKED, recipe=recipe)


def fp8(weights: Weights) -> None:
    """The shared expert alone, in fp8."""
    shared(weights, gain=0.3)
    packed(weights)


def edges(weights: Weights) -> None:
    """Tiles that are not whole have other scales than those before them."""
    shared(weights, gain=0.3)
    weights.change(r".*\.shared_experts\.w[13]\.weight", lambda x: torch.cat((x[:128], x[128:] / 8)))
    weights.change(r".*\.shared_experts\.w2\.weight", lambda x: torch.cat((x[:, :128], x[:, 128:] / 8), 1))
    packed(weights)


def fp4(weights: Weights) -> None:
    """Every routed expert in fp4 beside the shared one."""
    routed(weights, gain=0.3, bias=0.0)
    packed(weights)


PROBES = (
    Probe(
        "weights.fp8",
        "matrices stored in fp8",
        "12.1, 13",
        config(0, **SIZES, **PACKED),
        fp8,
        needs=("experts.shared",),
        **SHORT,
    ),
    Probe(
        "weights.fp8_edges",
        "fp8 matrices with sides that are no multiples of 128",
        "12.1",
        config(0, **SIZES | PACKED | {"moe_intermediate_size": 160}),
        edges,
        needs=("weights.fp8",),
        beyond="sides of published fp8 matrices are multiples of 128",
        **SHORT,
    ),
    Probe(
        "weights.fp4",
        "experts stored in fp4",
        "12.3, 13",
        config(0, **NEARLY_ALL, **SIZES, **PACKED),
        fp4,
        needs=("weights.fp8", "router.scores"),
        **SHORT,
    ),
)
