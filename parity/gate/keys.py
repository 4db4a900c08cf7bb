"""Which keys each query saw: worked out from a port's logits alone, by the weights of the probe that gave them.

In these probes queries are zero, so that every visible row weighs the same, and nothing but the attention's output is
heard. Logits are then a function of how often each row was counted, [C] numbers where there are more logits than that:
the reference's own function, which is solved for them. What does not fit is `unclear`, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..judging import taps
from ..results import Verdict
from .families import Family
from .matrix import Matrix, ends_of
from .results import KeysSeen

MECHANISMS = ("attention.window", "compressor.plain", "compressor.overlap")
# A right program's logits fit to 1e-6; one key too many or too few among a hundred moves them by more than this.
FITS = 1e-4
# Counts are whole multiples of the smallest one, to within this. Above SOME of the largest they are counts, below
# NOTHING they are none; where one stands between, some key counts so much that others cannot be told.
WHOLE, SOME, NOTHING = 0.15, 0.04, 0.004
# Columns that 64 logits tell apart well; where there are more, only the tokens within two windows are asked for.
MOST = 48
STEPS = 30  # of the descent; right ports need none
SMALL = 1e-6  # by how much a count is moved, to see what that moves


def first_picture(families: dict[str, Family], matrix: Matrix) -> list[KeysSeen]:
    """The first red cell that can be read so: which keys its queries saw; nothing where these are the right ones."""
    for cell in matrix.cells:
        key = cell.mechanism, cell.schedule
        if cell.mechanism in MECHANISMS and cell.verdict is Verdict.DIVERGES and key in matrix.logits:
            family = families[cell.mechanism]
            asked = ends_of(family, family.probe.calls_of(cell.schedule)) if key in matrix.ends_only else None
            found = keys_seen(family, cell.schedule, matrix.logits[key][0], asked)
            return [found] if found else []
    return []


def keys_seen(family: Family, schedule: str, logits: Tensor, asked: Tensor | None = None) -> KeysSeen | None:
    """What the first sequence's queries saw, by its logits [S, V]; None where no query is known to have seen other keys
    than the reference's. asked [S]: the queries that have logits, all by default."""
    reader = Reader.of(family)
    seen, told = reader.read(logits.double())
    told &= torch.ones_like(told) if asked is None else asked
    if not (told & (seen != reader.expected).any(-1)).any():
        return None
    listed = lambda mask: [row.nonzero().flatten().tolist() for row in mask]  # noqa: E731
    return KeysSeen(
        family.probe.mechanism,
        schedule,
        reader.labels,
        listed(reader.expected),
        listed(seen & told[:, None]),
        (~told).nonzero().flatten().tolist(),
    )


