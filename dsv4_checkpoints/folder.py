"""What a folder of safetensors files holds: headers and index, checked before any data is read.

A checkpoint is a stranger's file. Whatever is wrong with it becomes one sentence that names the file and the
tensor and says what to do. Pickle files are never opened.
"""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

from .errors import CheckpointError, shown
from .stored import Stored

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
NUMBERED = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
PICKLED = (".bin", ".pt", ".pth", ".ckpt")

AGAIN = "fetch or convert the checkpoint again"

# The format's own limit. The header of the published Flash, 69,187 tensors, would take 10 MB in one file.
MAX_HEADER = 100_000_000

ELEMENT_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


def read_names(folder: str | Path) -> dict[str, Stored]:
    """Return what the checkpoint in `folder` holds, from the headers alone. Raises CheckpointError."""
    folder = Path(folder)
    names = _list_files(folder)
    listed = _read_index(folder) if INDEX in names else None
    paths = _choose(folder, names) if listed is None else _choose_listed(folder, names, listed)
    found: dict[str, Stored] = {}
    for path in paths:
        for name, stored in read_header(path).items():
            if name in found:
                raise CheckpointError(
                    f"tensor {shown(name)} is in both {found[name].path} and {path}; keep it in one of them."
                )
            if listed is not None and name not in listed:
                raise CheckpointError(f"{path} holds tensor {shown(name)}, which {INDEX} does not list; {AGAIN}.")
            found[name] = stored
    for name, path in (listed or {}).items():
        if name not in found or found[name].path != path:
            where = f"is in {found[name].path}" if name in found else "is not there"
            raise CheckpointError(
                f"{folder / INDEX} puts tensor {shown(name)} in {path.name}, but it {where}; {AGAIN}."
            )
    if not found:
        raise CheckpointError(f"the safetensors files in {folder} hold no tensor; {AGAIN}.")
    return found


# --- which files -------------------------------------------------------------------------------------------


def _list_files(folder: Path) -> list[str]:
    """Return the names in `folder` that make a checkpoint: the single file, numbered shards, the index."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError as error:
        raise CheckpointError(f"the checkpoint folder {folder} does not exist; check the path.") from error
    except NotADirectoryError as error:
        raise CheckpointError(f"{folder} is a file; give the folder that holds the checkpoint.") from error
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be listed ({_line(error)}); check its permissions.") from error
    present = [name for name in names if name in (SINGLE, INDEX) or NUMBERED.fullmatch(name)]
    if present:
        return present
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled:
        raise CheckpointError(
            f"{folder} holds pickle files ({pickled[0]}), which are never opened because they can run code; "
            "convert them to safetensors."
        )
    raise CheckpointError(f"{folder} holds no {SINGLE} and no shards of it; give a checkpoint's folder.")


def _choose(folder: Path, names: list[str]) -> list[Path]:
    """Return the one file or the complete set of numbered shards; there is no index to ask."""
    if names == [SINGLE]:
        return [folder / SINGLE]
    totals = {match[2] for name in names if (match := NUMBERED.fullmatch(name))}
    if SINGLE in names or len(totals) > 1:
        raise CheckpointError(
            f"{folder} holds more than one checkpoint ({names[0]} and {names[-1]}); keep one of them."
        )
    total = totals.pop()
    numbers = {int(NUMBERED.fullmatch(name)[1]) for name in names}
    missing = next((n for n in range(1, int(total) + 1) if n not in numbers), None)
    if missing is not None:
        name = f"model-{missing:0{len(total)}}-of-{total}.safetensors"
        raise CheckpointError(f"{folder} lacks the shard {name}; fetch it.")
    return [folder / name for name in names]


def _choose_listed(folder: Path, names: list[str], listed: dict[str, Path]) -> list[Path]:
    """Return the shards that the index lists; a file that it does not list is of another checkpoint."""
    paths = sorted(set(listed.values()))
    for name in names:
        if name != INDEX and folder / name not in paths:
            raise CheckpointError(f"{folder / name} is not listed in {INDEX}; remove the file or the index.")
    return paths


def _read_index(folder: Path) -> dict[str, Path]:
    """Return the shard of every tensor that the index lists, each inside the folder."""
    index = folder / INDEX
    try:
        _regular_size(index, "index")
        data = index.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{index} cannot be read ({_line(error)}); check its permissions.") from error
    content = _parse(data, str(index))
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map that names a shard for each tensor; {AGAIN}.")
    paths = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{index} names no file for tensor {shown(name)} but {shown(shard)}; {AGAIN}.")
        if shard not in paths:
            paths[shard] = _shard_path(folder, shard, name)
    return {name: paths[shard] for name, shard in weight_map.items()}


def inside(folder: Path, path: Path) -> bool:
    """Whether a file of the folder lies in it. The hub's cache keeps files as links from snapshots/REVISION into blobs,
    and no other link may leave."""
    roots = [folder.resolve()]
    if roots[0].parent.name == "snapshots":
        roots.append(roots[0].parents[1] / "blobs")
    return any(path.resolve().is_relative_to(root) for root in roots)


def _shard_path(folder: Path, shard: str, name: str) -> Path:
    index, path = folder / INDEX, folder / shard
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{index} puts tensor {shown(name)} in {shown(shard)}, which is no safetensors file; {AGAIN}."
        )
    try:
        leaves = not inside(folder, path)
        exists = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, links in a circle
        raise CheckpointError(f"{index} names {shown(shard)}, which is no usable path; {AGAIN}.") from error
    if Path(shard).is_absolute() or ".." in Path(shard).parts or leaves:
        raise CheckpointError(
            f"{index} puts tensor {shown(name)} in {shown(shard)}, which is outside the folder; "
            "do not trust this checkpoint, or copy the file into the folder."
        )
    if not exists:
        raise CheckpointError(f"{index} names the shard {shown(shard)}, which is not in the folder; fetch it.")
    return path


# --- what a file's header says -----------------------------------------------------------------------------


def read_header(path: Path) -> dict[str, Stored]:
    """Return the tensors of one file, whose data must cover exactly what the header says."""
    try:
        size = _regular_size(path, "safetensors file")
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            # Checked before the read, so that a damaged length cannot take the memory.
            header = file.read(length) if 8 + length <= size and length <= MAX_HEADER else b""
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({_line(error)}); check its permissions.") from error
    if not prefix:
        raise CheckpointError(f"{path} is empty; {AGAIN}.")
    if len(prefix) < 8:
        raise CheckpointError(f"{path} is cut short: it has {len(prefix)} bytes and no header; {AGAIN}.")
    if length > MAX_HEADER:
        raise CheckpointError(f"{path} is no safetensors file: its header would take {length} bytes; {AGAIN}.")
    if len(header) < length:
        raise CheckpointError(
            f"{path} is cut short: its header takes {length} bytes, "
            f"and the file has {size - 8} after the length; {AGAIN}."
        )
    entries = _parse(header, f"the header of {path}")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path} has a __metadata__ that does not map text to text; {AGAIN}.")
    spans = sorted((*_span(path, name, entry), name) for name, entry in entries.items())
    _check_spans(path, spans, size - 8 - length)
    return {name: Stored(entry["dtype"], tuple(entry["shape"]), path) for name, entry in entries.items()}


def _regular_size(path: Path, what: str) -> int:
    """Return the size of a file, or raise for a folder and for a pipe, which would be waited for. Raises OSError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a regular file; put the {what} in its place.")
    return status.st_size


