"""`parity fixture`, `parity inspect` and `python -m dsv4_mlx convert` as a user meets them.

Run: pytest tests/test_checkpoint_commands.py
"""

import json
import subprocess
import sys

import mlx.core as mx
import mlx_lm
import pytest
import torch

import dsv4_mlx
import reference_torch
from dsv4_checkpoints import FAMILIES
from dsv4_mlx.__main__ import convert
from dsv4_mlx.registration import MODULE
from parity import cli
from parity.cases.resources import fixtures_path
from parity.jobs.fixture import VARIANTS


def run(capsys, *arguments):
    """(exit code, standard output, standard error) of parity."""
    code = cli.main([str(one) for one in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def folder(capsys, tmp_path):
    code, out, _ = run(capsys, "fixture", "--family", "F1", tmp_path / "published")
    assert (code, out.strip()) == (0, str(tmp_path / "published"))
    return tmp_path / "published"


# --- fixture and inspect ----------------------------------------------------------------------------------------


def test_several_families_at_once(capsys, tmp_path):
    document = tmp_path / "written.json"
    code, out, _ = run(
        capsys, "fixture", "--family", "F3", "F5", "--shards", 2, "--no-mtp", tmp_path / "all", "--json", document
    )
    assert code == 0
    written = json.loads(document.read_text())["written"]
    assert [one["family"] for one in written] == ["F3", "F5"]
    assert out.split() == [one["folder"] for one in written]
    for one in written:
        code, out, _ = run(capsys, "inspect", one["folder"], "--json", "-")
        found = json.loads(out)
        assert (code, found["family"], found["mtp_blocks"], found["problems"]) == (0, one["family"], 0, [])
        assert found["files"] == 2


def test_inspect_says_what_a_folder_is(capsys, folder):
    code, out, _ = run(capsys, "inspect", folder)
    assert code == 0
    for words in ("F1, published (deepseek-ai)", "fp8, experts fp4", "4 layers, 1 MTP block", "transformers 5.10.1"):
        assert words in out
    assert len(out.splitlines()) < 40


def test_inspect_of_a_recording(capsys):
    code, out, _ = run(capsys, "inspect", fixtures_path() / "golden" / "flash_exact")
    assert (code, "plain numbers" in out) == (0, True)


def test_inspect_lists_what_does_not_load(capsys, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"num_hidden_layers": 5, "compress_ratios": [0, 0, 4, 128, 4, 0]})
    )
    code, out, _ = run(capsys, "inspect", folder)
    assert code == 2
    assert "does not load: tensor 'layers.4.hc_attn_fn' is missing; the config asks for shape (24, 256)." in out
    assert "more problems" in out