@dataclass
class Reader:
    """The reference's only layer, with what it attends to: rows [K, d], those of the S tokens and then the compressed
    ones; kinds [K], alike where rows are; expected [S, K], what each query sees."""

    model: torch.nn.Module
    rows: Tensor
    kinds: list[int]
    expected: Tensor

    @classmethod
    def of(cls, family: Family) -> Reader:
        """Rows and visibility as the reference has them for the first sequence."""
        model, ids = family.side("float64").model, family.ids[:1]
        points = {"window": ("layers.0.attn", "window_kv"), "seen": ("layers.0.attn", "visibility")}
        if model.layers[0].attn.ratio:
            points["compressed"] = ("layers.0.attn.compressor", "")
        with torch.no_grad(), taps.recording(model, points) as given:
            model(ids)
        rows = torch.cat([call[0] for name in ("window", "compressed") for call in given.get(name, [])])
        alone = range(-1, ids.shape[1] - len(rows) - 1, -1)  # no other row is like a compressed one
        return cls(model, rows, [*ids[0].tolist(), *alone], given["seen"][0][0])

    @property
    def labels(self) -> list[str]:
        """A token by its place, a compressed row by its number."""
        tokens = len(self.expected)
        return [str(key) if key < tokens else f"row {key - tokens}" for key in range(len(self.rows))]

    @torch.no_grad()
    def read(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [S, V] -> what was seen, bool [S, K], and which queries could be told, bool [S]."""
        columns = [self.columns(query) for query in range(len(logits))]
        told = logits.isfinite().all(-1) & logits.any(-1)
        counts, error = self.solve(torch.where(told[:, None], logits, 1.0), columns)
        seen, told = torch.zeros_like(self.expected), told & (error <= FITS)
        for query in told.nonzero().flatten().tolist():
            found = self.chosen(counts[query], columns[query], self.expected[query])
            if found is None:
                told[query] = False
            else:
                seen[query, found] = True
        return seen, told

    def columns(self, query: int) -> list[list[int]]:
        """The keys that a query may have seen, those with one row together, in the order in which they are taken for
        seen: what the reference sees, then earlier ones, the latest first, then later ones."""
        tokens, window = len(self.expected), self.model.config.sliding_window
        keys = range(len(self.rows))
        if len({*self.kinds}) > MOST:
            keys = [key for key in keys if -window < query - key < 2 * window or key >= tokens]
        found: dict[int, list[int]] = {}
        for key in sorted(keys, key=lambda k: (not self.expected[query, k], k > query, abs(query - k))):
            found.setdefault(self.kinds[key], []).append(key)
        return [*found.values()]

    def solve(self, logits: Tensor, columns: list[list[list[int]]]) -> tuple[Tensor, Tensor]:
        """How often each column was counted [S, C] so that these logits [S, V] come of it, and how far from them the
        nearest that was found is, relative to their size, [S]."""
        most = max(map(len, columns))
        rows = self.rows.new_zeros(len(logits), most, self.rows.shape[-1])
        counts = rows.new_zeros(len(logits), most)
        for query, own in enumerate(columns):
            rows[query, : len(own)] = self.rows[[keys[0] for keys in own]]
            counts[query, : len(own)] = torch.tensor([float(self.expected[query, keys].sum()) for keys in own])
        present = rows.any(-1)[:, None]  # the others only fill up
        size = logits.norm(dim=-1)
        damping = torch.full_like(size, 1e-3)
        off = self.logits(counts, rows) - logits
        for _ in range(STEPS):  # Levenberg and Marquardt's, all queries at once
            left = (off.norm(dim=-1) > FITS / 100 * size) & (damping < 1e6)
            if not left.any():
                break
            at, seen = counts[left], rows[left]
            slope = self.slope(at, seen) * present[left]
            square = slope.mT @ slope
            least = damping[left] * square.diagonal(dim1=-2, dim2=-1).mean(-1) + 1e-30
            square = square + least[:, None, None] * torch.eye(most)
            step = torch.linalg.solve(square, slope.mT @ off[left][..., None])[..., 0]
            tried = (at - step).clamp_min(0)  # no key counts less than not at all
            tried_off = self.logits(tried, seen) - logits[left]
            better = tried_off.norm(dim=-1) < off[left].norm(dim=-1)
            counts[left] = torch.where(better[:, None], tried, at)
            off[left] = torch.where(better[:, None], tried_off, off[left])
            damping[left] = (damping[left] * torch.where(better, 0.1, 10.0)).clamp_min(1e-12)
        return counts, off.norm(dim=-1) / size

    def slope(self, counts: Tensor, rows: Tensor) -> Tensor:
        """How logits move with each count, [Q, V, C]."""
        total, number = torch.einsum("qc,qcd->qd", counts, rows), counts.sum(-1)
        more = (total[:, None] + SMALL * rows).flatten(0, 1)
        moved = self.heard(more, (number + SMALL).repeat_interleave(counts.shape[-1])).view(*counts.shape, -1)
        return ((moved - self.heard(total, number)[:, None]) / SMALL).mT

    def logits(self, counts: Tensor, rows: Tensor) -> Tensor:
        """The logits [Q, V] of queries that count their rows [Q, C, d] so often, [Q, C]."""
        return self.heard(torch.einsum("qc,qcd->qd", counts, rows), counts.sum(-1))

    def heard(self, total: Tensor, number: Tensor) -> Tensor:
        """The logits [Q, V] of queries whose rows, so many [Q], add up to this [Q, d]; the sink counts once."""
        layer = self.model.layers[0]
        mass = number[:, None] + layer.attn.attn_sink.exp()  # [Q, H]
        output = layer.attn.output((total[:, None] / mass[..., None])[None], torch.zeros(len(total), dtype=torch.long))
        streams = output.new_zeros(1, len(total), self.model.config.hc_mult, output.shape[-1])
        _, post, comb = layer.hc_attn.pre(streams)
        streams = layer.hc_attn.post(output, streams, post, comb)
        u, post, comb = layer.hc_ffn.pre(streams)
        shared = layer.ffn.shared_experts(layer.ffn_norm(u))  # these probes mute the others
        return self.model.logits(layer.hc_ffn.post(shared, streams, post, comb))[0]

    @staticmethod
    def chosen(counts: Tensor, columns: list[list[int]], expected: Tensor) -> list[int] | None:
        """The keys that counts [C] stand for; None where they are no whole numbers of keys, or say no more than that a
        key was counted twice."""
        share = counts[: len(columns)] / counts.max()
        times = torch.where(share > SOME, share / share[share > SOME].min(), 0.0)
        whole = times.round().long().tolist()
        if ((share > NOTHING) & (share <= SOME)).any() or (times - times.round()).abs().max() > WHOLE:
            return None
        found = [key for keys, often in zip(columns, whole, strict=True) for key in keys[:often]]
        twice = any(often > len(keys) for keys, often in zip(columns, whole, strict=True))
        same = sorted(found) == expected.nonzero().flatten().tolist()
        return None if twice and same else sorted(found)
