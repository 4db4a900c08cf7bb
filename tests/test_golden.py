"""pytest tests/test_golden.py — recordings of the official program, of other shapes, and wrong ones."""

import functools
import json
import shutil
from unittest import mock

import mlx.core as mx
import pytest
import torch
from recorder import record
from safetensors.torch import load_file, save_file

import dsv4_mlx.hyper_connection
import dsv4_mlx.quantization
import parity.jobs.golden
import reference_torch
from parity.cases.recordings import find, load
from parity.cases.resources import fixtures_path
from parity.errors import BadInput
from parity.jobs.golden import Replay, golden
from parity.jobs.layers import SIZES
from parity.results import Verdict
from reference_torch import Options

GOLDEN = fixtures_path() / "golden"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/case.json"))


def judge(folder):
    return {result.implementation: result for result in Replay(load(folder)).judge(lambda text: None)}


@functools.cache
def official(name):
    """What a recording gives as it is: each is replayed once."""
    return judge(GOLDEN / name)


# `nox -s golden` replays these too.
SLOW = {"flash_exact", "flash_native_bfloat16", "flash_quantized", "pro_exact"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
def test_official_program(name):
    for result in official(name).values():
        assert result.verdict is Verdict.PARITY, result.sentence
        assert len(result.taps) > 10


@pytest.mark.parametrize("name", ["flash_packed_exact", "mtp_exact", pytest.param("pro_exact", marks=pytest.mark.slow)])
def test_exact_recordings_leave_nothing_undecided(name):
    for result in official(name).values():
        assert {tap.undecided for tap in result.taps} == {0.0}
        assert result.ties == 0


def config(**changes):
    merged = SIZES | changes
    return merged | {"num_hidden_layers": len(merged["compress_ratios"]) - merged["num_nextn_predict_layers"]}


WIDE = {"hidden_size": 128, "moe_intermediate_size": 64, "q_lora_rank": 96, "o_lora_rank": 48, "head_dim": 72}
OTHERS = {
    "two streams, ratio 4 first": (
        {"hc_mult": 2, "hc_sinkhorn_iters": 3, "hc_eps": 1e-4, "compress_ratios": [4, 128, 0]}, {}, {},
    ),
    "three streams, window 8, two rows": (
        {"hc_mult": 3, "rms_norm_eps": 1e-5, "sliding_window": 8, "compress_ratios": [128, 4, 4]}, {}, {"batch": 2},
    ),
    "window 128, longer": (
        {"sliding_window": 128, "compress_ratios": [0, 4, 128]}, {}, {"tokens": 280, "prefill": 262},
    ),
    "six heads in three groups": ({"num_attention_heads": 6, "o_groups": 3, "compress_ratios": [4, 0]}, {}, {}),
    "sigmoid": ({"scoring_func": "sigmoid", "compress_ratios": [0, 4]}, {}, {}),
    "softmax": ({"scoring_func": "softmax", "compress_ratios": [0, 4]}, {}, {}),
    "first revision": ({"swiglu_limit": 0.5, "compress_ratios": [0, 4]}, {"shared_expert_clamp": False}, {}),
    "other ratios": ({"compress_ratios": [8, 2, 16]}, {}, {}),
    "mtp": ({"compress_ratios": [0, 4, 0], "num_nextn_predict_layers": 1}, {}, {}),
    "packed": ({"compress_ratios": [0, 4, 128]} | WIDE, {}, {"packed": True}),
    "rounded": ({"compress_ratios": [0, 4, 128], "head_dim": 72}, {"quantization_simulation": "published"}, {}),
    "packed and rounded": (
        {"compress_ratios": [0, 4]} | WIDE, {"quantization_simulation": "published"}, {"packed": True},
    ),
}  # fmt: skip


SLOW_OTHERS = {
    "three streams, window 8, two rows",
    "window 128, longer",
    "rounded",
    "other ratios",
    "softmax",
    "packed",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW_OTHERS)) for name in OTHERS]
)
def test_recordings_of_other_shapes(tmp_path, name):
    changes, options, run = OTHERS[name]
    folder = record(tmp_path / "case", config(**changes), Options(**options), **{"tokens": 140, "prefill": 131} | run)
    for result in judge(folder).values():
        assert result.verdict is Verdict.PARITY, result.sentence


# --- wrong recordings and wrong implementations ------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    """A copy of a recorded case whose vectors `change` may edit."""

    def make(name, change=lambda vectors: None, **config_changes):
        folder = shutil.copytree(GOLDEN / name, tmp_path / name)
        vectors = load_file(folder / "vectors.safetensors")
        change(vectors)
        save_file(vectors, folder / "vectors.safetensors")
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | config_changes))
        return folder

    return make


