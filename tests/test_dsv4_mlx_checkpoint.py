"""Checkpoints as published and as converted become the parameters that the reference reads from the same files.

Run: pytest tests/test_dsv4_mlx_checkpoint.py
"""

import json
import os

import mlx.core as mx
import pytest
import torch
from helpers import sentence, tiny, token_ids, write_folder
from mlx.utils import tree_flatten
from safetensors.torch import save_file

import dsv4_mlx
import reference_torch
from dsv4_checkpoints import Format
from dsv4_mlx.quantization import decode_mlx
from parity.cases.resources import fixtures_path
from parity.cases.strategies import checkpoint_tensors
from parity.judging.sides import from_mlx, to_mlx

GOLDEN = sorted(path.name for path in (fixtures_path() / "golden").iterdir() if path.is_dir())
CONFIG = tiny((0, 4), mtp=0)
TENSORS = checkpoint_tensors(CONFIG, 0, "bfloat16")


def model_of(config=CONFIG):
    return dsv4_mlx.Model(dsv4_mlx.ModelArgs.from_dict(config))


def sanitized(tensors, config=CONFIG):
    model = model_of(config)
    return model, model.sanitize({name: to_mlx(tensor) for name, tensor in tensors.items()})


def same(a: mx.array, b: torch.Tensor) -> bool:
    return torch.equal(from_mlx(a).double(), b.double())


# --- the recorded checkpoints: raw bfloat16, and packed as published ---------------------------------------


@pytest.mark.parametrize("case", GOLDEN)
def test_recorded_checkpoint_is_read_bit_for_bit(case):
    folder = fixtures_path() / "golden" / case
    options = json.loads((folder / "case.json").read_text())["options"]
    model = dsv4_mlx.load(folder, mx.float32, **options)
    reference = reference_torch.load(folder, torch.float32)
    expected = dict(reference.named_parameters())
    found = decoded_parameters(model)
    for path, value in found.items():
        if ".experts." in path:  # stacked here, one by one there
            prefix, matrix = path.removesuffix(".weight").rsplit(".", 1)
            count = reference.config.n_routed_experts
            experts = [expected.pop(f"{prefix}.{expert}.{matrix}.weight") for expert in range(count)]
            assert same(value, torch.stack(experts)), path
        elif path.endswith(".wo_a.weight"):  # a matrix a group here
            assert same(value.flatten(0, 1), expected.pop(path)), path
        else:
            assert same(value, expected.pop(path)), path
    assert not expected
    stored = {path: module.stored for path, module in reference.named_modules() if hasattr(module, "stored")}
    for path, module in model.named_modules():
        if hasattr(module, "stored") and ".compressor." not in path and path not in ("head", "embed"):
            # which of its experts stands for all does not matter: they are stored alike
            one = path.replace(".ffn.experts.w", ".ffn.experts.0.w")
            assert module.stored == stored.get(one, "fp8" if "packed" in case or "native" in case else "float"), path


def test_recorded_checkpoints_are_of_both_kinds():
    kinds = set()
    for case in GOLDEN:
        weights = mx.load(str(fixtures_path() / "golden" / case / "model.safetensors"))
        kinds |= {"packed" if any(name.endswith(".scale") for name in weights) else "raw"}
    assert kinds == {"packed", "raw"}


def test_published_weights_stay_packed():
    model = dsv4_mlx.load(fixtures_path() / "golden" / "flash_packed_exact", mx.float32)
    experts, wkv = model.layers[1].ffn.experts.w1, model.layers[1].attn.wkv
    assert (experts.mode, wkv.mode) == ("mxfp4", "mxfp8")
    assert experts.weight.dtype == wkv.weight.dtype == mx.uint32


# --- folders -----------------------------------------------------------------------------------------------


def parameters(model):
    return dict(tree_flatten(model.parameters()))


def decoded_parameters(model):
    """Those of a model without packed layers."""
    found = parameters(model)
    for path, module in model.named_modules():
        if "scales" in module:
            parts = {leaf: found.pop(f"{path}.{leaf}", None) for leaf in ("weight", "scales", "biases")}
            found[f"{path}.weight"] = decode_mlx(parts, Format(module.mode, module.bits, module.group_size))
    return found


def equal(a, b) -> bool:
    a, b = parameters(a), parameters(b)
    return a.keys() == b.keys() and all(mx.array_equal(a[name], b[name]) for name in a)


def test_type_of_the_config_is_the_default(tmp_path):
    folder = write_folder(tmp_path, CONFIG | {"torch_dtype": "bfloat16"}, TENSORS)
    model = dsv4_mlx.load(folder)
    for path, value in parameters(model).items():
        if mx.issubdtype(value.dtype, mx.floating):
            assert value.dtype == (mx.bfloat16 if model.cast_predicate(path) else mx.float32)


