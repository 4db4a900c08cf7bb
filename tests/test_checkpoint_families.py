"""Every family of checkpoints: written, recognised, loaded strictly by both, judged, converted and back.

Run: pytest tests/test_checkpoint_families.py
"""

import json
from types import SimpleNamespace

import mlx.core as mx
import pytest
import torch
from helpers import Judge, sentence, token_ids
from mlx.utils import tree_flatten

import dsv4_mlx
import reference_torch
from dsv4_checkpoints import FAMILIES, CheckpointError, Format, Settings, Stored, read, slots
from dsv4_checkpoints.folder import read_names
from dsv4_mlx.conversion import convert, recipe_of
from parity.cases.resources import fixtures_path
from parity.cases.synthetic import config_of_size
from parity.jobs.fixture import VARIANTS, write_fixture
from parity.judging import oracle
from parity.judging.sides import MLXSide, TorchSide
from reference_torch.quantization import decode_mlx, unpack
from reference_torch.safetensors_folder import read_folder

PUBLISHED = {name: json.loads((fixtures_path() / "configs" / f"{name}.json").read_text()) for name in ("flash", "pro")}
CHECKPOINTS = fixtures_path() / "checkpoints"
PROMPT = 40


def written(folder, variant, size="tiny", shards=1, mtp=True, config="flash"):
    return write_fixture(folder / "checkpoint", PUBLISHED[config], variant, size, shards, mtp)


def config_in(folder):
    return json.loads((folder / "config.json").read_text())


def judged(folder, dtype="float32", tokens=PROMPT):
    """dsv4_mlx's logits and choices on a folder, by the usual rule, against the reference on the decoded weights."""
    config = config_in(folder)
    judge = Judge(config, token_ids(config, tokens), dtype=dtype)
    judge.tensors = read_folder(folder)
    judge.paths = {path: kind for path, kind in judge.paths.items() if not path.startswith("mtp.")}
    replay = oracle.replayable(judge.exact, judge.paths)
    side = MLXSide(config, {}, judge.tensors, dtype)
    run = lambda: {"logits": side.tensor(side.model(side.integers(judge.ids)))}  # noqa: E731
    found = oracle.observe(side, run, judge.paths, replay)
    return oracle.judge(judge.exact, judge.runs[0], judge.runs[1:], found, judge.exact_side.model, dtype)


def agrees(result) -> bool:
    return not result.broken and all(tap.ratio <= 1 for tap in result.taps.values())


# --- every family, every layout ------------------------------------------------------------------------------

LAYOUTS = [
    pytest.param("tiny", 5, True, id="tiny-5-shards"),
    pytest.param("tiny", 1, True, id="tiny", marks=pytest.mark.slow),
    pytest.param("tiny", 5, False, id="tiny-5-shards-no-mtp", marks=pytest.mark.slow),
    pytest.param("tiny", 1, False, id="tiny-no-mtp", marks=pytest.mark.slow),
    *(
        pytest.param("mid", shards, mtp, id=f"mid-{shards}-{mtp}", marks=pytest.mark.slow)
        for shards in (1, 5)
        for mtp in (True, False)
    ),
]


@pytest.mark.parametrize(("size", "shards", "mtp"), LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_family_loads_strictly_and_computes_what_the_reference_computes(tmp_path, variant, size, shards, mtp):
    folder = written(tmp_path, variant, size, shards, mtp)
    assert len(list(folder.glob("*.safetensors"))) == shards
    reading = read(SimpleNamespace(**config_in(folder)), read_names(folder), Settings.of(config_in(folder)))
    assert reading.family.id == variant[:2]
    assert (reading.left_out, reading.mtp_blocks) == ({}, int(mtp))
    model, reference = dsv4_mlx.load(folder, mx.float32), reference_torch.load(folder)
    assert len(model.mtp) == len(reference.mtp) == int(mtp)
    assert not model.left_out
    assert agrees(judged(folder))


@pytest.mark.parametrize("variant", ["F1", "F2", "F2-2bit-DQ", "F5"])
def test_family_in_bfloat16(tmp_path, variant):
    assert agrees(judged(written(tmp_path, variant), "bfloat16"))


def test_pro(tmp_path):
    folder = written(tmp_path, "F2", config="pro")
    assert config_in(folder)["compress_ratios"][:2] == [128, 128]
    assert agrees(judged(folder, tokens=140))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["F1", "F3"])
