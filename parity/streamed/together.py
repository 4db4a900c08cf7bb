"""Several runs of one block of the reference that meet where its routed experts come, so that each expert is read and
decoded once for all of them and held for no longer.

Each run is a thread, and one at a time computes: what a run does and when it rounds is as if it were alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reference_torch.block import Block
from reference_torch.experts import Expert
from reference_torch.norm import wide


@dataclass
class Run:
    """One run of a block: what it computes, in which other rounding, and which copy of an expert it takes."""

    block: Block
    compute: Callable[[], object]
    rounding: AbstractContextManager
    copy: Hashable
    asked: tuple[Tensor, Tensor, Tensor] | None = None
    routed: Tensor | None = None
    result: object = None
    error: BaseException | None = field(default=None, repr=False)


def run_together(runs: list[Run], expert: Callable[[int], Callable[[Hashable], Expert]]) -> list:
    """The results of all runs. `expert` reads an expert by its number, and gives the copies of it that
    runs ask for."""
    meeting, turn = threading.Barrier(len(runs) + 1), threading.Lock()
    threads = [threading.Thread(target=_alone, args=(run, meeting, turn), daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    try:
        meeting.wait()
        _experts(runs, expert)
        meeting.wait()
    except threading.BrokenBarrierError:
        pass  # a run raised, which is raised below
    except BaseException:
        meeting.abort()
        raise
    finally:
        for thread in threads:
            thread.join()
    for run in runs:
        if run.error is not None and not isinstance(run.error, threading.BrokenBarrierError):
            raise run.error
    return [run.result for run in runs]


def _alone(run: Run, meeting: threading.Barrier, turn: threading.Lock) -> None:
    def routed(x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        run.asked = x, weights, experts
        turn.release()
        try:
            meeting.wait()
            meeting.wait()
        finally:
            turn.acquire()
        return run.routed

    run.block.ffn.routed = routed
    with turn:
        try:
            with run.rounding:
                run.result = run.compute()
        except BaseException as error:
            run.error = error
            meeting.abort()


@torch.no_grad()
def _experts(runs: list[Run], expert: Callable[[int], Callable[[Hashable], Expert]]) -> None:
    """The routed sum of every run (spec 10): wide, in increasing index."""
    flat = []
    for run in runs:
        x, weights, experts = (tensor.flatten(0, 1) for tensor in run.asked)
        flat.append((x, weights, experts, torch.zeros_like(wide(x))))
    for index in torch.cat([experts.flatten() for _, _, experts, _ in flat]).unique().tolist():
        given = expert(index)
        for run, (x, weights, experts, total) in zip(runs, flat, strict=True):
            token, slot = (experts == index).nonzero(as_tuple=True)
            if len(token):
                one = given(run.copy)
                with run.rounding:
                    total.index_add_(0, token, wide(one(x[token], weights[token, slot, None])))
    for run, (_, _, _, total) in zip(runs, flat, strict=True):
        run.routed = total.view_as(run.asked[0])