def test_shards_are_one_checkpoint(tmp_path):
    whole = dsv4_mlx.load(write_folder(tmp_path / "whole", CONFIG, TENSORS), mx.float32)
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    weight_map = {name: f"model-0000{index % 3}.safetensors" for index, name in enumerate(TENSORS)}
    for shard in set(weight_map.values()):
        save_file({name: TENSORS[name] for name in TENSORS if weight_map[name] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert equal(dsv4_mlx.load(folder, mx.float32), whole)
    (folder / "model-00001.safetensors").unlink()
    said = sentence(dsv4_mlx.UsageError, dsv4_mlx.load, folder, mx.float32)
    assert said.endswith("names the shard 'model-00001.safetensors', which is not in the folder; fetch it.")


def test_options_of_the_program(tmp_path):
    folder = write_folder(tmp_path, CONFIG, TENSORS)
    model = dsv4_mlx.load(folder, mx.float32, shared_expert_clamp=False)
    assert model.layers[0].ffn.shared_experts.limit == 0
    said = sentence(ValueError, lambda: dsv4_mlx.load(folder, mx.float32, shared_clamp=False))
    assert said == "There is no option shared_clamp."


# --- sanitize ----------------------------------------------------------------------------------------------


def test_sanitize_again_changes_nothing():
    model, once = sanitized(TENSORS)
    twice = model.sanitize(dict(once))
    assert once.keys() == twice.keys()
    assert all(mx.array_equal(once[name], twice[name]) for name in once)
    assert once.keys() == parameters(model).keys()


def test_prefix_of_converted_checkpoints():
    _, plain = sanitized(TENSORS)
    _, prefixed = sanitized({f"model.{name}": tensor for name, tensor in TENSORS.items()})
    assert plain.keys() == prefixed.keys()


def test_mtp_block_that_the_checkpoint_lacks_is_dropped():
    config = tiny((0, 4, 0), mtp=1)
    model, weights = sanitized(TENSORS, config)
    model.load_weights(list(weights.items()), strict=True)
    assert model.mtp == []
    assert model(mx.array(token_ids(CONFIG, 5).numpy())).shape == (1, 5, 48)


def test_mtp_tensors_that_the_config_does_not_count_are_dropped():
    config = tiny((0, 4, 0), mtp=1)
    with_block = checkpoint_tensors(config, 0, "bfloat16")
    assert any(name.startswith("mtp.0.") for name in with_block)
    model, weights = sanitized(with_block)
    assert weights.keys() == parameters(model).keys()


@pytest.mark.parametrize("name", ["embed.weight", "emb.tok_emb.weight", "head.weight"])
def test_copies_of_embedding_and_head_in_the_mtp_block_are_dropped(name):
    config = tiny((0, 4, 0), mtp=1)
    tensors = checkpoint_tensors(config, 0, "bfloat16")
    model, weights = sanitized(tensors | {f"mtp.0.{name}": tensors["embed.weight"]}, config)
    assert weights.keys() == parameters(model).keys()


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("layers.0.hc_attn_fn", "layers.0.hc_attn.fn"),
        ("embed.weight", "model.embed.weight"),
        ("hc_head_scale", "model.hc_head.scale"),
    ],
)
def test_two_spellings_of_one_tensor_are_refused_by_both(name, twin):
    tensors = TENSORS | {twin: TENSORS[name] + 1}
    said = sentence(dsv4_mlx.UsageError, sanitized, tensors)
    assert said == f"The checkpoint holds {name} and {twin}, two spellings of one tensor, which differ; keep one."
    with pytest.raises(reference_torch.CheckpointError):
        reference_torch.build(reference_torch.Config.from_dict(CONFIG), tensors, torch.float32)


# --- folders that are something else ------------------------------------------------------------------------


def refused(folder, config=CONFIG, tensors=TENSORS):
    """What both implementations say of a folder."""
    folder = write_folder(folder, config, tensors)
    return [said_by(load, folder) for load in (dsv4_mlx.load, reference_torch.load)]


def said_by(load, folder):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - of either package's own kind
        load(folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", "?"))
    return str(caught.value)


OFFICIAL = {"dim": 24, "n_layers": 2, "n_heads": 4, "n_mtp_layers": 3, "compress_ratios": [0, 4]}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ([CONFIG], "a JSON object"),
        (OFFICIAL, "config is the official program's own (dim, n_layers, ...); take the config.json"),
        (CONFIG | {"torch_dtype": "int8"}, "torch_dtype"),
        ({**CONFIG, "dtype": "float8_e4m3fn"}, "torch_dtype"),
        (CONFIG | {"n_routed_experts": 10**9}, "n_routed_experts"),
        (CONFIG | {"hc_sinkhorn_iters": 10**9}, "hc_sinkhorn_iters"),
        (CONFIG | {"hidden_size": 2**31 - 1}, "hidden_size"),
        (CONFIG | {"vocab_size": 2**31 - 1}, "vocab_size"),
        (CONFIG | {"vocab_size": 2**24}, "embed.weight"),  # a size that might be, but not of this checkpoint
        (
            CONFIG | {"n_routed_experts": 2**13},
            "layers.0.ffn.gate.weight' has shape (6, 24); the config asks for (8192,",
        ),
    ],
)
def test_what_a_folder_is_instead_is_one_sentence_of_both(tmp_path, config, words):
    for said in refused(tmp_path, config):
        assert words in said


