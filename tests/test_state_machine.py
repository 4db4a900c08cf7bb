"""The state machine finds nothing in a sound cache, and every bug that lives between calls.

Run: pytest tests/test_state_machine.py; with -m slow, 500 sequences of 30 operations
"""

import mlx.core as mx
import pytest
from helpers import tiny
from mlx_lm.models import llama

from parity.defects import Defect, Edit, catalogue
from parity.defects.patching import applied
from parity.sides import MLXSide
from parity.state_machine import Port, check
from parity.strategies import checkpoint_tensors

CONFIG = tiny((0, 4, 8, 128), sliding_window=6)


@pytest.fixture(scope="module")
def port():
    model = MLXSide(CONFIG, {}, checkpoint_tensors(CONFIG, 0, "float32"), "float32").model
    return Port(model, CONFIG["vocab_size"])


def test_nothing_is_found(port):
    check(port, sequences=6)


@pytest.mark.slow
@pytest.mark.parametrize("ratios", [(0, 4, 8, 128), (0, 0), (4, 4), (3, 128, 0), (2, 5)])
@pytest.mark.parametrize("window", [6, 16])
def test_nothing_is_found_in_many_lives(ratios, window):
    config = tiny(ratios, sliding_window=window)
    model = MLXSide(config, {}, checkpoint_tensors(config, 1, "float32"), "float32").model
    check(Port(model, config["vocab_size"]), sequences=500 if (ratios, window) == ((0, 4, 8, 128), 6) else 60)


def test_another_model_under_the_same_contract():
    """mlx-lm's own caches, for a window and without one, and a tolerance that is not ours."""
    args = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4}
    mx.random.seed(0)
    check(Port(llama.Model(llama.ModelArgs("llama", rms_norm_eps=1e-5, vocab_size=48, **args)), 48), sequences=6)


def inline(name, *edits):
    texts = dict.fromkeys(("title", "mechanism", "symptom", "visible", "seen", "formula"), name)
    return Defect(id=name, mlx=tuple(Edit(*edit) for edit in edits), **texts)


# What the catalogue leaves to this test: batches of different lengths, rewinds, copies, files (defects.md).
BUGS = [
    inline(
        "D013 one offset for a ragged batch",
        ("positions", "mx.array(self.starts)[:, None]", "mx.array(self.starts)[:1, None]"),
    ),
    inline(
        "D043 remainder of a ragged batch lost",
        ("pool", "[plan.rows[:, None], plan.index]", "[plan.rows[:, None], mx.maximum(plan.index, ring.size)]"),
    ),
    inline(
        "D045 filter leaves the pools alone",
        (
            "cache",
            "x[chosen] for x in self._arrays()]",
            "x[chosen] if x is self.ring.slots else x[: len(keep)] for x in self._arrays()]",
        ),
    ),
    inline(
        "D046 merge loses the remainder",
        ("cache", "return mx.concatenate(filled, axis=0)", "return mx.concatenate(filled, axis=0) * (length != 24)"),
    ),
    inline(
        "D046 state loses the block ahead",
        (
            "cache",
            "None if x is None else mx.array(x) for x in arrays]",
            "None if x is None else mx.array(x) * (i not in (1, 2)) for i, x in enumerate(arrays)]",
        ),
    ),
    inline(
        "D047 rows of rewound tokens kept",
        (
            "pool",
            "first, end = call.start // self.ratio",
            "first, end = max(call.start, call.rows[0].reach) // self.ratio",
        ),
    ),
    inline("D047 trim grants what is gone", ("cache", "new.reach - new.offset > REWIND", "False")),
    inline(
        "D054 mask of another length",
        ("attention", "mx.arange(-count, call.tokens)", "mx.arange(-count, call.tokens) + (count == self.window - 1)"),
    ),
    inline("D055 unwritten keys in a ragged batch", ("attention", "& (key_at >= 0)", "")),
    inline(
        "D092 caches shared by requests",
        ("model", "return _caches(self.layers)", 'return self.__dict__.setdefault("_kept", _caches(self.layers))'),
    ),
    inline("D096 ring without room for a rewind", ("cache", "Ring(window + REWIND)", "Ring(window)")),
    inline(
        "padding written",
        (
            "positions",
            "for token in range(max(count - size, 0), count)",
            "for token in range(max(self.tokens - size, 0), self.tokens)",
        ),
    ),
    inline(
        "copies share their arrays",
        (
            "cache",
            "return self.from_state(self.state)",
            "made = self.from_state(self.state)\n        made._replace(self._arrays())\n        return made",
        ),
    ),
]
CATALOGUE = """D034 D036 D056 D061 D033 D035 D036-overwritten D037 D038 D043 D044 D048 D050 D055 D055-single D060
D060-relative X004 X011 X048 X049 X050 X054 X063 X064""".split()


def slow_but(*names):
    """Bugs that need many lives, or one sort of many, are looked for with -m slow."""
    return lambda bug, name: pytest.param(bug, id=name, marks=[] if name in names else pytest.mark.slow)


some = slow_but(
    "D013 one offset for a ragged batch", "D046 state loses the block ahead", "D092 caches shared by requests"
)


@pytest.mark.parametrize("bug", [some(bug, bug.id) for bug in BUGS])
def test_bugs_between_calls_are_found(port, bug):
    with applied([bug], "dsv4_mlx"), pytest.raises((AssertionError, ValueError)):
        check(port, sequences=60, shrink=False)


few = slow_but("D034", "D036", "D056", "D061")


@pytest.mark.parametrize("defect", [few(catalogue()[name], name) for name in CATALOGUE if name in catalogue()])
def test_defects_of_the_catalogue_are_found(port, defect):
    with applied([defect], "dsv4_mlx"), pytest.raises(AssertionError, match="rounding explains"):
        check(port, sequences=60, shrink=False)
