"""pytest tests/test_cli.py — the command as a user meets it: exit codes, sentences, documents."""

import json
import os
import shutil
import subprocess
import sys

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file

from parity import cli, environment
from parity.cases.resources import fixtures_path
from parity.cases.strategies import PROFILES, Case
from parity.jobs import search
from parity.jobs.layers import SIZES
from parity.report import document

GOLDEN = fixtures_path() / "golden"
SMALL = "flash_short_exact"


def run(capsys, *arguments):
    """(exit code, standard output, standard error)"""
    code = cli.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def one_sentence(text):
    lines = text.strip().splitlines()
    return len(lines) == 1 and lines[0].startswith("parity: ") and lines[0][-1] in '.?"' and "Traceback" not in text


def test_help_teaches():
    helped = {}
    for command in ((), ("run",), ("golden",)):
        done = subprocess.run([sys.executable, "-m", "parity", *command, "--help"], capture_output=True, text=True)
        assert done.returncode == 0
        helped[command] = done.stdout
    assert all(word in helped[()] for word in ("exit codes", "coverage gap", "error / limit"))
    assert "parity run --pair" in helped["run",]
    assert "fixtures/golden" in helped["golden",]


def test_green_run_writes_a_valid_document(capsys, tmp_path):
    target = tmp_path / "report.json"
    code, out, _ = run(capsys, "run", "--pair", "rope", "--pair", "router", "--json", str(target))
    report = json.loads(target.read_text())
    jsonschema.validate(report, document.schema())
    assert (code, report["exit_code"], report["verdict"]) == (0, 0, "parity")
    assert [(pair["name"], pair["dtype"]) for pair in report["pairs"]] == [
        (name, dtype) for name in ("rope", "router") for dtype in ("float32", "bfloat16")
    ]
    for pair in report["pairs"]:
        assert pair["cases"] == PROFILES["quick"].examples
        for tap in pair["taps"]:
            assert tap["reason"]
            assert tap["limit_rms"] >= tap["floor_rms"] > 0
    assert "parity (exit 0)" in out
    assert "time: import" in out
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_same_seed_same_document(capsys, tmp_path):
    reports = []
    for name in ("a", "b"):
        run(capsys, "run", "--pair", "moe", "--dtype", "bfloat16", "--seed", "3", "--json", str(tmp_path / name))
        reports.append(json.loads((tmp_path / name).read_text()) | {"clock": None})
    assert json.dumps(reports[0]) == json.dumps(reports[1])


def test_golden_document(capsys, tmp_path):
    target = tmp_path / "report.json"
    code, out, _ = run(capsys, "golden", str(GOLDEN / SMALL), "--json", str(target))
    report = json.loads(target.read_text())
    jsonschema.validate(report, document.schema())
    assert code == 0
    assert [result["implementation"] for result in report["golden"]] == ["reference_torch", "dsv4_mlx"]
    assert "Both implementations agree with 1 recorded case on every tap." in " ".join(out.split())


def test_document_on_standard_output(capsys):
    _, out, _ = run(capsys, "run", "--pair", "fp4_weight", "--json", "-")
    jsonschema.validate(json.loads(out), document.schema())


def test_a_case_can_be_run_again(capsys, tmp_path):
    config = SIZES | {"compress_ratios": [4], "num_hidden_layers": 1}
    case = Case(config=config, seed=5, batch=2, chunks=(5, 3, 2), cached=True).to_json()
    target = tmp_path / "report.json"
    code, _, _ = run(
        capsys, "run", "--pair", "compressor.overlap", "--dtype", "float32", "--case", case, "--json", str(target)
    )
    report = json.loads(target.read_text())
    assert code == 0
    assert [(pair["cases"], pair["dtype"]) for pair in report["pairs"]] == [(1, "float32")]


# --- bad command lines -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "--pair", "rop"), "--pair does not know 'rop'; did you mean 'rope'?"),
        (("run", "--profile", "fast"), "--profile does not know 'fast'; known: quick, full, exhaustive."),
        (("run", "--dtype", "float64"), "--dtype does not know 'float64'"),
        (("run", "--case", "{}"), "--case needs --pair"),
        (
            ("run", "--pair", "rope", "--case", "{}"),
            "--case is not a printed example (it must be an object with exactly",
        ),
        (("run", "--pair", "rope", "--case", "nonsense"), "--case is not a printed example"),
        (("golden", ""), "the name of a recorded case is empty"),
        (("run", "--json", "/no/such/folder/report.json"), "cannot be written"),
        (("golden", "no_such_folder"), "no_such_folder is not a folder"),
        (("golden", str(GOLDEN / "README.md")), "no recorded case was given"),
    ],
)
def test_bad_command_line(capsys, arguments, sentence):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert sentence in err
    assert one_sentence(err)