def test_the_type_has_two_names(tmp_path):
    config = {name: value for name, value in CONFIG.items() if name != "torch_dtype"} | {"dtype": "float16"}
    assert dsv4_mlx.load(write_folder(tmp_path, config, TENSORS)).embed.weight.dtype == mx.float16


def test_a_drafter_is_set_aside_by_name(tmp_path):
    """Flash-0731: three stages of a draft model where the published Flash has an MTP block."""
    stages = {f"mtp.{i}.main_proj.weight": torch.zeros(3, 3) for i in range(3)}
    stages["mtp.2.markov_head.weight"] = torch.zeros(3, 3)
    for config in (tiny((0, 4, 0, 0, 0), mtp=3), CONFIG):
        folder = write_folder(tmp_path / str(len(config["compress_ratios"])), config, TENSORS | stages)
        model = dsv4_mlx.load(folder)
        assert dict(model.left_out) == dict.fromkeys(stages, "the drafter of Flash-0731, which is no MTP block")
        assert (model.mtp, len(reference_torch.load(folder).mtp)) == ([], 0)


def test_a_damaged_mtp_block_is_no_drafter(tmp_path):
    config = tiny((0, 4, 0), mtp=1)
    tensors = checkpoint_tensors(config, 0, "bfloat16")
    del tensors["mtp.0.enorm.weight"]
    for said in refused(tmp_path, config, tensors):
        assert "ensor 'mtp.0.enorm.weight' is missing" in said


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("planted", ["pipe", "folder", "circle", "nothing", "garbage"])
def test_a_file_that_is_none(tmp_path, name, planted):
    folder = write_folder(tmp_path / "checkpoint", CONFIG, TENSORS)
    path = folder / name
    path.unlink()
    if planted == "pipe":
        os.mkfifo(path)
    elif planted == "folder":
        path.mkdir()
    elif planted == "circle":
        path.symlink_to(path)
    elif planted == "garbage":
        path.write_bytes(b"\x00\xff" * 20)
    for load in (dsv4_mlx.load, reference_torch.load):
        assert name in said_by(load, folder)


@pytest.mark.parametrize("shard", ["../elsewhere.safetensors", "/elsewhere.safetensors", "model.bin", 3])
def test_an_index_stays_in_its_folder(tmp_path, shard):
    folder = write_folder(tmp_path / "checkpoint", CONFIG, TENSORS)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"embed.weight": shard}}))
    said = sentence(dsv4_mlx.UsageError, dsv4_mlx.load, folder)
    assert any(why in said for why in ("outside the folder", "no safetensors file", "names no file"))


def test_a_path_is_said_as_it_was_given(tmp_path, monkeypatch):
    path = write_folder(tmp_path / "given", CONFIG, TENSORS) / "model.safetensors"
    os.truncate(path, path.stat().st_size - 100)
    monkeypatch.chdir(tmp_path)
    assert sentence(dsv4_mlx.UsageError, dsv4_mlx.load, "given").startswith("given/model.safetensors is cut short: ")


def test_a_truncated_file(tmp_path):
    path = write_folder(tmp_path, CONFIG, TENSORS) / "model.safetensors"
    os.truncate(path, path.stat().st_size - 100)
    sentence(dsv4_mlx.UsageError, dsv4_mlx.load, tmp_path)


# --- experts -------------------------------------------------------------------------------------------------


def test_expert_that_is_missing():
    tensors = {name: value for name, value in TENSORS.items() if ".1.ffn.experts.5.w2" not in name}
    said = sentence(dsv4_mlx.UsageError, sanitized, tensors)
    assert said == "Tensor 'layers.1.ffn.experts.5.w2.weight' is missing; the config asks for shape (24, 20)."


def test_experts_of_two_formats():
    name = "layers.1.ffn.experts.0.w1"
    packed = torch.ones(TENSORS[f"{name}.weight"].shape).to(torch.float8_e4m3fn)
    scale = torch.full((1, 1), 127, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    said = sentence(dsv4_mlx.UsageError, sanitized, TENSORS | {f"{name}.weight": packed, f"{name}.scale": scale})
    assert said == "The experts of layers.1.ffn.experts.w1 are stored in more than one format."


@pytest.mark.parametrize("shape", [(2, 1), (1, 2)])
def test_scales_of_another_shape(shape):
    name = "layers.1.attn.wq_a"
    packed = torch.ones(TENSORS[f"{name}.weight"].shape).to(torch.float8_e4m3fn)
    said = sentence(
        dsv4_mlx.UsageError, sanitized, TENSORS | {f"{name}.weight": packed, f"{name}.scale": torch.ones(shape)}
    )
    rows, columns = packed.shape
    size = f"fp8 weights of shape {(rows, columns)} need (1, 1)."
    assert said == f"Tensor '{name}.scale' has shape {shape}; {size}"


def test_missing_and_unexpected_tensors_are_refused():
    model, weights = sanitized(TENSORS)
    for changed in ({**weights, "x": mx.zeros(2)}, {k: v for k, v in weights.items() if k != "norm.weight"}):
        with pytest.raises(ValueError, match="parameters"):
            model.load_weights(list(changed.items()), strict=True)