def test_a_prompt_of_3000_tokens_chooses_among_more_rows_than_512(tmp_path, variant):
    folder = written(tmp_path, variant)
    path = folder / "config.json"
    path.write_text(json.dumps(config_in(folder) | {"index_topk": 512, "sliding_window": 128}))
    assert agrees(judged(folder, tokens=3000))


def test_a_wrong_scale_is_no_parity(tmp_path):
    """The judge of these tests: one scale of one group, doubled on one side alone."""
    folder = written(tmp_path, "F2-4bit")
    config = config_in(folder)
    judge = Judge(config, token_ids(config, PROMPT))
    judge.tensors = read_folder(folder)
    replay = oracle.replayable(judge.exact, judge.paths)
    wrong = {name: value.clone() for name, value in judge.tensors.items()}
    wrong["model.layers.0.attn.wq_a.scales"][0, 0] *= 2
    side = MLXSide(config, {}, wrong, "float32")
    run = lambda: {"logits": side.tensor(side.model(side.integers(judge.ids)))}  # noqa: E731
    found = oracle.observe(side, run, judge.paths, replay)
    assert judge.measure(found.taps["logits"]).ratio > 1


# --- packed weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8])
def test_codes_of_any_width_are_unpacked_as_mlx_packs_them(bits):
    values = mx.random.normal((6, 128), key=mx.random.key(bits))
    weight, scales, biases = mx.quantize(values, 64, bits)
    codes = unpack(torch.tensor(weight.tolist(), dtype=torch.int64).to(torch.uint32), bits)
    plain = mx.dequantize(weight, mx.ones_like(scales), mx.zeros_like(biases), 64, bits)
    assert torch.equal(codes.float(), torch.tensor(plain.tolist()))


@pytest.mark.parametrize(("kind", "bits", "group"), [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)])
def test_the_reference_decodes_what_mlx_decodes(kind, bits, group):
    weight, scales = mx.quantize(mx.random.normal((6, 128), key=mx.random.key(1)), group, bits, mode=kind)
    expected = mx.dequantize(weight, scales, group_size=group, bits=bits, mode=kind).astype(mx.float32)
    words = torch.tensor(weight.tolist(), dtype=torch.int64).to(torch.uint32)
    found = decode_mlx(words, torch.tensor(scales.tolist(), dtype=torch.uint8), None, Format(kind, bits, group))
    assert torch.equal(found, torch.tensor(expected.tolist()))


# --- conversions ---------------------------------------------------------------------------------------------


def values_of(folder):
    """The reference's parameters: every packed weight decoded."""
    return dict(reference_torch.load(folder).named_parameters())


