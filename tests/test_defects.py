"""The catalogue of defects: its files say what they should, both patches of a defect are the same maths, nothing stays.

Run: pytest tests/test_defects.py
"""

import importlib
import json
from functools import cached_property
from pathlib import Path

import pytest
import torch
from helpers import sentence, tiny, token_ids
from safetensors.torch import load_file

from parity.cases import resources
from parity.cases.strategies import checkpoint_tensors
from parity.gate.defects import FOLDER, PATCHES, DefectError, catalogue, read_folder
from parity.gate.defects.patching import Conflict, applied, compatible, edited
from parity.judging import oracle
from parity.judging.rounding import OtherRounding
from parity.judging.sides import MLXSide, TorchSide
from parity.judging.tolerance import measure
from parity.pairs import registry

DEFECTS = list(catalogue().values())
BY_ID = catalogue()
WITH_REFERENCE = [defect for defect in DEFECTS if defect.reference]
ROUNDING_ONLY = [defect for defect in DEFECTS if not defect.reference]
BLOCKS = BY_ID["D063-blocks"]  # shows from 4,352 tokens on, and has a test of its own


def config(ratios=(0, 4, 8), **changed):
    """Window, rows of both kinds and more of them than the indexer takes, YaRN's ramp, both eps, the clamps, few
    Sinkhorn steps: all of it matters within 26 tokens."""
    scaling = {
        "type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 64,
        "beta_fast": 4,
        "beta_slow": 1,
    }
    near = {"hc_eps": 3e-2, "rms_norm_eps": 1e-2, "hc_sinkhorn_iters": 3, "swiglu_limit": 1.0}
    return tiny(ratios, **near | {"rope_theta": 100.0, "compress_rope_theta": 500.0, "rope_scaling": scaling} | changed)


class Run:
    """One model and its tokens in certain calls, on either side; the logits, and those of the MTP block beside them."""

    def __init__(self, raw, calls, batch=1, cached=True, tensors=None, **options):
        self.config, self.calls, self.cached, self.options = raw, calls, cached, options
        self.tensors = tensors or checkpoint_tensors(raw, 0, "float32")
        self.ids = token_ids(raw, sum(calls) + 1, batch)

    def side(self, kind, dtype):
        return kind(self.config, self.options, self.tensors, dtype)

    @torch.no_grad()
    def logits(self, side):
        drafts = bool(self.config["num_nextn_predict_layers"])
        state = side.model_state() if self.cached else None
        mtp_state = side.mtp_state() if self.cached and drafts else None
        found, start = [], 0
        for tokens in self.calls:
            ids, following = (side.integers(self.ids[:, at : at + tokens]) for at in (start, start + 1))
            streams = side.model.streams(ids, state)
            parts = [side.model.logits(streams)]
            if drafts:
                parts.append(side.model.mtp_logits(streams, following, mtp_state))
            found.append(torch.cat([side.tensor(part) for part in parts], -1))
            start += tokens
        return torch.cat(found, 1)

    def with_other_rounding(self, side, dtype):
        found = []
        for seed, sequential in enumerate(oracle.NULLS[dtype]):
            with OtherRounding(seed, sequential):
                found.append(self.logits(side))
        return found

    @cached_property
    def built(self):
        """The exact side; its model exists before any defect comes, unless defects reach the decoding of weights."""
        side = self.side(TorchSide, "float64")
        assert side.model
        return side

    @cached_property
    def exact(self):
        return self.logits(self.built)

    @cached_property
    def exact_nulls(self):
        return self.with_other_rounding(self.built, "float64")

    @cached_property
    def nulls(self):
        """How far rounding to float32 moves the sound reference."""
        return [null - self.exact for null in self.with_other_rounding(self.side(TorchSide, "float32"), "float32")]

    def shows(self, logits) -> bool:
        return measure(self.exact, self.exact, self.exact_nulls, logits, "float64").ratio > 1

    def patched(self, defects):
        """The exact logits of the reference with these defects."""
        with applied(defects, "reference_torch"):
            return self.logits(self.side(TorchSide, "float64") if self is RUNS["packed"] else self.built)

    def candidate(self, defects, dtype="float32"):
        with applied(defects, "dsv4_mlx"):
            return self.logits(self.side(MLXSide, dtype))

    def agree(self, defects, exact, got) -> bool:
        """Is `got` the float32 of `exact`, by the sound reference's rounding, or else by that of the patched one?"""
        baseline = exact.float()
        if measure(exact, baseline, [exact + null for null in self.nulls], got, "float32").ratio <= 1:
            return True
        with applied(defects, "reference_torch"):
            side = self.side(TorchSide, "float32")
            baseline, nulls = self.logits(side), self.with_other_rounding(side, "float32")
        return measure(exact, baseline, nulls, got, "float32").ratio <= 1


def packed():
    folder = resources.fixtures_path() / "golden" / "flash_packed_exact"
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


