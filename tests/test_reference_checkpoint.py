"""What a checkpoint may hold, how it is decoded, and each way in which it does not fit, with its sentence.

Run: pytest tests/test_reference_checkpoint.py
"""

import pytest
import torch
from helpers import sentence, tiny, token_ids, write_folder

from parity.cases.strategies import checkpoint_tensors
from reference_torch import CheckpointError, Config, Options, build, load

CONFIG = tiny((0, 4), mtp=0, hidden_size=32, moe_intermediate_size=32)
TENSORS = checkpoint_tensors(CONFIG, 0, "bfloat16")
WQ_A, W1 = "layers.1.attn.wq_a", "layers.1.ffn.experts.0.w1"
TABLE = "layers.0.ffn.gate.tid2eid"


def e8m0(*shape, byte=127):
    return torch.full(shape, byte, dtype=torch.uint8).view(torch.float8_e8m0fnu)


def packed_fp8(name, byte=127):
    rows, columns = TENSORS[f"{name}.weight"].shape
    codes = torch.full((rows, columns), 0.5).to(torch.float8_e4m3fn)
    return {f"{name}.weight": codes, f"{name}.scale": e8m0(-(-rows // 128), -(-columns // 128), byte=byte)}


def packed_fp4(name, byte=127):
    rows, columns = TENSORS[f"{name}.weight"].shape
    codes = torch.full((rows, columns // 2), 0x21, dtype=torch.int8)
    return {f"{name}.weight": codes, f"{name}.scale": e8m0(rows, columns // 32, byte=byte)}


def made(dtype=torch.float32, without=(), options=None, **changed):
    tensors = {name: value for name, value in (TENSORS | changed).items() if name not in without}
    return build(Config.from_dict(CONFIG), tensors, dtype, options)


def refusal(without=(), **changed) -> str:
    return sentence(CheckpointError, lambda: made(without=without, **changed))


# --- what is right -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_matrices_take_the_type_and_the_rest_stays_wide(dtype):
    wide = torch.promote_types(dtype, torch.float32)
    narrow = set()
    for name, parameter in made(dtype).named_parameters():
        if parameter.dtype != torch.int64:
            assert parameter.dtype in (dtype, wide)
            if parameter.dtype == dtype:
                narrow.add(name.split(".")[-2])
    if dtype is torch.bfloat16:
        experts = {"w1", "w2", "w3"}
        attention = {"wq_a", "wq_b", "wkv", "wo_a", "wo_b", "weights_proj"}
        assert narrow == {"embed", "gate"} | experts | attention


def test_compressor_projections_and_head_stay_wide():
    model = made(torch.bfloat16)
    compressor = model.layers[1].attn.compressor
    for parameter in (compressor.wkv.weight, compressor.wgate.weight, compressor.ape, model.head.weight):
        assert parameter.dtype is torch.float32


def test_packed_weights_decode_and_say_how_they_were_stored():
    """0x21 is the codes 1 and 2, so 0.5 and 1.0; the scale's byte 128 doubles."""
    model = made(**packed_fp8(WQ_A, byte=128), **packed_fp4(W1, byte=128))
    wq_a, w1 = model.layers[1].attn.wq_a, model.layers[1].ffn.experts[0].w1
    assert (wq_a.stored, w1.stored, model.layers[0].attn.wq_a.stored) == ("fp8", "fp4", "float")
    assert torch.equal(wq_a.weight, torch.ones_like(wq_a.weight))
    assert w1.weight[0, :4].tolist() == [1, 2, 1, 2]


def test_float_scales_of_the_base_checkpoints():
    scale = torch.full((1, 1), 0.3)
    model = made(**packed_fp8(WQ_A) | {f"{WQ_A}.scale": scale})
    assert model.layers[1].attn.wq_a.weight[0, 0] == 0.5 * scale.item()


def test_folder_is_the_same_as_its_tensors(tmp_path):
    folder = write_folder(tmp_path, CONFIG, TENSORS)
    ids = token_ids(CONFIG, 9)
    assert torch.equal(load(folder)(ids), made()(ids))


def test_int32_tables_are_tables():
    ids = token_ids(CONFIG, 9)
    assert torch.equal(made(**{TABLE: TENSORS[TABLE].int()})(ids), made()(ids))


def test_simulation_changes_the_logits_of_packed_weights():
    packed = packed_fp8(WQ_A)
    ids = token_ids(CONFIG, 9)
    simulated = made(options=Options(quantization_simulation="published"), **packed)
    assert not torch.equal(simulated(ids), made(**packed)(ids))


# --- what is wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("embed.weight", (48, 32)),
        ("layers.0.hc_attn_fn", (24, 128)),  # under its raw name, not the module's
        ("hc_head_scale", (1,)),
        ("layers.1.attn.indexer.compressor.ape", (4, 64)),
        (TABLE, (48, 2)),
    ],
)
def test_missing(name, shape):
    assert refusal(without=[name]) == f"tensor '{name}' is missing; the config asks for shape {shape}."


@pytest.mark.parametrize(
    "name",
    ["layers.2.attn_norm.weight", "layers.1.ffn.gate.tid2eid", "layers.1.attn.wo_c.weight", "x"],
)
def test_unexpected(name):
    expected = f"tensor '{name}' belongs to no part of this model; does the config fit the checkpoint?"
    assert refusal(**{name: torch.zeros(2)}) == expected


@pytest.mark.parametrize("name", [f"{WQ_A}.weight", "layers.0.hc_ffn_base", TABLE])
def test_wrong_shape(name):
    shape = tuple(TENSORS[name].shape)
    expected = f"tensor '{name}' has shape (3, 5); the config asks for {shape}."
    assert refusal(**{name: torch.zeros(3, 5).to(TENSORS[name].dtype)}) == expected


@pytest.mark.parametrize(("pack", "owner", "stored"), [(packed_fp8, WQ_A, "fp8"), (packed_fp4, W1, "fp4")])
class TestPacked:
    def test_scale_missing(self, pack, owner, stored):
        said = refusal(**{f"{owner}.weight": pack(owner)[f"{owner}.weight"]})
        assert said == f"tensor '{owner}.weight' is packed as {stored} and its scale '{owner}.scale' is missing."

    def test_scale_of_another_shape(self, pack, owner, stored):
        tensors = pack(owner) | {f"{owner}.scale": e8m0(7, 9)}
        shape = tuple(TENSORS[f"{owner}.weight"].shape)
        grid = tuple(pack(owner)[f"{owner}.scale"].shape)
        # fp4 packs two values a byte; the sentence gives the bytes, as the file has them
        shape = shape if stored == "fp8" else (shape[0], shape[1] // 2)
        expected = f"{stored} weights of shape {shape} need {grid}."
        assert refusal(**tensors) == f"tensor '{owner}.scale' has shape (7, 9); {expected}"

    def test_scale_is_nan(self, pack, owner, stored):
        expected = "decodes to values that are not finite; its scale or data is damaged."
        assert refusal(**pack(owner, byte=255)) == f"tensor '{owner}.weight' {expected}"


def test_code_is_nan():
    tensors = packed_fp8(WQ_A)
    tensors[f"{WQ_A}.weight"].view(torch.uint8)[1, 2] = 0x7F
    expected = "decodes to values that are not finite; its scale or data is damaged."
    assert refusal(**tensors) == f"tensor '{WQ_A}.weight' {expected}"


def test_scale_beside_a_weight_that_is_not_packed():
    said = refusal(**{f"{WQ_A}.scale": e8m0(1, 1)})
    assert said == f"tensor '{WQ_A}.scale' is a scale, but its weight is not packed; remove it or pack the weight."


def test_scale_without_a_weight():
    said = refusal(without=[f"{WQ_A}.weight"], **{f"{WQ_A}.scale": torch.ones(1, 1)})
    assert said == f"tensor '{WQ_A}.weight' is missing; the config asks for shape (12, 32)."


@pytest.mark.parametrize("expert", [-1, 6])
def test_table_names_an_expert_that_is_not_there(expert):
    table = TENSORS[TABLE].clone()
    table[3, 1] = expert
    assert refusal(**{TABLE: table}) == f"tensor '{TABLE}' names an expert outside 0 .. 5."


def test_table_of_floats():
    said = refusal(**{TABLE: TENSORS[TABLE].float()})
    assert said == f"tensor '{TABLE}' has type F32; expert ids must be integers."


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.uint8, torch.int8])
def test_integers_where_numbers_belong(dtype):
    said = refusal(**{"norm.weight": torch.ones(32, dtype=dtype)})
    kind = {torch.int32: "I32", torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8"}[dtype]
    assert said == f"tensor 'norm.weight' has type {kind}; a floating-point type was expected."


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("shape", [(), (32,), (2, 4, 4)])
def test_packed_weight_that_is_no_matrix(dtype, shape):
    weight = torch.ones(shape).to(dtype)
    said = refusal(**{f"{WQ_A}.weight": weight, f"{WQ_A}.scale": torch.ones(1, 1)})
    stored = "fp4" if dtype is torch.int8 else "fp8"
    assert said == f"tensor '{WQ_A}.weight' is packed as {stored} and has shape {shape}; it must be a matrix."