@pytest.mark.parametrize(
    ("tap", "amount"),
    [
        ("logits.oneshot", 2e-4),
        ("logits.incremental", 5e-4),
        ("mtp.logits.oneshot", 2e-4),
        ("layers.1.attn", 1e-4),
        ("layers.0.ffn", 2e-4),
        ("layers.1.streams", 5e-4),
        ("layers.0.router.weights", 5e-5),
        ("layers.1.compressed_kv", 2e-4),
        ("layers.1.indexer.compressed", 2e-4),
    ],
)
def test_one_wrong_number_is_seen(copy, tap, amount):
    """One element moved by some hundred roundings turns both implementations red, and the tap is named."""
    folder = copy("mtp_exact", lambda vectors: vectors[tap][0, 7].view(-1)[1:2].add_(amount))
    for result in judge(folder).values():
        assert result.verdict is Verdict.DIVERGES
        assert f"'{tap}'" in result.sentence


@pytest.mark.parametrize("tap", ["layers.0.router.experts", "layers.1.router.experts", "layers.1.indexer.rows"])
def test_one_wrong_choice_is_seen(copy, tap):
    def other_choice(vectors):
        row = vectors[tap][0, 45]
        row[0] = next(item for item in range(8) if item not in row)

    for result in judge(copy("mtp_exact", other_choice)).values():
        assert result.verdict is Verdict.DIVERGES
        assert any(tap_result.name == tap and tap_result.ratio > 1 for tap_result in result.taps)


def test_a_noisy_native_recording_is_seen(copy):
    """The recording itself is held to the reference's own error: noise in it does not buy the candidate room."""
    noise = lambda vectors: vectors["layers.1.attn"].add_(torch.randn(vectors["layers.1.attn"].shape) * 0.5)  # noqa: E731
    for result in judge(copy("flash_native_bfloat16", noise)).values():
        assert result.verdict is Verdict.DIVERGES
        assert "the recording's RMS error" in result.sentence


def test_the_other_revision_is_seen(copy):
    folder = copy("clamp_exact")
    case = json.loads((folder / "case.json").read_text())
    case["options"]["shared_expert_clamp"] = False
    (folder / "case.json").write_text(json.dumps(case))
    assert {result.verdict for result in judge(folder).values()} == {Verdict.DIVERGES}


def transposed(self, v, streams, post, comb):
    mixed = comb @ streams.astype(mx.float32)
    return (post[..., None] * v[..., None, :].astype(mx.float32) + mixed).astype(streams.dtype)


WRONG = {
    "hyper-connection by comb": (
        dsv4_mlx.hyper_connection.HyperConnection, "post", transposed, ["flash_exact", "flash_native_bfloat16"],
    ),
    "no KV rounding": (dsv4_mlx.quantization.KVQuant, "__call__", lambda self, x: x, ["flash_quantized"]),
    "no rotation": (dsv4_mlx.quantization, "hadamard", lambda x: x, ["flash_quantized", "flash_native_bfloat16"]),
}  # fmt: skip


# What is judged as recorded, in bfloat16, is held by test_a_noisy_native_recording_is_seen too.
QUICK = {("hyper-connection by comb", "flash_exact")}


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, marks=[pytest.mark.slow] * ((name, case) not in QUICK))
        for name, (*_, cases) in WRONG.items()
        for case in cases
    ],
)
def test_a_wrong_port_is_told_from_a_wrong_recording(name, case):
    owner, attribute, replacement, _ = WRONG[name]
    with mock.patch.object(owner, attribute, replacement):
        results = judge(GOLDEN / case)
    assert results["reference_torch"].verdict is Verdict.PARITY
    assert results["dsv4_mlx"].verdict is Verdict.DIVERGES


# --- what is given on the command line ---------------------------------------------------------------------


def test_a_folder_of_cases_and_prose_beside_them():
    assert [path.name for path in find([str(GOLDEN)])] == CASES
    assert [path.name for path in find([str(GOLDEN / "README.md"), str(GOLDEN / "pro_exact")])] == ["pro_exact"]


def test_report_names_the_first_red_case(copy):
    folder = copy("flash_short_exact", lambda vectors: vectors["logits.oneshot"][0, 3, 5].add_(1e-2))
    report = golden([str(folder)], environment={})
    assert report.verdict is Verdict.DIVERGES
    assert report.sentence.startswith("flash_short_exact: reference_torch and the recording part in")


DAMAGE = {
    "lacks 'logits.oneshot', which every recorded case needs": lambda v: v.pop("logits.oneshot"),
    "lacks 'layers.0.attn'; a recorded case holds every tap": lambda v: v.pop("layers.0.attn"),
    "holds 'layers.9.attn', which this config has no place for": lambda v: v.update({"layers.9.attn": torch.zeros(1)}),
    "'layers.1.attn' has shape (1, 3, 64); the config asks for (1, 7, 64)": lambda v: v.update(
        {"layers.1.attn": torch.zeros(1, 3, 64)}
    ),
    "'layers.0.ffn' holds values that are not finite": lambda v: v["layers.0.ffn"][0, 0].fill_(float("nan")),
    "'input_ids' holds an id outside 0 .. 255": lambda v: v["input_ids"].fill_(256),
    "'layers.0.router.experts' holds a choice outside 0 .. 7": lambda v: v["layers.0.router.experts"].fill_(8),
}


