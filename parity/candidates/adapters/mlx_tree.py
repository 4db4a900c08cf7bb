"""Driving a port that is an mlx.nn tree: liberal in what it accepts, so that only what it computes is judged."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...judging.taps import wrapped
from . import Target
from .problems import NotOffered

if TYPE_CHECKING:
    from ...lives.limits import Limits
    from ...lives.port import Port

LARGEST_TAP = 4_000_000  # elements


class MLXPort:
    """An adapter whose model is `self.model`; a kind says how it is imported and loaded."""

    taps_tree = "mlx"
    mtp_offered = False

    def __init__(self, target: Target):
        self.target = target
        self.model = None
        self.around = lambda index: nullcontext()  # what surrounds each call; the mutation score puts defects there

    def start(self) -> type:
        self.module = importlib.import_module(self.target.module)
        return classes(self.module)[0]

    def load(self, folder: Path) -> None:
        """By Model, sanitize and strict load_weights, the contract that both libraries' loaders follow."""
        model_class, args_class = classes(self.module)
        config = json.loads((folder / "config.json").read_text())
        model = model_class(args_class.from_dict(config))
        weights = {}
        for shard in sorted(folder.glob("model*.safetensors")):
            weights.update(mx.load(str(shard)))
        if hasattr(model, "sanitize"):
            weights = model.sanitize(weights)
        quantize(model, config, weights)
        model.load_weights(list(weights.items()), strict=True)
        mx.eval(model.parameters())
        self.model = model

    def fresh_cache(self):
        """By the port's make_cache, or the default of mlx-lm for ports that have none."""
        if hasattr(self.model, "make_cache"):
            return self.model.make_cache()
        from mlx_lm.models.cache import make_prompt_cache

        return make_prompt_cache(self.model)

    def run(self, ids: np.ndarray, calls: Sequence[int], cached: bool) -> tuple[np.ndarray, str]:
        if not cached and required(cache_parameter(self.model)):
            raise NotOffered("The candidate does not run without a cache.")
        if cached and not takes_cache(self.model):
            raise NotOffered("The candidate's call takes no cache.")
        cache = self.fresh_cache() if cached else None
        outputs, start = [], 0
        for index, tokens in enumerate(calls):
            with self.around(index):
                outputs.append(self.step(mx.array(ids[:, start : start + tokens]), cache))
            mx.eval(outputs[-1])
            start += tokens
        return joined(outputs)

    def step(self, ids: mx.array, cache) -> mx.array:
        """One call of the model -> what stands for its logits."""
        return logits_of(self.model(ids, **arguments(self.model, cache)))

    def mtp(self, ids: np.ndarray, calls: Sequence[int], cached: bool) -> tuple[np.ndarray, str]:
        """By the port's own `parity_mtp(ids, following, cache)`, where its model has one (docs/gate.md)."""
        hook = getattr(self.model, "parity_mtp", None)
        if hook is None:
            raise NotOffered("The candidate offers no logits of its MTP block.")
        make = getattr(self.model, "make_parity_mtp_cache", self.fresh_cache)
        cache, ids = make() if cached else None, mx.array(ids)
        outputs, start = [], 0
        for index, tokens in enumerate(calls):
            stop = start + tokens
            with self.around(index):
                outputs.append(logits_of(hook(ids[:, start:stop], ids[:, start + 1 : stop + 1], cache)))
            mx.eval(outputs[-1])
            start = stop
        return joined(outputs)

    def living(self, vocabulary: int, limits: Limits) -> Port:
        """Held to one call of its own with a fresh cache: the matrix judges that call, so a life shows caches alone."""
        from ...lives.port import Port

        if not takes_cache(self.model):
            raise NotOffered("The candidate's call takes no cache.")
        if not isinstance(self.fresh_cache(), list):
            raise NotOffered("The candidate keeps no list of caches, which mlx-lm's contract asks for.")
        call = lambda ids, cache: self.step(ids, cache).astype(mx.float32)  # noqa: E731
        return Port(
            self.model,
            vocabulary,
            limits,
            make_cache=self.fresh_cache,
            call=call,
            alone=lambda ids: call(ids, self.fresh_cache()),
        )

    def taps(self, ids: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
        record = []

        def keep(path, kind):
            def wrapper(original):
                def call(*args, **kwargs):
                    output = original(*args, **kwargs)
                    record.append((path, kind, output))
                    return output

                return call

            return wrapper

        cache = self.fresh_cache() if required(cache_parameter(self.model)) else None
        modules = [(path, module) for path, module in self.model.named_modules() if callable(module)]
        with ExitStack() as stack:
            for path, module in modules:
                stack.enter_context(wrapped(module, "", keep(path, type(module).__name__)))
            mx.eval(self.step(mx.array(ids), cache))
        for path, kind, output in record:
            for index, value in enumerate(arrays_of(output)):
                if mx.issubdtype(value.dtype, mx.floating) and value.size < LARGEST_TAP:
                    yield f"{path}#{index}" if index else path, kind, numpy_of(value)


def quantize(model: nn.Module, config: dict, weights: dict[str, mx.array]) -> None:
    """As both libraries' loaders do it: modules whose scales are there, in the format that the config names."""
    told = config.get("quantization")
    if not isinstance(told, dict) or "bits" not in told:
        return

    def chosen(path: str, module: nn.Module):
        if path in told:
            return told[path]
        return hasattr(module, "to_quantized") and f"{path}.scales" in weights

    nn.quantize(model, told["group_size"], told["bits"], mode=told.get("mode", "affine"), class_predicate=chosen)


def classes(module) -> tuple[type, type]:
    """The model class and that of its arguments, by the names that mlx-lm and mlx-vlm look for."""
    model_class = getattr(module, "Model", None)
    args_class = getattr(module, "ModelArgs", None) or getattr(module, "ModelConfig", None)
    if model_class is None or args_class is None:
        raise AttributeError(f"{module.__name__} has no Model with a ModelArgs or ModelConfig")
    return model_class, args_class


def parameters_of(model) -> list[inspect.Parameter]:
    """What the model's call takes after the ids."""
    return list(inspect.signature(type(model).__call__).parameters.values())[2:]


def cache_parameter(model) -> inspect.Parameter | None:
    """The parameter that takes the cache, by its name."""
    named = {parameter.name: parameter for parameter in parameters_of(model)}
    likely = [name for name in named if "cache" in name or name == "past_key_values"]
    return named.get("cache", named[likely[0]] if likely else None)


def takes_cache(model) -> bool:
    """Whether the call has a parameter for it, or takes whatever it is given."""
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters_of(model))
    return anything or cache_parameter(model) is not None