@pytest.mark.parametrize("variant", ["F1", "F1-bfloat16", "F2", "F2-2bit-DQ", "F2-3d", "F3", "F4", "F5", "F8"])
def test_conversion_and_back_bit_for_bit(tmp_path, variant):
    folder = written(tmp_path, variant)
    there = convert(folder, tmp_path / "there", "F3", progress=lambda text: None)
    back = convert(there, tmp_path / "back", "F2", progress=lambda text: None)
    expected = values_of(folder)
    for other, family in ((there, "F3"), (back, "F2")):
        found = values_of(other)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        reading = read(SimpleNamespace(**config_in(other)), read_names(other), Settings.of(config_in(other)))
        assert reading.family.id == family
    assert (back / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    loaded, again = dsv4_mlx.load(there), dsv4_mlx.load(back)
    first, second = (dict(tree_flatten(model.parameters())) for model in (loaded, again))
    assert first.keys() == second.keys()
    assert all(mx.array_equal(first[name], second[name]) for name in first)


def test_published_weights_stay_packed_in_a_conversion(tmp_path):
    there = convert(written(tmp_path, "F1"), tmp_path / "there", "F2", progress=lambda text: None)
    told = Settings.of(config_in(there))
    assert told.default == Format("mxfp8", 8, 32)
    assert told.modules["layers.1.ffn.switch_mlp.gate_proj"] == Format("mxfp4", 4, 32)
    assert told.modules["lm_head"] is None


def test_a_recipe_decides_by_module(tmp_path):
    recipe = {"*.experts.*.w2": {"bits": 3, "group_size": 32}, "lm_head": False, "*attn.w*": "keep", "*": {"bits": 8}}
    there = convert(written(tmp_path, "F1"), tmp_path / "there", "F2", recipe_of(recipe), progress=lambda text: None)
    experts = dsv4_mlx.load(there).layers[1].ffn.experts
    assert [(one.bits, one.group_size, one.mode) for one in (experts.w1, experts.w2)] == [
        (8, 64, "affine"),
        (3, 32, "affine"),
    ]
    settings = config_in(there)["quantization"]
    assert settings["lm_head"] is False
    assert settings["model.layers.0.attn.wkv"]["mode"] == "mxfp8"


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ([], "is a JSON object"),
        ({"*": 4}, "give settings, false"),
        ({"*": {"bits": 7}}, "7 bits in groups of 64, which affine does not have"),
        ({"*": {"mode": "int4"}}, "mode 'int4'"),
    ],
)
def test_a_recipe_that_is_none(recipe, words):
    assert words in sentence(dsv4_mlx.UsageError, recipe_of, recipe)


def test_nothing_is_overwritten(tmp_path):
    folder = written(tmp_path, "F1")
    (tmp_path / "there").mkdir()
    said = sentence(dsv4_mlx.UsageError, convert, folder, tmp_path / "there")
    assert said.endswith("exists already; give the name of a new folder.")


def test_a_conversion_that_fails_leaves_nothing(tmp_path):
    folder = written(tmp_path, "F1")
    before = sorted(tmp_path.iterdir())

    def stop(text):
        raise OSError(28, "No space left on device")

    said = sentence(dsv4_mlx.UsageError, lambda: convert(folder, tmp_path / "there", progress=stop))
    assert said.endswith("cannot be written (No space left on device).")
    assert sorted(tmp_path.iterdir()) == before


# --- a real conversion's names ---------------------------------------------------------------------------------


def small(config):
    """The config with small sides, all layers and all experts but four gone."""
    sides = config_of_size(config, "tiny", mtp=False)
    kept = ("num_hidden_layers", "num_nextn_predict_layers", "compress_ratios", "num_hash_layers", "rope_scaling")
    return sides | {key: config[key] for key in kept if key in config} | {"n_routed_experts": 4}


def real(bits):
    return json.loads((CHECKPOINTS / f"mlx-community-{bits}bit.config.json").read_text())


def tensors_of(names, config, settings):
    """Tensors of a real conversion's names and ranks, packed as its config says, of small sides."""
    attributes = SimpleNamespace(**config)
    found = {}
    for name, slot in slots(attributes, 0):
        for place in FAMILIES["F2"].places(name, config["o_groups"]):
            module = FAMILIES["F2"].written(place.name)
            shape = slot.shape if place.index is None else (config["n_routed_experts"], *slot.shape)
            if f"{module}.scales" in names:
                how = settings.modules.get(place.name, settings.default)
                values = mx.random.normal(shape).astype(mx.bfloat16)
                packed = mx.quantize(values, how.group, how.bits, mode=how.kind)
                found |= {
                    f"{module}.{leaf}": value
                    for leaf, value in zip(("weight", "scales", "biases"), packed, strict=False)
                }
            elif slot.published == "I64":
                found[FAMILIES["F2"].written(place.tensor)] = mx.zeros(shape, dtype=mx.int32)
            else:
                found[FAMILIES["F2"].written(place.tensor)] = mx.random.normal(shape).astype(mx.bfloat16)
    return found