PACKED, PACKED_TENSORS = packed()
RUNS = {
    "oneshot": Run(config((0, 4, 8, 0), mtp=1), (26,), cached=False),
    # Tokens one by one before the window is full, at the end of blocks of 4 and of 8, and after the ring has wrapped.
    "calls": Run(config(), (2, 1, 1, 3, 1, 9, 1, 1, 6, 1), batch=2),
    "softmax": Run(config(scoring_func="softmax"), (26,)),
    "release": Run(config(), (26,), shared_expert_clamp=False),
    "published": Run(config(), (26,), quantization_simulation="published"),
    "eps": Run(config((4,), rms_norm_eps=1.0, index_topk=2), (61,)),
    "packed": Run(PACKED, (9,), tensors=PACKED_TENSORS),
    "packed, published": Run(PACKED, (5,), tensors=PACKED_TENSORS, quantization_simulation="published"),
}
SPECIAL = {
    "D075-softmax": "softmax",
    "D106": "softmax",
    "D076-always": "release",
    "D031": "published",
    "D062": "published",
    "X094": "packed, published",
    "X096": "eps",
}


def run_for(defect) -> Run:
    if defect.mechanism.startswith("weights") and defect.id not in SPECIAL:
        return RUNS["packed"]
    in_one_call = defect.schedules == ("oneshot",) or defect.mechanism == "mtp"
    return RUNS[SPECIAL.get(defect.id, "oneshot" if in_one_call else "calls")]


def by_id(defects):
    return pytest.mark.parametrize("defect", defects, ids=lambda defect: defect.id)


# --- the patches -------------------------------------------------------------------------------------------


@by_id([defect for defect in WITH_REFERENCE if defect is not BLOCKS])
def test_both_patches_show_and_mean_the_same(defect):
    run = run_for(defect)
    exact = run.patched([defect])
    assert run.shows(exact)
    assert run.agree([defect], exact, run.candidate([defect])) == bool(defect.mlx)


@by_id(ROUNDING_ONLY)
def test_a_patch_of_rounding_shows_in_its_type_only(defect):
    run = RUNS["calls"]
    assert defect.only == "bfloat16"
    assert torch.equal(run.candidate([defect]), run.candidate([]))
    assert not torch.equal(run.candidate([defect], "bfloat16"), run.candidate([], "bfloat16"))


@by_id([d for d in WITH_REFERENCE if d.schedules and not {*d.schedules} & {"oneshot", "cached"}])
def test_what_needs_several_calls_or_sequences_is_invisible_in_one(defect):
    run = RUNS["oneshot"]
    assert torch.equal(run.patched([defect]), run.exact)
    assert torch.equal(run.candidate([defect]), run.candidate([]))


@by_id([defect for defect in WITH_REFERENCE if defect.schedules == ("oneshot",)])
def test_what_needs_the_absence_of_a_cache_is_invisible_with_one(defect):
    run = RUNS["calls"]
    assert torch.equal(run.patched([defect]), run.exact)
    assert torch.equal(run.candidate([defect]), run.candidate([]))


