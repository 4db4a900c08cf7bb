"""The errors of a device are found: those of emulated ones, at their size and nowhere else; and this CPU's are small.

Run: pytest tests/test_devices.py
"""

import json
from functools import cache

import jsonschema
import mlx.core as mx
import numpy as np
import pytest
from emulated_devices import EMULATED

from parity.devices.measuring import figure, inputs, measure, on_device, rounded, ulp
from parity.devices.primitives import Exact, primitives
from parity.devices.results import LARGEST, Calibration, Device, Figure, document
from parity.report.document import schema

PRIMITIVES = {one.name: one for one in primitives()}
DEVICE = Device("cpu", "a chip", "a system", "", ("a.so",), "0.32.4")


@cache
def figures_of(name):
    """Of an emulated device, or of this CPU."""
    if name == "cpu":
        return measure(mx.cpu)[0]
    with EMULATED[name].on():
        return measure(mx.cpu)[0]


@cache
def put_into(name, key):
    """What an emulated device adds to a primitive in one type, as a figure."""
    return EMULATED[name].error_put_in(PRIMITIVES[key[0]], key[1], inputs(PRIMITIVES[key[0]], key[1]))


# --- the ruler -----------------------------------------------------------------------------------------------


def test_an_ulp_is_the_distance_to_the_next_number():
    x = np.array([1.0, 1.5, -3.0, 2.0**-126, 2.0**-130, 0.0, 3e38]).astype(np.float32)
    assert ulp(x.astype(np.float64), "float32").tolist() == np.abs(np.spacing(x)).tolist()
    assert ulp(np.array([1.0, 2.0**-130]), "bfloat16").tolist() == [2.0**-7, 2.0**-133]


def test_rounding_is_that_of_the_types():
    x = np.random.default_rng(0).standard_normal(1000) * 10.0 ** np.arange(-42, -2).repeat(25)
    assert rounded(x, "float32").tolist() == x.astype(np.float32).tolist()
    narrow = mx.array(rounded(x, "float32").astype(np.float32)).astype(mx.bfloat16).astype(mx.float32)
    assert rounded(rounded(x, "float32"), "bfloat16").tolist() == np.array(narrow).tolist()


def test_the_same_seed_gives_the_same_figures_and_another_gives_others():
    assert measure(mx.cpu)[0] == figures_of("cpu")
    assert measure(mx.cpu, seed=1)[0] != figures_of("cpu")


@pytest.mark.parametrize("name", PRIMITIVES)
def test_an_exact_result_has_no_error_and_one_that_is_off_has_its_size(name):
    primitive = PRIMITIVES[name]
    dtype = primitive.dtypes[0]
    given = inputs(primitive, dtype)
    with np.errstate(all="ignore"):
        exact, magnitude = primitive.truth(Exact(), **given)
    right = figure(primitive, dtype, given, exact)
    assert (right.rms, right.largest, right.absolute, right.count) == (0, 0, 0, exact.size)
    off = 3 * ulp(exact if magnitude is None else magnitude, dtype)
    assert figure(primitive, dtype, given, exact + off).rms == pytest.approx(3, rel=1e-3)
    got = exact.copy()
    got.flat[0] = np.nan
    assert figure(primitive, dtype, given, got).largest == LARGEST


def test_the_truth_of_products_reads_the_package_s_own_format():
    """Quantised numbers by mx.dequantize, which no truth uses."""
    given = inputs(PRIMITIVES["matmul.quantised"], "float32")
    packed = [mx.array(given[name].astype(kind)) for name, kind in (("words", np.uint32), ("scales", np.float32))]
    w = mx.dequantize(*packed, mx.array(given["biases"].astype(np.float32)), group_size=64, bits=4)
    exact, _ = PRIMITIVES["matmul.quantised"].truth(Exact(), **given)
    # Weights rounded to float32, of 0.3 at most, make 8e-7; a wrong step of 4 bits would make 0.03.
    assert np.allclose(given["x"] @ np.array(w).astype(np.float64).T, exact, atol=1e-5)


