"""Probes: in order, complete, clear, and each blind to what the others show.

Run: pytest tests/test_probes.py
"""

import dataclasses
import json

import pytest
import torch

from parity.cases.resources import fixtures_path
from parity.gate.defects import Edit, catalogue
from parity.gate.defects.patching import applied
from parity.gate.diagnosis import patched_logits
from parity.gate.filling import reference
from parity.gate.matrix import judge
from parity.gate.probes import PROFILES, SCHEDULES, Probe, of_profile, registry
from parity.gate.probes.weights import Weights, config
from parity.results import Verdict

KNOWN = catalogue()
QUICK = {probe.mechanism: probe for probe in of_profile("quick")}


def red(mechanism, *ids):
    """Schedules under which the probe sees the reference with these defects, in float64, as a candidate."""
    family = reference(registry()[mechanism], 0)
    defects = [KNOWN[name] for name in ids]
    cells = [judge(family, s, patched_logits(family, s, defects)) for s in family.probe.schedules]
    return {cell.schedule for cell in cells if cell.verdict is Verdict.DIVERGES}


# --- the registry ----------------------------------------------------------------------------------------------


def test_every_need_stands_earlier():
    seen = set()
    for probe in registry().values():
        assert {*probe.needs} <= seen, probe.mechanism
        seen.add(probe.mechanism)


def test_every_probe_says_what_it_is():
    for probe in registry().values():
        assert probe.title
        assert probe.spec
        assert probe.profile in PROFILES
        assert probe.schedules
        assert {*probe.schedules} <= {*SCHEDULES}


def test_profiles_grow():
    sizes = [{p.mechanism for p in of_profile(profile)} for profile in PROFILES]
    assert sizes[0] < sizes[1] < sizes[2] == {*registry()}


@pytest.mark.parametrize("mechanism", registry())
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_calls_add_up(mechanism, schedule):
    probe = registry()[mechanism]
    calls = probe.calls_of(schedule)
    assert sum(calls) == probe.tokens
    assert min(calls) > 0
    assert len(calls) > 1 or schedule in ("oneshot", "cached")


@pytest.mark.parametrize("wrong", [{"chunks": (3, 4)}, {"calls": (3, 4)}])
def test_calls_that_do_not_add_up_are_refused(wrong):
    probe = QUICK["embedding"]
    with pytest.raises(ValueError, match="do not add up to its 12 tokens"):
        dataclasses.replace(probe, **wrong)


def test_a_pattern_that_matches_nothing_is_a_mistake():
    with pytest.raises(ValueError, match="no tensor is called nothing"):
        Weights(config(0), 0).zero("nothing")


# --- the reference runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", QUICK)
def test_choices_are_clear_and_logits_say_something(mechanism):
    family = reference(QUICK[mechanism], 0)
    assert family.clear.double().mean() > 0.9
    assert family.exact.isfinite().all()
    assert family.exact.std() > 1e-3
    other_tokens = (family.exact[0] - family.exact[1]).abs().amax()
    assert other_tokens > 1e-3  # the sequences of a batch are not alike


@pytest.mark.parametrize("mechanism", ["embedding", "indexer.rope", "hc.dynamic", "mtp"])
def test_seeds_draw_other_weights_and_the_same_seed_the_same(mechanism):
    probe = QUICK[mechanism]
    first, again, other = probe.weights(0), probe.weights(0), probe.weights(1000)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("checkpoint", "values = parts[place.leaf] if", "values = 2 * parts[place.leaf] if"),
        ("experts", "self.limit = limit", "self.limit = 77.0"),
    ],
)
def test_a_defect_shows_in_what_a_model_is_built_of(file, old, new):
    """A probe's weights are read once, but not past a defect in how they are read, nor models built past one."""
    family = reference(registry()["embedding"], 0)
    draft = dataclasses.replace(KNOWN["D016"], id="X999", reference=(Edit(file, old, new),))

    def built():
        layer = family.side("float32").model.layers[0]
        return layer.attn.attn_sink.tolist(), layer.attn_norm.weight.tolist(), layer.ffn.shared_experts.limit

    before = built()
    with applied([draft], "reference_torch"):
        assert built() != before
    assert built() == before