@pytest.mark.parametrize("bits", [4, 8])
def test_all_names_and_settings_of_a_real_conversion(tmp_path, bits):
    names = set(json.loads((CHECKPOINTS / "mlx-community-8bit.keys.json").read_text())["keys"])
    config = real(bits)
    settings = Settings.of(config)
    assert (len(names), len(settings.modules) + 3) == (2481, 644)
    config = small(config)
    found = tensors_of(names, config, settings)
    assert found.keys() == names
    folder = tmp_path / "real"
    folder.mkdir()
    told = config | {"quantization": real(bits)["quantization"], "quantization_config": real(bits)["quantization"]}
    (folder / "config.json").write_text(json.dumps(told))
    mx.save_safetensors(str(folder / "model.safetensors"), found, metadata={"format": "mlx"})
    model = dsv4_mlx.load(folder)
    assert (len(model.layers), len(model.mtp)) == (43, 0)
    packed = {path: Format(m.mode, m.bits, m.group_size) for path, m in model.named_modules() if "scales" in m}
    assert len(packed) == 641
    assert packed["layers.7.ffn.experts.w2"] == Format("mxfp4", 4, 32)
    assert packed["layers.7.attn.wq_b"] == Format("affine", bits, 64)
    assert len(reference_torch.load(folder).layers) == 43


def test_the_published_names_are_reproduced():
    """Spec 13: 69,187 tensors, their types and bytes."""
    config = SimpleNamespace(**PUBLISHED["flash"])
    sizes = {"BF16": 2, "F32": 4, "I64": 8, "fp8": 1, "fp4": 0.5}
    tensors = total = 0
    for _, slot in slots(config):
        count = slot.shape[0] * (slot.shape[1] if len(slot.shape) == 2 else 1)
        packed = slot.published in ("fp8", "fp4")
        tensors, total = tensors + 1 + packed, total + count * sizes[slot.published]
        if packed:
            rows, columns = slot.shape
            total += -(-rows // 128) * -(-columns // 128) if slot.published == "fp8" else rows * columns // 32
    assert (tensors, total) == (69187, 159_609_485_896)


# --- what people reported ---------------------------------------------------------------------------------------


def rewritten(folder, change, **config):
    """The same folder with other tensors, names or settings."""
    tensors = change(mx.load(str(folder / "model.safetensors")))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config_in(folder) | config))
    index = folder / "model.safetensors.index.json"
    index.unlink(missing_ok=True)
    return folder


def loads(folder):
    dsv4_mlx.load(folder)
    return agrees(judged(folder, tokens=12))


def test_raw_names_under_a_format_of_mlx(tmp_path):
    """mlx-vlm #1421."""
    assert loads(rewritten(written(tmp_path, "F1-bfloat16"), dict))


def test_overrides_in_raw_names_and_false(tmp_path):
    """mlx-vlm #1976."""
    folder = written(tmp_path, "F5")
    told = config_in(folder)["quantization"]
    assert told["head"] is False
    assert told["layers.1.ffn.experts.0.w2"]["bits"] == 3
    assert loads(folder)


def test_overrides_under_another_prefix(tmp_path):
    """mlx-vlm #1793: the model's own tree has none."""
    folder = written(tmp_path, "F2")
    told = {
        f"language_model.{name}" if "." in name else name: one
        for name, one in config_in(folder)["quantization"].items()
    }
    assert loads(rewritten(folder, dict, quantization=told, quantization_config=told))


def test_gate_and_up_in_groups_of_another_size(tmp_path):
    folder = written(tmp_path, "F2-2bit-DQ")
    layers = [layer.ffn.experts for layer in dsv4_mlx.load(folder).layers]
    assert [(one.w1.group_size, one.w3.group_size) for one in layers] == [(32, 64), (64, 32)] * 2