# --- this CPU ------------------------------------------------------------------------------------------------


def test_this_cpu_computes_what_the_truths_say():
    """A wrong truth is off by far more than any order of summation; rope's angle is one float32 product, whose error
    at the farthest position is 2^-8."""
    for (name, dtype), found in figures_of("cpu").items():
        if name.startswith("rope") and dtype == "float32":
            assert found.absolute < 0.03
        elif name != "subnormals.exp":  # 0 here
            assert found.rms < 50, (name, dtype)
    assert {name for name, _ in figures_of("cpu")} == {*PRIMITIVES}
    assert figures_of("cpu")["cast", "bfloat16"].largest == pytest.approx(0.5, abs=0.01)


def test_what_a_backend_lacks_is_told_and_the_rest_is_measured(monkeypatch):
    def lacking(*arguments, **others):
        raise RuntimeError("[GatherMM::eval_gpu] has no\nimplementation")

    monkeypatch.setattr(mx, "gather_mm", lacking)
    figures, missing = measure(mx.cpu)
    assert missing["matmul.gathered", "float32"] == "RuntimeError: [GatherMM::eval_gpu] has no implementation"
    assert {name for name, _ in figures} == {*PRIMITIVES} - {"matmul.gathered"}


# --- emulated devices ----------------------------------------------------------------------------------------

FAST = [
    (name, "float32") for name in "exp exp.far sigmoid sin cos sin.positions cos.positions rope rope.positions".split()
]
PRODUCTS = [(name, "float32") for name in PRIMITIVES if name.startswith("matmul")]
ATTENTION = [("attention", "float32"), ("attention.row", "float32")]
# Where the error that is put in is what is measured: elsewhere the CPU's own is larger, or a bfloat16 step is.
SEEN = {
    "metal_worst": [*FAST, ("softmax", "float32")],
    "metal_tenth": FAST,
    "tf32": [*PRODUCTS, *ATTENTION],
    "reordered": [*PRODUCTS, *ATTENTION, ("sum", "float32")],
    "flushed": [("subnormals.product", "float32")],
}


@pytest.mark.parametrize("name", EMULATED)
def test_what_was_put_in_is_measured(name):
    """And the CPU's own figure would not do, so that a calibration that saw nothing would be noticed."""
    for key in SEEN[name]:
        put, found = put_into(name, key).rms, figures_of(name)[key].rms
        assert 0.5 <= found / put <= 1.5, (key, put, found)
        assert not 0.5 <= figures_of("cpu")[key].rms / put <= 1.5, key


@pytest.mark.parametrize("name", EMULATED)
def test_nothing_else_is_measured(name):
    """What nothing was put into has the CPU's own figures; where the CPU's error hides it, both add up."""
    cpu = figures_of("cpu")
    assert figures_of(name).keys() == cpu.keys()
    for key, found in figures_of(name).items():
        put = put_into(name, key)
        if put.rms == 0:
            assert found == cpu[key], key
        elif key not in SEEN[name] and key[0] != "subnormals.exp":  # 0 on this CPU
            assert 0.5 <= found.rms / np.hypot(put.rms, cpu[key].rms) <= 1.5, (key, put, found)


def test_errors_have_the_size_that_the_specification_allows():
    """In numbers that stand there, not in those that the emulation computes of itself."""
    worst, tenth, tf32 = (figures_of(name) for name in ("metal_worst", "metal_tenth", "tf32"))
    for name in ("sin", "cos"):
        assert worst[name, "float32"].absolute == pytest.approx(2**-13, rel=0.01)
        assert tenth[name, "float32"].absolute == pytest.approx(2**-13 / 10, rel=0.01)
    # 3 + floor(2|x|) ulps at 16 and at 87
    assert worst["exp", "float32"].largest == pytest.approx(3 + 31, abs=1)
    assert worst["exp.far", "float32"].largest == pytest.approx(3 + 173, abs=1)
    # Two operands rounded to 11 bits: each off by 2^-12 of itself at the most, in the middle by 0.4 of that.
    assert tf32["matmul", "float32"].rms * 2**-24 == pytest.approx(2**0.5 * 0.4 * 2**-11, rel=0.35)


