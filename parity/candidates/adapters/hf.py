"""Hugging Face's DeepseekV4ForCausalLM, by from_pretrained."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from . import Target
from .problems import MissingImports, NotOffered
from .stored import all_float32

LARGEST_TAP = 4_000_000  # elements
CACHE_ARGUMENTS = ("cache", "past_key_values")  # its name since transformers 5.24, and before


class Port:
    """A torch.nn tree."""

    taps_tree = "torch"
    mtp_offered = False

    def __init__(self, target: Target):
        self.target = target

    def start(self) -> type:
        import torch
        import transformers

        if not hasattr(transformers, "DeepseekV4ForCausalLM"):
            raise MissingImports("This transformers has no DeepSeek-V4.", ["transformers>=5.10.1"])
        # Tensors are tiny; with one thread the sums are the same on every machine.
        torch.set_num_threads(1)
        transformers.utils.logging.disable_progress_bar()
        self.torch, self.transformers = torch, transformers
        return transformers.DeepseekV4ForCausalLM

    def load(self, folder: Path) -> None:
        """In the checkpoint's dtype, and strictly: from_pretrained itself only warns of what it did not load."""
        self.model, info = self.transformers.DeepseekV4ForCausalLM.from_pretrained(
            folder, dtype=self.torch.float32 if all_float32(folder) else "auto", output_loading_info=True
        )
        wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
        if wrong:
            raise ValueError(f"not every tensor was loaded: {wrong}")
        self.model.eval()

    def fresh_cache(self) -> dict[str, object]:
        """An empty cache, as the keyword argument by which the model takes it."""
        known = inspect.signature(self.model.forward).parameters
        name = next(name for name in CACHE_ARGUMENTS if name in known)
        return {name: self.transformers.DynamicCache(config=self.model.config)}

    def run(self, ids: np.ndarray, calls: Sequence[int], cached: bool) -> tuple[np.ndarray, str]:
        ids = self.torch.from_numpy(ids).long()
        given = {"use_cache": cached} | (self.fresh_cache() if cached else {})
        with self.torch.no_grad():
            outputs = [self.model(piece, **given).logits for piece in ids.split(list(calls), dim=1)]
        logits = self.torch.cat(outputs, dim=1)
        return logits.float().numpy(), str(logits.dtype).removeprefix("torch.")

    def mtp(self, ids: np.ndarray, calls: Sequence[int], cached: bool) -> tuple[np.ndarray, str]:
        raise NotOffered("Hugging Face's model has no MTP block.")

    def living(self, vocabulary: int, limits):
        raise NotOffered("Hugging Face's caches do not keep mlx-lm's contract.")

    def taps(self, ids: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
        record, hooks = [], []
        for path, module in self.model.named_modules():
            keep = lambda module, args, output, path=path: record.append((path, type(module).__name__, output))  # noqa: E731
            hooks.append(module.register_forward_hook(keep))
        try:
            with self.torch.no_grad():
                self.model(self.torch.from_numpy(ids).long(), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        for path, kind, output in record:
            for index, value in enumerate(self._tensors_of(output)):
                if value.is_floating_point() and value.numel() < LARGEST_TAP:
                    yield f"{path}#{index}" if index else path, kind, value.float().numpy()

    def _tensors_of(self, output) -> list:
        if isinstance(output, dict):  # a ModelOutput is one
            output = tuple(output.values())
        if isinstance(output, (tuple, list)):
            return [value for value in output if isinstance(value, self.torch.Tensor)]
        return [output] if isinstance(output, self.torch.Tensor) else []