def test_unknown_option_and_missing_command():
    for arguments in ((), ("run", "--fast"), ("judge",), ("run", "--seed", "x")):
        with pytest.raises(SystemExit) as caught:
            cli.main(list(arguments))
        assert caught.value.code == 2


# --- bad recordings ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(GOLDEN / SMALL, tmp_path / SMALL)


def edit_config(**changes):
    def edit(folder):
        path = folder / "config.json"
        raw = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))

    return edit


def edit_tensors(change):
    def edit(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return edit


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def index_outside(folder):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    names = load_file(folder.parent / "model.safetensors")
    weight_map = dict.fromkeys(names, "../model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


WQ_A = "layers.0.attn.wq_a.weight"
BAD = {
    "config key 'swiglu_limt' is unknown; did you mean 'swiglu_limit'?": edit_config(swiglu_limt=1),
    "config key 'hc_eps' is missing": edit_config(hc_eps=...),
    "config key 'num_key_value_heads' is 2; DeepSeek-V4 defines only 1": edit_config(num_key_value_heads=2),
    "config key 'num_experts_per_tok' is 9, more than n_routed_experts=8": edit_config(num_experts_per_tok=9),
    "config key 'compress_ratios' has 3 entries; it needs 4": edit_config(compress_ratios=[0, 4, 0]),
    "config key 'num_attention_heads' is 3, which o_groups=2 does not divide": edit_config(num_attention_heads=3),
    "config key 'hidden_size' is 'big'; it must be an integer": edit_config(hidden_size="big"),
    f"tensor '{WQ_A}' is missing": edit_tensors(lambda tensors: tensors.pop(WQ_A)),
    f"tensor '{WQ_A}' has shape (3, 3); the config asks for (32, 64)": edit_tensors(
        lambda tensors: tensors.update({WQ_A: torch.zeros(3, 3)})
    ),
    "tensor 'layers.0.attn.extra' belongs to no part of this model": edit_tensors(
        lambda tensors: tensors.update({"layers.0.attn.extra": torch.zeros(1)})
    ),
    "is cut short": truncate,
    "is outside the folder": index_outside,
    "case.json cannot be read": lambda folder: (folder / "case.json").unlink(),
    "vectors.safetensors": lambda folder: (folder / "vectors.safetensors").write_bytes(b""),
    "config.json is not valid JSON": lambda folder: (folder / "config.json").write_text("{"),
}


@pytest.mark.parametrize("sentence", BAD)
def test_bad_recording(capsys, tmp_path, folder, sentence):
    BAD[sentence](folder)
    target = tmp_path / "report.json"
    code, _, err = run(capsys, "golden", str(folder), "--json", str(target))
    assert code == 2
    assert sentence in err
    assert one_sentence(err)
    report = json.loads(target.read_text())
    jsonschema.validate(report, document.schema())
    assert (report["verdict"], report["exit_code"]) == ("bad input", 2)


def test_debug_shows_the_traceback(capsys, folder):
    truncate(folder)
    _, _, err = run(capsys, "golden", str(folder), "--debug")
    assert "Traceback" in err


# --- bad environments --------------------------------------------------------------------------------------


def test_tf32_left_on(tmp_path):
    target = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "parity", "run", "--pair", "rope", "--json", str(target)],
        capture_output=True,
        text=True,
        env=os.environ | {"MLX_ENABLE_TF32": "1"},
    )
    assert done.returncode == 3
    assert "MLX_ENABLE_TF32 is set to '1'" in done.stderr
    assert one_sentence(done.stderr)
    assert json.loads(target.read_text())["verdict"] == "environment"


def test_mlx_outside_its_range(capsys, monkeypatch):
    monkeypatch.setattr(environment, "installed_version", lambda name: "0.20.0" if name == "mlx" else "1")
    code, _, err = run(capsys, "run", "--pair", "rope")
    assert code == 3
    assert "mlx" in err
    assert "0.20.0" in err
    assert one_sentence(err)


