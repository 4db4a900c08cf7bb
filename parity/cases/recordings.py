"""A recorded case on disk: config, weights, what went in and what came out (format: the README beside the
recordings)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reference_torch import CheckpointError, Config, ConfigError, Options, build
from reference_torch.config import read_json
from reference_torch.safetensors_folder import read_file, read_folder

from ..errors import BadInput

LAYER_TAP = re.compile(
    r"layers\.(\d+)\.(streams|attn|ffn|router\.weights|router\.experts|compressed_kv|indexer\.compressed|indexer\.rows)"
)
WHOLE_TAPS = ("input_ids", "logits.oneshot", "logits.incremental", "mtp.logits.oneshot")
PROSE = (".md", ".txt", ".rst")


@dataclass(frozen=True)
class Recording:
    """One case. `native` means recorded in bfloat16 with every rounding on: judged by replay and RMS, not tensor by
    tensor."""

    name: str
    raw: dict
    config: Config
    options: Options
    tensors: dict[str, Tensor]
    vectors: dict[str, Tensor]
    native: bool
    prefill: int

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.native else "float32"

    @property
    def simulated(self) -> bool:
        return self.options.quantization_simulation == "published"

    @property
    def ids(self) -> Tensor:
        return self.vectors["input_ids"].long()

    def picks(self) -> dict[str, Tensor]:
        """The recorded decisions, by the path of the module that made them."""
        found = {}
        for layer in range(self.config.num_hidden_layers):
            if f"layers.{layer}.router.experts" in self.vectors and not self.config.is_hash_routed(layer):
                found[f"layers.{layer}.ffn.gate"] = self.vectors[f"layers.{layer}.router.experts"].long()
            if f"layers.{layer}.indexer.rows" in self.vectors:
                found[f"layers.{layer}.attn.indexer"] = self.vectors[f"layers.{layer}.indexer.rows"].long()
        return found


def find(arguments: list[str]) -> list[Path]:
    """The case folders that the arguments name: a case, a folder of cases, or prose beside them, which is passed
    over."""
    folders = []
    if not all(text.strip() for text in arguments):
        raise BadInput("the name of a recorded case is empty; give a folder.")
    for argument in map(Path, arguments):
        try:
            argument.stat()
        except FileNotFoundError:
            pass  # said below
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise BadInput(f"{argument} is no usable path ({reason}); give folders of recorded cases.") from error
        if argument.is_dir():
            inner = sorted(path.parent for path in argument.glob("*/case.json"))
            folders += inner if inner and not (argument / "case.json").exists() else [argument]
        elif not (argument.is_file() and argument.suffix in PROSE):
            raise BadInput(
                f"{argument} is not a folder; give the folders of recorded cases, such as fixtures/golden/flash_exact."
            )
    if not folders:
        raise BadInput(
            "no recorded case was given; give at least one folder with case.json, config.json and the "
            "two safetensors files."
        )
    return folders


def load(folder: Path) -> Recording:
    """Read and check one case: config, weights against the config, vectors. Raises BadInput with one sentence."""
    meta = _case(folder)
    options = Options(**meta["options"])
    try:
        config = Config.load(folder / "config.json")
        tensors = read_folder(folder)
        build(config, tensors, torch.float32, options)
        vectors = read_file(folder / "vectors.safetensors")
    except ConfigError as error:
        raise BadInput(str(error)) from error
    except CheckpointError as error:
        raise BadInput(f"{folder}: {error}" if str(folder) not in str(error) else str(error)) from error
    recording = Recording(
        name=folder.resolve().name,
        raw=_json(folder / "config.json"),
        config=config,
        options=options,
        tensors=tensors,
        vectors=vectors,
        native=str(meta.get("arithmetic", "")).startswith("bfloat16"),
        prefill=meta["incremental"]["prefill"],
    )
    _check_vectors(folder / "vectors.safetensors", recording)
    return recording


def _json(path: Path):
    try:
        return read_json(path)
    except ConfigError as error:
        raise BadInput(f"{str(error).rstrip('.')}; a recorded case needs it.") from error


def _case(folder: Path) -> dict:
    path = folder / "case.json"
    meta = _json(path)
    options = meta.get("options") if isinstance(meta, dict) else None
    if not isinstance(options, dict) or set(options) != {"shared_expert_clamp", "quantization_simulation"}:
        raise BadInput(f"{path} needs 'options' with exactly shared_expert_clamp and quantization_simulation.")
    if not isinstance(options["shared_expert_clamp"], bool):
        raise BadInput(
            f"{path} has options.shared_expert_clamp = {options['shared_expert_clamp']!r}; it must be true or false."
        )
    if options["quantization_simulation"] not in ("none", "published"):
        raise BadInput(
            f"{path} has options.quantization_simulation = {options['quantization_simulation']!r}; it "
            "must be none or published."
        )
    incremental = meta.get("incremental")
    prefill = incremental.get("prefill") if isinstance(incremental, dict) else None
    if isinstance(prefill, bool) or not isinstance(prefill, int) or prefill < 1:
        raise BadInput(f"{path} needs 'incremental' with 'prefill', the number of tokens in the first call.")
    return meta


def _check_vectors(path: Path, recording: Recording) -> None:
    """Names that are known, shapes that fit the config, finite values: a tap that cannot be compared must not pass
    unseen."""
    config, vectors = recording.config, recording.vectors
    for name in ("input_ids", "logits.oneshot", "logits.incremental"):
        if name not in vectors:
            raise BadInput(f"{path} lacks '{name}', which every recorded case needs.")
    ids = vectors["input_ids"]
    if ids.ndim != 2 or ids.numel() == 0 or ids.dtype.is_floating_point:
        raise BadInput(
            f"{path}: 'input_ids' has shape {tuple(ids.shape)} and type {ids.dtype}; integers [batch, "
            "tokens] are needed."
        )
    if int(ids.min()) < 0 or int(ids.max()) >= config.vocab_size:
        raise BadInput(f"{path}: 'input_ids' holds an id outside 0 .. {config.vocab_size - 1}.")
    if recording.prefill > ids.shape[1]:
        raise BadInput(
            f"{path} has {ids.shape[1]} tokens, fewer than the {recording.prefill} that case.json puts "
            "into the first call."
        )
    for name, tensor in vectors.items():
        expected = _shape(name, recording)
        if expected is None:
            raise BadInput(f"{path} holds '{name}', which this config has no place for; it would not be compared.")
        if tuple(tensor.shape) != expected:
            raise BadInput(f"{path}: '{name}' has shape {tuple(tensor.shape)}; the config asks for {expected}.")
        if tensor.dtype.is_floating_point and not torch.isfinite(tensor).all():
            raise BadInput(f"{path}: '{name}' holds values that are not finite.")
        whole = name.endswith((".experts", ".rows")) or name == "input_ids"
        if whole == tensor.dtype.is_floating_point:
            raise BadInput(f"{path}: '{name}' has type {tensor.dtype}.")
        if name.endswith((".experts", ".rows")) and tensor.numel():
            lowest, count = (0, config.n_routed_experts) if name.endswith(".experts") else (-1, ids.shape[1] // 4)
            if int(tensor.min()) < lowest or int(tensor.max()) >= count:
                raise BadInput(f"{path}: '{name}' holds a choice outside {lowest} .. {count - 1}.")
    lacking = [name for name in _promised(recording) if name not in vectors]
    if lacking:
        raise BadInput(f"{path} lacks '{lacking[0]}'; a recorded case holds every tap of every layer.")


def _promised(recording: Recording) -> list[str]:
    """The taps that the format promises for this config."""
    names = []
    for layer in range(recording.config.num_hidden_layers):
        ratio = recording.config.ratio(layer)
        taps = ["streams", "attn", "ffn", "router.weights", "router.experts"]
        if ratio and recording.ids.shape[1] >= ratio:
            taps += ["compressed_kv"] + (["indexer.compressed", "indexer.rows"] if ratio == 4 else [])
        names += [f"layers.{layer}.{tap}" for tap in taps]
    return names


def _shape(name: str, recording: Recording) -> tuple[int, ...] | None:
    """The shape that a tap has under this config, None for a tap that has no place in it."""
    config = recording.config
    batch, tokens = recording.vectors["input_ids"].shape
    if name in WHOLE_TAPS:
        if name == "mtp.logits.oneshot":
            return (batch, tokens - 1, config.vocab_size) if config.num_nextn_predict_layers else None
        return (batch, tokens) if name == "input_ids" else (batch, tokens, config.vocab_size)
    match = LAYER_TAP.fullmatch(name)
    if not match or int(match[1]) >= config.num_hidden_layers:
        return None
    ratio, tap = config.ratio(int(match[1])), match[2]
    if (tap.startswith("indexer") and ratio != 4) or (tap == "compressed_kv" and not ratio):
        return None
    rows = tokens // ratio if ratio else 0
    return {
        "streams": (batch, tokens, config.hc_mult, config.hidden_size),
        "attn": (batch, tokens, config.hidden_size),
        "ffn": (batch, tokens, config.hidden_size),
        "router.weights": (batch, tokens, config.num_experts_per_tok),
        "router.experts": (batch, tokens, config.num_experts_per_tok),
        "compressed_kv": (batch, rows, config.head_dim),
        "indexer.compressed": (batch, rows, config.index_head_dim),
        "indexer.rows": (batch, tokens, min(config.index_topk, rows)),
    }[tap]
