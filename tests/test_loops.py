"""What the reference does in a loop as one operation on all of it. Run: pytest tests/test_loops.py"""

import numpy as np
import pytest

from parity.gate.diagnosis import patched_logits
from parity.gate.filling import reference
from parity.gate.probes import registry
from parity.lines.locating import stacked
from parity.lines.loops import with_joined
from parity.lines.operations import GIVEN, key_of, recorded


@pytest.fixture(scope="module")
def family():
    return reference(registry()["hc.pre"], 0)


@pytest.fixture(scope="module")
def run(family):
    """What was recorded, and what was joined of it."""
    operations = recorded(lambda: patched_logits(family, "oneshot", []))
    joined = with_joined(operations)
    old = {id(one) for one in operations}
    assert [one for one in joined if id(one) in old] == operations
    return operations, joined, [one for one in joined if id(one) not in old]


def rounds(operations, routed):
    """The silu of every expert, by the call that it was done in."""
    found = {}
    for one in operations:
        outer = next((called for called, _ in one.where if called.function == "MoE.routed"), None)
        if one.short == "silu" and (outer is not None) == routed:
            found.setdefault(outer, []).append(one)
    return [*found.values()]


def together(operations):
    return key_of(np.sort(np.concatenate([one.value for one in operations])))


def test_the_rows_of_all_experts_are_one_array(run):
    operations, joined, new = run
    layers = rounds(operations, routed=True)
    assert layers
    for experts in layers:
        assert len(experts) > 2
        (one,) = (found for found in new if found.key == together(experts))
        assert [*joined].index(one) > [*joined].index(experts[-1])
        assert one.value.size == one.laid.size == sum(each.value.size for each in experts)
        assert one.shape == (sum(each.shape[0] for each in experts), *experts[0].shape[1:])
        (read,) = one.given
        maker = next(found for found in new if found.key == read)
        assert (maker.short, maker.name == GIVEN) == ("mm", False)  # w1 of all experts, without w3 beside it


def test_calls_inside_the_loop_are_one_call_for_all_its_statements(run):
    operations, _, new = run
    (experts, *_) = rounds(operations, routed=True)
    layer = next(called for called, _ in experts[0].where if called.function == "MoE.routed")
    within = [one for one in new if any(called is layer for called, _ in one.where)]
    known = {called for one in operations for called, _ in one.where}
    calls = {called for one in within for called, _ in one.where if called.function == "Expert.forward"} - known
    assert len(calls) == 1
    assert len({one.where[0][1] for one in within if {*calls} & {called for called, _ in one.where}}) > 2


def test_what_leads_to_the_next_round_is_not_joined(run):
    """Layers and the partial sums over experts depend on each other; no port has them in one array."""
    operations, _, new = run
    shared = [one for layer in rounds(operations, routed=False) for one in layer]
    assert len(shared) > 1
    assert together(shared) not in {one.key for one in new}
    assert "index_add_" not in {one.short for one in new}


def test_the_weights_of_all_experts_are_one_array(family):
    names = [name for name in family.tensors if name.startswith("layers.0.ffn.experts.") and name.endswith("w1.weight")]
    assert len(names) > 1
    want = np.stack([family.tensors[name].numpy() for name in names])
    assert any(one.shape == want.shape and (one.numpy() == want).all() for one in stacked(family.tensors))
