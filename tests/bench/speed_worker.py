"""One port in a process of its own: reads a request a line, answers a line of JSON.

Started with the candidate, the folder of the model and that of the donor. Requests:
{"do": "prefill", "calls": [...]} on a fresh cache; {"do": "context", "tokens": N}: make a cache that holds N tokens;
{"do": "decode", "tokens": N, "steps": n, "seconds": s} on it: at least two steps, no more once s seconds are over.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from pathlib import Path

import numpy as np

from parity.candidates.adapters import load_adapter, resolve

CHUNK = 2048  # tokens a call in which the donor reads


class MLX:
    """dsv4_mlx or mlx-vlm."""

    def __init__(self, port):
        import mlx.core as mx

        self.mx, self.port, self.array = mx, port, mx.array

    def fresh_cache(self):
        return self.port.fresh_cache()

    def step(self, ids: np.ndarray, cache) -> int:
        """Feed ids [1, S]; the greedy next token."""
        logits = self.port.step(self.mx.array(ids), cache)
        return int(self.mx.argmax(logits[0, -1]).item())


class HuggingFace:
    """transformers' model; a decode step in one thread: two lose there, and ten times so on a machine in use."""

    def __init__(self, port):
        self.port, self.array = port, port.torch.Tensor

    def fresh_cache(self):
        return self.port.fresh_cache()

    def step(self, ids: np.ndarray, cache) -> int:
        self.port.torch.set_num_threads(1 if ids.shape[1] == 1 else os.cpu_count())
        with self.port.torch.inference_mode():
            logits = self.port.model(self.port.torch.from_numpy(ids).long(), **cache).logits
        return int(logits[0, -1].argmax())


class Worker:
    """Carries out requests, one method each."""

    def __init__(self, candidate: str, folder: str, donor: str):
        self.model, self.donor = driver(candidate, folder), driver(candidate, donor)
        self.random = np.random.default_rng(0)
        self.contexts = {}  # a cache of so many tokens, and the token to come: all are kept, to be measured in turns

    def ids(self, tokens: int) -> np.ndarray:
        return self.random.integers(0, 4096, (1, tokens), dtype=np.int32)

    def prefill(self, calls: list[int]) -> dict:
        """Seconds of wall and CPU, and by how many bytes the resident set grew at its peak."""
        cache = self.model.fresh_cache()
        before = reset_peak()
        started = clock()
        for tokens in calls:
            self.model.step(self.ids(tokens), cache)
        wall, cpu = since(started)
        return {"wall": wall, "cpu": cpu, "peak": peak() - before}

    def context(self, tokens: int) -> dict:
        """Let the donor read ``tokens`` tokens; the cache's bytes."""
        cache = self.donor.fresh_cache()
        for start in range(0, tokens, CHUNK):
            token = self.donor.step(self.ids(min(CHUNK, tokens - start)), cache)
        self.contexts[tokens] = cache, token
        found: dict[int, int] = {}
        bytes_of(cache, self.model.array, found, set())
        return {"cache_bytes": sum(found.values())}

    def decode(self, tokens: int, steps: int, seconds: float = math.inf) -> dict:
        """Seconds of wall and CPU of each step on the cache that was made of so many tokens, which grows by them."""
        walls, cpus = [], []
        cache, token = self.contexts[tokens]
        while len(walls) < min(steps, 2) or (len(walls) < steps and sum(walls) < seconds):
            started = clock()
            token = self.model.step(np.array([[token]], dtype=np.int32), cache)
            wall, cpu = since(started)
            walls.append(wall)
            cpus.append(cpu)
        self.contexts[tokens] = cache, token
        return {"walls": walls, "cpus": cpus}


def driver(candidate: str, folder: str):
    port = load_adapter(resolve(candidate))
    port.start()
    port.load(Path(folder))
    return HuggingFace(port) if port.taps_tree == "torch" else MLX(port)


def clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(started: tuple[float, float]) -> tuple[float, float]:
    wall, cpu = clock()
    return wall - started[0], cpu - started[1]


def reset_peak() -> int:
    """Bytes resident now, which the kernel takes as the peak from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """The largest resident set since ``reset_peak``, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def bytes_of(value, kind: type, found: dict[int, int], seen: set[int]) -> None:
    """The arrays that an object holds, whatever its class, and the bytes of each."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, kind):
        found[id(value)] = value.nbytes
        return
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for part in (*parts, *getattr(value, "__dict__", {}).values()):
        if not isinstance(part, type) and not callable(part):
            bytes_of(part, kind, found, seen)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a port prints goes to the log
    worker = Worker(*sys.argv[1:])
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:  # whatever a port raises is told: the others go on
            traceback.print_exc()
            answer = {"problem": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