def test_inspect_says_what_is_left_out(capsys, folder):
    config = json.loads((folder / "config.json").read_text())
    told = {"num_nextn_predict_layers": 0, "compress_ratios": config["compress_ratios"][:4]}
    (folder / "config.json").write_text(json.dumps(config | told))
    code, out, _ = run(capsys, "inspect", folder)
    assert code == 0
    assert "tensors: of an MTP block that the config does not count" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "nowhere"], "nowhere cannot be read: No such file or directory."),
        (["fixture", "--family", "F9", "x"], "--family does not know 'F9'"),
        (["fixture", "--size", "huge", "x"], "--size does not know 'huge'"),
        (["fixture", "--config", "nowhere.json", "x"], "nowhere.json cannot be read"),
        (["fixture", "--shards", "0", "x"], "--shards is 0; give a number from 1 to 1000."),
        (["fixture", "--family", "F1"], "Name the new folder"),
        (["fixture", "--config", "official", "x"], "official program's own"),
    ],
)
def test_what_is_wrong_is_one_sentence(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    official = fixtures_path() / "checkpoints" / "flash-0731.inference_config.json"
    arguments = [str(official) if one == "official" else one for one in arguments]
    code, out, said = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in said
    assert len(said.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(capsys, folder):
    before = sorted(path.name for path in folder.iterdir())
    code, _, said = run(capsys, "fixture", "--family", "F2", folder)
    assert (code, "exists already" in said) == (2, True)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_full_disk(capsys, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mx, "save_safetensors", full)
    code, _, said = run(capsys, "fixture", "--family", "F2", tmp_path / "new")
    assert (code, "No space left on device" in said) == (3, True)
    assert list(tmp_path.iterdir()) == []


def test_help_teaches():
    helped = {}
    for command in ("fixture", "inspect"):
        done = subprocess.run([sys.executable, "-m", "parity", command, "--help"], capture_output=True, text=True)
        assert (done.returncode, "examples:" in done.stdout) == (0, True)
        helped[command] = done.stdout
    assert {*VARIANTS} <= {*helped["fixture"].split()}


def test_the_page_has_every_family():
    page = (fixtures_path().parent / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    assert all(f"\n| {family} | " in page for family in FAMILIES)


# --- convert ----------------------------------------------------------------------------------------------------


def converted(folder, *arguments):
    new = folder.parent / f"new{len(list(folder.parent.iterdir()))}"
    convert(["--model", str(folder), "--mlx-path", str(new), *arguments])
    return new


def settings(folder):
    return json.loads((folder / "config.json").read_text())["quantization"]


def test_a_4_bit_conversion_generates_through_mlx_lm(folder, capsys, monkeypatch):
    """The seed's list: a short-prefix 4-bit conversion, through `mlx_lm` as it is."""
    new = converted(folder, "-q", "--q-bits", "4", "--family", "F3")
    monkeypatch.setitem(sys.modules, MODULE, None)
    dsv4_mlx.register()
    model, tokenizer = mlx_lm.load(str(new))
    assert model.layers[1].attn.wo_a.bits == 4
    text = mlx_lm.generate(model, tokenizer, [2, 3, 7, 12, 30, 4], max_tokens=8)
    ids = [2, 3, 7, 12, 30, 4]
    ours = dsv4_mlx.load(new)
    for _ in range(8):
        ids.append(ours(mx.array([ids]))[0, -1].argmax().item())
    assert text.split() == [f"w{i}" for i in ids[6:]]


@pytest.mark.parametrize("variant", ["F1", "F1-base", "F2", "F2-2bit-DQ", "F2-3d", "F2-nvfp4", "F3", "F4", "F5", "F8"])
def test_every_family_loads_through_mlx_lm(capsys, tmp_path, monkeypatch, variant):
    run(capsys, "fixture", "--family", variant, tmp_path / "new")
    monkeypatch.setitem(sys.modules, MODULE, None)
    dsv4_mlx.register()
    model, _ = mlx_lm.load(str(tmp_path / "new"))
    ids = mx.array([[2, 3, 7, 12, 30, 4]])
    assert mx.array_equal(model(ids), dsv4_mlx.load(tmp_path / "new")(ids))


def test_settings_without_a_quant_method_load_through_mlx_lm(capsys, tmp_path, monkeypatch):
    """oMLX #1421: a KeyError in mlx-lm, were it not told."""
    run(capsys, "fixture", "--family", "F2", tmp_path / "new")
    path = tmp_path / "new" / "config.json"
    config = json.loads(path.read_text())
    del config["quantization"]
    path.write_text(json.dumps(config))
    monkeypatch.setitem(sys.modules, MODULE, None)
    dsv4_mlx.register()
    model, _ = mlx_lm.load(str(tmp_path / "new"))
    assert model.layers[0].attn.wq_a.bits == 8


def test_recipes_of_mlx_lm(folder, capsys):
    new = converted(folder, "-q", "--quant-predicate", "mixed_2_6")
    told = settings(new)
    assert (told["bits"], told["lm_head"]["bits"]) == (2, 6)
    assert "layer 3 (5 of 6" in capsys.readouterr().err
    dsv4_mlx.load(new)


def test_a_recipe_file_and_back(folder, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"*.experts.*.w2": {"bits": 3}, "*": "keep"}))
    new = converted(folder, "--recipe", str(recipe))
    assert settings(new)["model.layers.0.ffn.switch_mlp.down_proj"] == {"group_size": 64, "bits": 3, "mode": "affine"}
    plain = converted(new, "--dequantize", "--dtype", "float32")
    assert "quantization" not in json.loads((plain / "config.json").read_text())
    packed, decoded = (dict(reference_torch.load(one).named_parameters()) for one in (new, plain))
    three_bits = {name for name in packed if ".experts." in name and name.endswith(".w2.weight")}
    for name, value in packed.items():
        # MLX adds a code's product and its bias in one rounding, the reference in two; all other formats are exact.
        one_rounding = torch.finfo(torch.float32).eps * value.abs().max() if name in three_bits else 0
        assert (decoded[name] - value).abs().max() <= one_rounding, name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-q", "-d"], "Choose one of"),
        (["--quant-predicate", "mixed_2_6"], "needs -q"),
        (["-q", "--q-bits", "7"], "7 bits in groups of 64, which affine does not have"),
        (["--recipe", "nowhere.json"], "nowhere.json is no recipe"),
    ],
)
def test_options_that_cannot_be(folder, capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        converted(folder, *arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in folder.parent.iterdir()] == ["published"]


# --- mlx-lm's commands on what they cannot use --------------------------------------------------------------------


def generated(folder):
    command = [sys.executable, "-m", "dsv4_mlx", "generate", "--model", str(folder), "--prompt", "w7 w12"]
    done = subprocess.run([*command, "--max-tokens", "2"], capture_output=True, text=True)
    return done.returncode, done.stderr.strip().splitlines()[-1], "Traceback" in done.stderr


def test_a_tokenizer_that_transformers_cannot_load_is_one_sentence(folder):
    """Rapid-MLX #168."""
    for path in folder.glob("tokenizer*"):
        path.unlink()
    code, said, traceback = generated(folder)
    assert (code, traceback) == (2, False)
    assert "cannot load the tokenizer (" in said


def test_a_config_that_does_not_fit_is_one_sentence(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"n_routed_experts": 8', '"n_routed_experts": 9'))
    code, said, traceback = generated(folder)
    assert (code, traceback) == (2, False)
    assert said.endswith("Tensor 'layers.0.ffn.gate.weight' has shape (8, 64); the config asks for (9, 64).")