def test_rows_by_blocks_are_chosen_alike():
    """Keys of 1,160 rows are put into the states, so that three tokens suffice."""
    raw = config((4,), index_topk=200)
    tensors = checkpoint_tensors(raw, 0, "float32")
    random = torch.Generator().manual_seed(0)
    start, dim = 4640, raw["index_head_dim"]
    keys = torch.randn(1, start // 4, dim, generator=random)
    x, qr = (torch.randn(1, 3, raw[size], generator=random) for size in ("hidden_size", "q_lora_rank"))

    @torch.no_grad()
    def chosen(kind, dtype, defects):
        with applied(defects, kind.package.__name__):
            side = kind(raw, {}, tensors, dtype)
            state = side.indexer_state(4)
            if kind is TorchSide:
                state.rows = side.array(keys)
            else:
                state.store = side.array(keys.mT)
            indexer = side.model.layers[0].attn.indexer
            picks = indexer(side.array(x), side.array(qr), start, side.frequencies(4), state)
        return [{*row.tolist()} for row in side.tensor(picks)[0]]

    sound, patched = chosen(TorchSide, "float64", []), chosen(TorchSide, "float64", [BLOCKS])
    assert chosen(MLXSide, "float32", []) == sound
    assert chosen(MLXSide, "float32", [BLOCKS]) == patched
    assert all(a != b and len(a) == len(b) for a, b in zip(sound, patched, strict=True))


def test_the_comparison_tells_similar_defects_apart():
    run, near, other = RUNS["calls"], BY_ID["D019-rows-last"], BY_ID["D019-rows-first"]
    assert not run.agree([near], run.patched([near]), run.candidate([other]))
    assert not run.agree([near], run.patched([near]), run.candidate([]))


def test_ten_at_once():
    ids = "D002 D005 D009-scores D016 D017 D026 D028-dropped D033 D051-plain-late D075-scale"
    defects = [BY_ID[id] for id in ids.split()]
    run = RUNS["calls"]
    exact = run.patched(defects)
    assert run.agree(defects, exact, run.candidate(defects))
    assert torch.equal(exact, run.patched(defects[::-1]))
    assert not run.agree(defects, exact, run.candidate(defects[1:]))


def test_what_two_defects_share_counts_once():
    both = [BY_ID["D052"], BY_ID["D050-cacheless"]]
    assert {*both[0].reference} & {*both[1].reference}
    run = RUNS["oneshot"]
    assert run.agree(both, run.patched(both), run.candidate(both))


@pytest.mark.parametrize("package", PATCHES)
def test_the_package_is_restored(package):
    modules = [importlib.import_module(f"{package}.{path.stem}") for path in sources(package)]
    before = snapshot(modules)
    for defect in DEFECTS:
        with applied([defect], package):
            assert (snapshot(modules) != before) == bool(defect.edits(package))
        assert snapshot(modules) == before
    for raised in (KeyboardInterrupt, ValueError):
        with pytest.raises(raised), applied([BY_ID["D016"]], package):
            raise raised
        assert snapshot(modules) == before


def sources(package):
    return sorted(Path(importlib.import_module(package).__file__).parent.glob("[a-z]*.py"))


def snapshot(modules):
    """The code and defaults of every function and method of these modules."""
    found = {}
    for module in modules:
        scopes = [vars(module), *(vars(kind) for kind in vars(module).values() if isinstance(kind, type))]
        for scope in scopes:
            for value in scope.values():
                if hasattr(value, "__code__") and value.__module__ == module.__name__:
                    found[module.__name__, value.__qualname__] = value.__code__, value.__defaults__
    return found


def test_conflicts_raise_and_change_nothing():
    both = [BY_ID["D010"], BY_ID["D010-sign"]]
    assert not compatible(both)
    assert not compatible(both, "dsv4_mlx")
    with pytest.raises(Conflict, match=r"edit the same text of reference_torch/attention\.py"), applied(both, PACKAGE):
        pass
    assert compatible([BY_ID["D010"], BY_ID["D016"]])
    assert torch.equal(RUNS["oneshot"].patched([]), RUNS["oneshot"].exact)


PACKAGE = "reference_torch"


def test_edited_gives_the_text_of_what_changes():
    files = edited([BY_ID["D016"], BY_ID["D010"]], PACKAGE)
    assert sorted(files) == ["attention.py", "hyper_connection.py"]
    assert '"bskj,bsjd->bskd"' in files["hyper_connection.py"]


# --- the files ---------------------------------------------------------------------------------------------


def test_the_catalogue_is_the_folder():
    assert len(DEFECTS) == len([*FOLDER.glob("*.toml")]) >= 110
    assert list(catalogue()) == sorted(catalogue())


def test_no_two_defects_are_the_same():
    for package in PATCHES:
        patches = [frozenset(defect.edits(package)) for defect in DEFECTS if defect.edits(package)]
        assert len({*patches}) == len(patches)
    assert len({defect.title for defect in DEFECTS}) == len(DEFECTS)


def test_pairs_exist_and_formulas_are_ascii():
    assert {name for defect in DEFECTS for name in defect.pair} <= {*registry()}
    assert all(defect.formula.isascii() for defect in DEFECTS)


GOOD = (FOLDER / "d016_comb_not_transposed.toml").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace('"D016"', '"D017"'), "has the id 'D017'"),
        (GOOD.replace('"D016"', '"d016"'), "has the id 'd016'"),
        (GOOD.replace("title =", "titel ="), "unknown key 'titel'"),
        (GOOD.replace("symptom =", "# symptom ="), "no text 'symptom'"),
        (GOOD.replace('"hc.comb"', '"hc.combs"'), "has the mechanism 'hc.combs'"),
        (GOOD.replace("pair =", 'schedules = ["prefill"]\npair ='), "has the schedules"),
        (GOOD.replace("pair =", 'only = "float16"\npair ='), "has only = 'float16'"),
        (GOOD.replace("[[mlx]]", "[[reference]]"), "needs either [[mlx]] or mlx_reason"),
        (GOOD.replace("pair =", 'mlx_reason = "x"\npair ='), "needs either [[mlx]] or mlx_reason"),
        (GOOD.replace("new =", "now =", 1), "an edit that is not exactly file, old and new"),
        (GOOD.replace('"', "", 1), "is not TOML"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, text, said):
    assert text != GOOD
    (tmp_path / "d016_comb.toml").write_text(text)
    assert said in sentence(DefectError, read_folder, tmp_path)


def test_an_id_stands_once(tmp_path):
    for name in ("d016_a", "d016_b"):
        (tmp_path / f"{name}.toml").write_text(GOOD)
    assert "the id D016 of another file" in sentence(DefectError, read_folder, tmp_path)


@pytest.mark.parametrize("old", ["sum_j", "not in the file"])
def test_a_place_that_is_not_one_is_refused(tmp_path, old):
    (tmp_path / "d016_comb.toml").write_text(GOOD.replace("""'"bsjk,bsjd->bskd"'""", f'"{old}"'))
    (defect,) = read_folder(tmp_path).values()
    with pytest.raises(DefectError, match="quote one place"), applied([defect], PACKAGE):
        pass