@pytest.mark.parametrize("sentence", DAMAGE)
def test_damaged_vectors(copy, sentence):
    folder = copy("flash_short_exact", DAMAGE[sentence])
    with pytest.raises(BadInput) as caught:
        load(folder)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not valid JSON"),
        ("[]", "needs 'options' with exactly shared_expert_clamp and quantization_simulation"),
        (
            '{"options": {"shared_expert_clamp": 1, "quantization_simulation": "none"}}',
            "shared_expert_clamp = 1; it must",
        ),
        ('{"options": {"shared_expert_clamp": true, "quantization_simulation": "some"}}', "'some'; it must be none or"),
        ('{"options": {"shared_expert_clamp": true, "quantization_simulation": "none"}}', "needs 'incremental' with"),
    ],
)
def test_damaged_case(copy, text, sentence):
    folder = copy("flash_short_exact")
    (folder / "case.json").write_text(text)
    with pytest.raises(BadInput) as caught:
        load(folder)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("vanishing", ["case.json", "config.json", "model.safetensors", "vectors.safetensors"])
def test_a_file_may_vanish_while_the_case_is_read(copy, monkeypatch, vanishing):
    folder = copy("flash_short_exact")
    original = parity.cases.recordings.read_folder

    def last_look(path):
        found = original(path)
        (folder / vanishing).unlink()
        return found

    monkeypatch.setattr(parity.cases.recordings, "read_folder", last_look)
    if vanishing in ("case.json", "model.safetensors"):  # read before
        assert load(folder).name == "flash_short_exact"
        return
    with pytest.raises(BadInput) as caught:
        load(folder)
    assert f"{vanishing} cannot be read" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["norm.weight", "embed.weight", "layers.1.attn.attn_sink"])
def test_weights_that_are_not_finite_are_bad_input(copy, name, value):
    folder = copy("flash_short_exact")
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[1] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput) as caught:
        load(folder)
    assert f"tensor '{name}' holds values that are not finite" in str(caught.value)
    with pytest.raises(dsv4_mlx.UsageError, match=f"Tensor {name} holds values that are not finite"):
        dsv4_mlx.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [slice(None), slice(3, 4)])
def test_where_nothing_is_finite_nothing_agrees(where, value):
    """Whatever makes the reference itself give no numbers, the recording has them, and comparing none is no pass."""

    def spoilt(original):
        def head(self, x, *rest):
            y = original(self, x, *rest)
            keep = [1.0] * y.shape[1]
            keep[where] = [value] * len(keep[where])
            return y * type(y)(keep)[None, :, None] if torch.is_tensor(y) else y * mx.array(keep)[None, :, None]

        return head

    with (
        mock.patch.object(reference_torch.Model, "logits", spoilt(reference_torch.Model.logits)),
        mock.patch.object(dsv4_mlx.Model, "logits", spoilt(dsv4_mlx.Model.logits)),
    ):
        for result in judge(GOLDEN / "clamp_exact").values():
            assert result.verdict is Verdict.DIVERGES
            assert "'logits.oneshot'" in result.sentence
            assert all(tap.ratio > 1 for tap in result.taps if tap.name.startswith("logits"))
            assert not [tap for tap in result.taps if tap.error_rms == float("inf") and tap.ratio == 0]


def test_a_recording_that_hangs_on_roundings_alone_is_not_plainly_green(monkeypatch):
    replay = Replay(load(GOLDEN / "flash_short_exact"))
    replay.judge(lambda text: None)
    for schedule, verdict in (("accumulated", Verdict.PARITY), ("isolated", Verdict.INCONCLUSIVE)):
        tap = next(tap for tap in replay.found["dsv4_mlx"] if tap.schedule == schedule)
        with mock.patch.object(tap, "undecided", 1.0):
            result = replay.result("dsv4_mlx")
        assert result.verdict is verdict
        assert f"but every token of '{tap.name}' ({schedule}) hangs on a rounding" in result.sentence
    assert "hangs" not in replay.result("dsv4_mlx").sentence


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
def test_every_recorded_vector_is_compared(name):
    """No tap passes because nobody looked: each name in the file is among the comparisons of each implementation."""
    recorded = set(load_file(GOLDEN / name / "vectors.safetensors")) - {"input_ids"}
    for result in official(name).values():
        assert recorded <= {tap.name for tap in result.taps}
    assert parity.jobs.golden.IMPLEMENTATIONS == ("reference_torch", "dsv4_mlx")