def _span(path: Path, name: str, entry: object) -> tuple[int, int]:
    """Return a tensor's first byte and the one after its last, having checked its type, shape and size."""
    tensor = f"tensor {shown(name)} in {path}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"{tensor} lacks dtype, shape or data_offsets; {AGAIN}.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ELEMENT_BYTES:
        known = ", ".join(ELEMENT_BYTES)
        raise CheckpointError(f"{tensor} has the unknown dtype {shown(dtype)}; convert it to one of {known}.")
    if not _are_counts(shape):
        raise CheckpointError(f"{tensor} has the shape {shown(shape)}, which is no list of sizes; {AGAIN}.")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{tensor} has the data_offsets {shown(offsets)}, which is no range; {AGAIN}.")
    size = ELEMENT_BYTES[dtype]
    for dimension in shape:
        size *= dimension
    begin, end = offsets
    if end - begin != size:
        raise CheckpointError(
            f"{tensor} is {dtype} of shape {shown(shape)}, which takes {shown(size)} bytes, "
            f"but its data_offsets give it {shown(end - begin)}; {AGAIN}."
        )
    return begin, end


def _check_spans(path: Path, spans: list[tuple[int, int, str]], available: int) -> None:
    """Check that the tensors, sorted by place, cover the file's data once, with no hole and no rest."""
    for _, end, name in spans:
        if end > available:
            raise CheckpointError(
                f"{path} is cut short: tensor {shown(name)} ends at byte {shown(end)} of the data, "
                f"and the file has {available}; {AGAIN}."
            )
    covered, previous = 0, None
    for begin, end, name in spans:
        if begin < covered:
            raise CheckpointError(f"tensors {shown(previous)} and {shown(name)} overlap in {path}; {AGAIN}.")
        if begin > covered:
            raise CheckpointError(f"{path} has {begin - covered} unused bytes before tensor {shown(name)}; {AGAIN}.")
        covered, previous = end, name
    if covered < available:
        raise CheckpointError(f"{path} has {available - covered} unused bytes after its last tensor; {AGAIN}.")


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _parse(data: bytes, what: str) -> dict:
    """Return the JSON object in `data`, in which no key may stand twice."""

    def without_duplicates(pairs: list[tuple[str, object]]) -> dict:
        content = {}
        for key, value in pairs:
            if key in content:
                raise CheckpointError(f"{what} has the key {shown(key)} twice; {AGAIN}.")
            content[key] = value
        return content

    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=without_duplicates)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not JSON ({_line(error)}); {AGAIN}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{what} is not a JSON object but {shown(content)}; {AGAIN}.")
    return content


def _line(error: Exception) -> str:
    """Return an error's own words on one line, without the path that an OSError repeats."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return words.partition("\n")[0]