# --- a candidate that is wrong, or raises ------------------------------------------------------------------


def test_divergence_is_named_shrunk_and_can_be_run_again(capsys, monkeypatch, tmp_path):
    import dsv4_mlx.norm

    right = dsv4_mlx.norm.rms_norm
    monkeypatch.setattr(dsv4_mlx.norm, "rms_norm", lambda x, weight, eps: right(x, weight, eps + 1e-2))
    target = tmp_path / "report.json"
    code, out, _ = run(capsys, "run", "--pair", "rms_norm", "--pair", "attention.window_kv", "--json", str(target))
    report = json.loads(target.read_text())
    jsonschema.validate(report, document.schema())
    assert code == 1
    assert report["finding"]["pair"] == "rms_norm"
    assert "rms_norm is where dsv4_mlx deviates first" in " ".join(out.split())
    parent = next(pair for pair in report["pairs"] if pair["name"] == "attention.window_kv")
    assert parent["because"] == ["rms_norm"]
    failure = next(pair["failure"] for pair in report["pairs"] if pair["failure"])
    assert failure["shrunk"]
    again = failure["reproduce"]
    assert again.startswith("parity run --pair rms_norm --dtype float32 --case '")
    command = again.removeprefix("parity ").split(" ", 6)
    assert run(capsys, *command[:-1], command[-1].strip("'"))[0] == 1
    monkeypatch.undo()
    assert run(capsys, *command[:-1], command[-1].strip("'"))[0] == 0


def test_candidate_that_raises(capsys, monkeypatch):
    import dsv4_mlx.rope

    def broken(*arguments, **options):
        raise RuntimeError("no kernel for this\nshape")

    monkeypatch.setattr(dsv4_mlx.rope, "rotate", broken)
    code, out, _ = run(capsys, "run", "--pair", "rope", "--dtype", "float32")
    assert code == 4
    assert "dsv4_mlx raised RuntimeError: no kernel for this shape" in " ".join(out.split())


def test_candidate_that_raises_everywhere_is_never_our_crash(capsys, monkeypatch, tmp_path):
    """A whole run and a replay of recordings name the exception, with a document, and exit by the verdict."""
    import dsv4_mlx.attention

    def broken(*arguments, **options):
        raise IndexError("rows out of range")

    monkeypatch.setattr(dsv4_mlx.attention, "sink_attention", broken)
    for name, arguments in {"run": ("run", "--dtype", "float32"), "golden": ("golden", str(GOLDEN / SMALL))}.items():
        target = tmp_path / f"{name}.json"
        code, out, _ = run(capsys, *arguments, "--json", str(target))
        report = json.loads(target.read_text())
        jsonschema.validate(report, document.schema())
        assert code == report["exit_code"] == 4
        assert "dsv4_mlx raised IndexError: rows out of range" in " ".join(out.split())
        assert report["finding"] is None or report["finding"]["pair"] == "attention.softmax"


def test_candidate_that_gives_nan(capsys, monkeypatch):
    import mlx.core as mx

    import dsv4_mlx.experts

    monkeypatch.setattr(dsv4_mlx.experts, "swiglu", lambda gate, up, limit: gate * mx.nan)
    assert run(capsys, "run", "--pair", "experts.shared", "--dtype", "bfloat16")[0] == 1


def test_a_reference_that_disagrees_with_itself_stops_the_run(capsys, monkeypatch):
    import reference_torch.compressor

    monkeypatch.setattr(search, "SHRINK_SECONDS", 0.3)
    monkeypatch.setattr(
        reference_torch.compressor.Compressor, "finish", lambda self, rows, blocks, *rest: rows + blocks.sum()
    )
    code, out, _ = run(capsys, "run", "--pair", "rope")
    assert code == 5
    assert "The reference disagrees with itself between one shot and" in " ".join(out.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--json", ""),
        ("golden", str(GOLDEN / SMALL), "--json", " "),
        ("gate", "dsv4_mlx", "--html", ""),
        ("gate", "dsv4_mlx", "--baseline", ""),
        ("gate", "dsv4_mlx", "--bundle", ""),
    ],
)
def test_an_empty_name_asks_for_nothing_and_is_refused(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert ended.value.code == 2
    assert "the name is empty" in capsys.readouterr().err
