"""Damage to the config and to values."""

import math

from damage import HARMLESS, REFUSED, VALUES, kind

# --- the config ------------------------------------------------------------------------------------------------

SIDES = (
    "hidden_size", "n_routed_experts", "vocab_size", "moe_intermediate_size", "q_lora_rank", "head_dim", "o_lora_rank",
    "index_n_heads", "index_head_dim", "num_attention_heads", "hc_mult",
)  # fmt: skip


@kind(REFUSED)
def config_of_another_size(one):
    key = one.random.choice(SIDES)
    one.tell(**{key: one.random.choice([one.told[key] * 2, one.told[key] // 2, one.told[key] + 32])})
    return {key, "ensor '"}


@kind(REFUSED)
def config_of_other_layers(one):
    ratios = one.told["compress_ratios"]
    changed = one.random.choice(
        [
            {"num_hidden_layers": 3},
            {"num_hidden_layers": 3, "compress_ratios": ratios[1:]},
            {"num_hidden_layers": 5, "compress_ratios": [0, *ratios]},
            {"num_hidden_layers": 40, "compress_ratios": [0] * 39 + ratios[3:]},
            {"num_hash_layers": 2},
            {"num_hash_layers": 4},
            {"compress_ratios": [4, *ratios[1:]]},
            {"compress_ratios": [0, 0, 8, *ratios[3:]]},
            {"compress_ratios": [0, 0, 0, *ratios[3:]]},
        ]
    )
    one.tell(**changed)
    return {*changed, "ensor '"}


@kind(REFUSED)
def config_value_that_is_none(one):
    key = one.random.choice(["hidden_size", "num_hidden_layers", "n_routed_experts", "compress_ratios", "rope_scaling"])
    one.tell(**{key: one.random.choice(["64", -1, 1.5, True, 10**30, {"a": 1}])})
    return {key}


@kind(HARMLESS)
def unknown_config_key(one):
    one.tell(**{one.random.choice(["x", "hidden_sizes", "two\nlines", "\x1b[31mred", "long" * 3000]): 1})
    return {"is unknown"}


@kind(REFUSED)
def config_that_is_no_object(one):
    one.config.write_text(one.random.choice(["[]", "null", '"x"', "7", "{", "\x00", "[" * 5000, '{"a": NaN']))
    return {"config"}


@kind(REFUSED, "float", "affine", "mxfp4", "mxfp8", "nvfp4")
def config_of_another_packing(one):
    """Of published packed weights it may say anything: they are repacked."""
    held = [
        (place.name, one.reading.formats[place.name])
        for name, places in one.reading.places.items()
        for place in places
        if one.reading.slots[name].is_matrix and one.reading.formats[place.name].kind not in ("fp8", "fp4")
    ]
    name, how = one.random.choice(sorted(held))
    settings = [{"bits": bits, "group_size": group} for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64)]
    settings += [{"bits": 4, "group_size": 32, "mode": "mxfp4"}, {"bits": 8, "group_size": 32, "mode": "mxfp8"}, False]
    wrong = [
        told
        for told in settings
        if (told and (told.get("mode", "affine"), told["bits"], told["group_size"]) != how) or (not told and how.bits)
    ]
    one.tell(quantization=(one.told.get("quantization") or {}) | {name: one.random.choice(wrong)})
    return {name}


@kind(HARMLESS, "fp8", "fp4")
def config_of_a_packing_that_is_repacked(one):
    name = one.random.choice([name for name, how in one.reading.formats.items() if how.kind in ("fp8", "fp4")])
    one.tell(quantization={name: {"bits": 4, "group_size": 64}})
    return {name}


@kind(REFUSED)
def bits_that_are_none(one):
    bits = one.random.choice(["4", 4.5, 0, -4, 7, None, True, [4], {"a": 1}, 10**400, math.nan, math.inf])
    wrong = one.random.choice([{"bits": bits}, {"bits": 4, "group_size": bits}, {"bits": 4, "mode": bits}])
    where = one.random.choice(["quantization", "module"])
    module = one.random.choice(["lm_head", "two\nlines", "long" * 3000])
    one.tell(quantization=wrong if where == "quantization" else {module: wrong})
    return {"quantises"}


@kind(REFUSED)
def quantization_that_is_no_object(one):
    one.tell(quantization=one.random.choice([[], "4bit", 4, True, False, 0, "", [{"bits": 4}]]))
    return {"quantization"}


# --- values ----------------------------------------------------------------------------------------------------

NOT_FINITE = {"BF16": ["7fc0", "7f80", "ff80"], "F32": ["7fc00000", "7f800000", "ff800000"]}


def _with(one, wanted, item):
    """One element of a wanted tensor replaced by the bytes that `item` gives for its type."""

    def changed(tensor):
        new = item(tensor.dtype)
        at = one.random.randrange(len(tensor.data) // len(new)) * len(new)
        return tensor._replace(data=tensor.data[:at] + new + tensor.data[at + len(new) :])

    return one.change(wanted, changed)


def _no_number(one):
    return lambda dtype: bytes.fromhex(one.random.choice(NOT_FINITE[dtype]))[::-1]


def _holds(one, kinds, leaves):
    """Whether a tensor is one of these leaves of a matrix that is stored in one of these ways."""
    found = set()
    for module, how in one.reading.formats.items():
        if how.kind in kinds:
            found |= {one.reading.names.get(f"{module}.{leaf}") for leaf in leaves}
    return lambda name, tensor: name in found


@kind(VALUES)
def plain_value_not_finite(one):
    return _with(one, lambda name, tensor: tensor.dtype in NOT_FINITE, _no_number(one))


@kind(VALUES, "affine", "float scales")
def float_scale_not_finite(one):
    scales = _holds(one, ("affine", "fp8"), ("scale", "scales", "biases"))
    return _with(one, lambda name, tensor: scales(name, tensor) and tensor.dtype in NOT_FINITE, _no_number(one))


@kind(VALUES, "fp4", "mxfp4", "mxfp8")
def byte_scale_not_a_number(one):
    scales = _holds(one, ("fp4", "fp8", "mxfp4", "mxfp8"), ("scale", "scales"))
    return _with(one, lambda name, tensor: scales(name, tensor) and tensor.dtype == "U8", lambda dtype: b"\xff")


@kind(VALUES, "fp8", "mxfp8", "nvfp4")
def e4m3_code_not_a_number(one):
    codes, scales = _holds(one, ("fp8", "mxfp8"), ("weight",)), _holds(one, ("nvfp4",), ("scales",))
    wanted = lambda name, tensor: codes(name, tensor) or scales(name, tensor)  # noqa: E731
    return _with(one, wanted, lambda dtype: one.random.choice([b"\x7f", b"\xff"]))


@kind(VALUES)
def expert_that_is_not_there(one):
    ids = [one.told["n_routed_experts"], -1, 2**31, 2**32, 2**32 + 1, -(2**63), 2**63 - 1]
    return _with(
        one,
        lambda name, tensor: name.endswith("tid2eid"),
        lambda dtype: one.random.choice(ids).to_bytes(8, "little", signed=True),
    )