def test_on_ends_where_it_ended():
    before = mx.exp, mx.array.__matmul__, mx.fast.rope, mx.array.sum
    for device in EMULATED.values():
        with pytest.raises(ZeroDivisionError), device.on():
            raise ZeroDivisionError
    assert (mx.exp, mx.array.__matmul__, mx.fast.rope, mx.array.sum) == before


def test_emulated_functions_are_the_package_s_own_but_for_the_error():
    """With every option that ports use: grouped heads, masks, sinks, both layouts of rope, experts in 4 bits."""
    random = np.random.default_rng(0)
    q, k, v = (mx.array(random.standard_normal((2, h, n, 16)).astype(np.float32)) for h, n in ((4, 3), (2, 7), (2, 7)))
    mask = mx.array(random.random((3, 7)) > 0.3)
    sinks = mx.array([0.5, 1.0, -1.0, 2.0])
    options = [{}, {"mask": "causal"}, {"mask": mask}, {"mask": mx.where(mask, 0.0, -5.0)}, {"sinks": sinks}]
    rope = [{"traditional": one, "base": 100.0, "scale": 0.5, "offset": mx.array([3, 9])} for one in (True, False)]
    experts = mx.quantize(mx.array(random.standard_normal((3, 5, 64)).astype(np.float32)), group_size=32, bits=4)
    x, indices = mx.array(random.standard_normal((4, 1, 64)).astype(np.float32)), mx.array([2, 0, 1, 1])

    def all_of_them():
        plain = [
            mx.gather_qmm(x, *experts, rhs_indices=indices, group_size=32, bits=4) / 8,
            mx.addmm(mx.ones(4), x[:, 0], x[:, 0].T / 64),
            (x[:, 0] @ x[:, 0].T).mean(axis=-1) / 64,
            x[:0].mean(axis=-1) @ mx.ones((1, 2)),
            x[:, 0, :0] @ mx.ones((0, 2)) + x[..., :0].sum(axis=-1),
            mx.softmax(x.astype(mx.bfloat16), axis=-1).astype(mx.float32),
        ]
        attended = [mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, **one) for one in options]
        turned = [mx.fast.rope(q, 8, **one) for one in rope]
        return [np.array(x) for x in [*plain, *attended, *turned]]

    right = all_of_them()
    for name in ("metal_tenth", "tf32", "reordered"):
        with EMULATED[name].on():
            for ours, theirs in zip(all_of_them(), right, strict=True):
                assert ours.shape == theirs.shape
                assert np.abs(ours - theirs).max(initial=0) < 5e-3


# --- plain data ----------------------------------------------------------------------------------------------


def test_the_way_through_json():
    calibration = Calibration(DEVICE, figures_of("flushed"), {("sum", "bfloat16"): "RuntimeError: no"})
    text = json.dumps(document([calibration]))
    jsonschema.validate(json.loads(text), schema("dsv4-parity/device/1"))
    again = Calibration.from_dict(json.loads(text)["devices"][0])
    assert again == calibration
    assert again.flushes_subnormals
    assert not Calibration(DEVICE, figures_of("cpu")).flushes_subnormals


@pytest.mark.parametrize(
    "wrong",
    [{"unit": "metres"}, {"rms": float("nan")}, {"rms": -1.0}, {"terms": 1.5}, {"largest": None}, {"rms": True}],
)
def test_a_figure_that_is_none_is_refused(wrong):
    right = {"unit": "result", "terms": 0, "count": 1, "rms": 1.0, "largest": 2.0, "absolute": 1e-7}
    Figure(**right)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Figure(**right | wrong)


def test_a_result_comes_back_as_it_was_computed():
    primitive = PRIMITIVES["subnormals.argument"]
    given = inputs(primitive, "float32")
    assert on_device(primitive, "float32", given, mx.cpu).tolist() == (given["x"] * 2.0**60).tolist()