def required(parameter: inspect.Parameter | None) -> bool:
    """Whether a call without it fails."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return parameter is not None and parameter.default is parameter.empty and parameter.kind in kinds


def arguments(model, cache) -> dict[str, object]:
    """The cache under its name, and None for whatever else the model's call insists on."""
    given = {parameter.name: None for parameter in parameters_of(model) if required(parameter)}
    if cache is not None:
        parameter = cache_parameter(model)
        given[parameter.name if parameter is not None else "cache"] = cache
    return given


def arrays_of(output) -> list[mx.array]:
    """The arrays of what a module returned."""
    if isinstance(output, mx.array):
        return [output]
    if isinstance(output, (tuple, list)):
        return [value for value in output if isinstance(value, mx.array)]
    return []


def logits_of(output) -> mx.array:
    """The logits of an array, an object or a dict with `logits`, or a tuple that starts with them."""
    if isinstance(output, dict):
        output = output.get("logits")
    output = getattr(output, "logits", output)
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, mx.array):
        raise TypeError(f"the model returned {type(output).__name__} instead of logits")
    return output


def numpy_of(value: mx.array) -> np.ndarray:
    """In float32, whatever the dtype: numpy has no bfloat16."""
    return np.array(value.astype(mx.float32))


def joined(outputs: list[mx.array]) -> tuple[np.ndarray, str]:
    """Logits of all calls along the tokens, and the dtype that they had."""
    dtype = str(outputs[0].dtype).removeprefix("mlx.core.")
    return np.concatenate([numpy_of(output) for output in outputs], axis=1), dtype


@contextmanager
def without_torch() -> Iterator[None]:
    """Import mlx-lm as on a machine without torch, which it does not need and which takes seconds."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None
    try:
        yield
    finally:
        del sys.modules["torch"]


def put_first(root: str) -> None:
    """Let modules be found in this folder before all others."""
    if root and root not in sys.path:
        sys.path.insert(0, root)