def test_a_patched_reference_without_defects_is_the_reference():
    for mechanism in ("attention.window", "hc.comb", "compressor.overlap"):
        assert red(mechanism) == set()


# --- isolation -------------------------------------------------------------------------------------------------

OF_ATTENTION = ("attention.queries", "rope.inverse", "compressor.overlap.ape", "indexer.scores")
OF_EXPERTS = ("experts.shared", "router.scores", "router.choice", "experts.clamp")
OF_STREAMS = ("hc.post", "hc.comb", "hc.sinkhorn", "hc.head")

# Defects of hyper-connections: loud probes drown them. Defects of attention: muted, or not read.
BLIND = {
    "D016": OF_ATTENTION + OF_EXPERTS,
    "D017": OF_ATTENTION + OF_EXPERTS,
    "D019-one-less": OF_ATTENTION + OF_EXPERTS,
    "X026": OF_ATTENTION + OF_EXPERTS,
    "D002": OF_STREAMS + OF_EXPERTS + ("attention.queries", "compressor.overlap.gate"),
    "D010": OF_STREAMS + OF_EXPERTS + ("attention.queries", "rope.scores"),
    "D026": OF_STREAMS + OF_EXPERTS + ("attention.window",),
    "D028-dropped": OF_STREAMS + OF_EXPERTS + ("attention.window",),
    "D030": OF_STREAMS + OF_EXPERTS + ("attention.window", "attention.sink"),
    "X044": OF_STREAMS + OF_EXPERTS,
    "D075-scale": OF_STREAMS + OF_ATTENTION + ("experts.shared", "attention.sink"),
}


@pytest.mark.parametrize("name", BLIND)
def test_a_probe_sees_its_own_defect(name):
    assert red(KNOWN[name].mechanism, name)


@pytest.mark.parametrize(("name", "mechanism"), [(name, other) for name in BLIND for other in BLIND[name]])
def test_a_probe_does_not_see_the_defects_of_others(name, mechanism):
    assert red(mechanism, name) == set()


def test_what_needs_several_calls_shows_only_there():
    assert red("attention.window", "X049") <= {"decode", "batch", "chunks"}
    assert "decode" in red("attention.window", "X049")


def test_a_probe_is_data():
    assert dataclasses.is_dataclass(Probe)
    with pytest.raises(dataclasses.FrozenInstanceError):
        QUICK["embedding"].tokens = 3


# --- what published checkpoints need -----------------------------------------------------------------------------

# What a config says of how a model computes; all else says how large it is, or which of its parts there are.
BEHAVIOUR = (
    "scoring_func",
    "rms_norm_eps",
    "hc_eps",
    "hc_mult",
    "hc_sinkhorn_iters",
    "rope_theta",
    "compress_rope_theta",
    "rope_scaling",
    "qk_rope_head_dim",
    "swiglu_limit",
    "norm_topk_prob",
    "topk_method",
    "hidden_act",
    "n_shared_experts",
)
SIDES = ("vocab_size", "hidden_size", "head_dim", "q_lora_rank", "o_lora_rank", "index_head_dim")
PUBLISHED = json.loads((fixtures_path() / "configs" / "flash.json").read_text())


def unpublished(probe):
    """What of a probe's config no published one has; in how many steps Sinkhorn leaves equal numbers equal is no
    matter."""
    odd = {key for key in BEHAVIOUR if probe.config[key] != PUBLISHED[key]}
    tensors = probe.weights(0)
    still = all(not t.any() for name, t in tensors.items() if name.endswith(("hc_attn_base", "hc_ffn_base", "_fn")))
    if still:
        odd.discard("hc_sinkhorn_iters")
    if probe.config["moe_intermediate_size"] % (128 if probe.mechanism.startswith("weights.") else 64):
        odd.add("moe_intermediate_size")
    return odd | {key for key in SIDES if probe.config[key] % 64}


@pytest.mark.parametrize("mechanism", QUICK)
def test_what_counts_needs_nothing_that_no_published_config_has(mechanism):
    probe = QUICK[mechanism]
    assert bool(unpublished(probe)) == bool(probe.beyond)