def test_settings_under_the_second_name_alone(tmp_path):
    """oMLX #1421: there is no quant_method."""
    folder = written(tmp_path, "F2")
    told = config_in(folder)["quantization"]
    assert loads(rewritten(folder, dict, quantization=None, quantization_config=told))


@pytest.mark.parametrize("twin", [{}, {"layers.0.hc_attn_fn": 0}, {"model.layers.0.hc_attn.fn": 0}])
def test_three_spellings_of_one_thing(tmp_path, twin):
    """oMLX #2145: sometimes two of them in one folder; they may stand if they are equal."""

    def change(tensors):
        tensors["layers.1.hc_ffn_scale"] = tensors.pop("model.layers.1.ffn_hc.scale")
        return tensors | dict.fromkeys(twin, tensors["model.layers.0.attn_hc.fn"])

    folder = rewritten(written(tmp_path, "F2"), change)
    assert loads(folder)
    assert dict(dsv4_mlx.load(folder).left_out) == dict.fromkeys(twin, "another spelling of the same tensor")
    folder = rewritten(folder, lambda tensors: tensors | {name: tensors[name] + 1 for name in twin})
    for load in (dsv4_mlx.load, reference_torch.load) if twin else ():
        with pytest.raises(ValueError, match="two spellings of one tensor, which differ"):
            load(folder)


def test_an_mtp_block_of_another_mode(tmp_path):
    """oMLX #1296: MXFP8 projections beside affine ones have no biases; and the block shares embedding and head."""
    folder = written(tmp_path, "F5")
    model, reference = dsv4_mlx.load(folder, mx.float32), reference_torch.load(folder)
    assert (model.mtp[0].e_proj.mode, model.mtp[0].attn.wkv.mode) == ("mxfp8", "affine")
    config, tensors = config_in(folder), read_folder(folder)
    exact, base = (TorchSide(config, {}, tensors, dtype) for dtype in ("float64", "float32"))
    ids, side = token_ids(config, 12), MLXSide(config, {}, tensors, "float32")
    streams = reference.streams(ids)[:, :-1]
    paths = {path: kind for path, kind in oracle.decision_paths(config).items() if path.startswith("mtp.")}

    def run(side):
        return {"logits": side.tensor(side.model.mtp_logits(side.array(streams), side.integers(ids[:, 1:])))}

    truth = oracle.observe(exact, lambda: run(exact), paths)
    replay = oracle.replayable(truth, paths)
    baseline = oracle.observe(base, lambda: run(base), paths, replay)
    nulls = oracle.null_runs(base, lambda: run(base), paths, replay, "float32", 0)
    found = oracle.observe(side, lambda: run(side), paths, replay)
    assert agrees(oracle.judge(truth, baseline, nulls, found, exact.model, "float32"))


@pytest.mark.parametrize("told", [{"bits": 8, "group_size": 64, "mode": "affine"}, False])
def test_what_the_config_says_of_a_module_must_be_so(tmp_path, told):
    folder = written(tmp_path, "F3")
    folder = rewritten(folder, dict, quantization=config_in(folder)["quantization"] | {"layers.0.attn.wq_a": told})
    for load in (dsv4_mlx.load, reference_torch.load):
        with pytest.raises(ValueError, match=r"onfig says that layers.0.attn.wq_a is stored as"):
            load(folder)


def test_a_default_that_is_not_so_decides_nothing(tmp_path):
    """An early upload of the 8-bit conversion lacked its experts' overrides: the tensors say what they are."""
    folder = written(tmp_path, "F2")
    assert loads(rewritten(folder, dict, quantization={"bits": 8, "group_size": 64}, quantization_config=None))


def test_names_of_no_family():
    config = SimpleNamespace(**config_of_size(PUBLISHED["flash"], "tiny", True))
    said = sentence(CheckpointError, read, config, {"encoder.block.0.weight": Stored("F32", (3, 3))})
    assert said.startswith("the names of the tensors ('encoder.block.0.weight', ...) are of no known family")
