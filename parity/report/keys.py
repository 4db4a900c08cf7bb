"""Which keys were seen, as sentences and as what the page draws."""

from __future__ import annotations

NAMED = 6  # keys in a sentence
QUERIES, KEYS = 24, 64  # of a picture at most
SIDE, LEFT, TOP = 18, 44, 48  # pixels: a square, the queries' names, the keys' names


def sentences(document: dict) -> list[str]:
    """What the first query that differs saw, and how many do; nothing where all are right or none could be told."""
    return [sentence(one) for one in document["keys"]]


def sentence(one: dict) -> str:
    """The same of one cell."""
    differing = queries(one)
    told = len(one["expected"]) - len(one["unclear"])
    unclear = f"; {len(one['unclear'])} more could not be told" if one["unclear"] else ""
    return (
        f"{one['mechanism']} under {one['schedule']}: {_query(one, differing[0])}. "
        f"{len(differing)} of {told} queries differ{unclear}."
    )


def queries(one: dict) -> list[int]:
    """Those that are known to have seen other keys than they should."""
    unclear = {*one["unclear"]}
    pairs = enumerate(zip(one["expected"], one["seen"], strict=True))
    return [query for query, (expected, seen) in pairs if query not in unclear and {*expected} != {*seen}]


def pictures(document: dict) -> list[dict]:
    """For each cell its sentence, the squares of the first queries that differ, and these queries in words."""
    return [_picture(one) for one in document["keys"]]


def _picture(one: dict) -> dict:
    shown: list[int] = []
    columns: set[int] = set()
    for query in queries(one)[:QUERIES]:
        wider = columns | {*one["expected"][query], *one["seen"][query]}
        if shown and len(wider) > KEYS:
            break
        shown.append(query)
        columns = wider
    places = {key: LEFT + SIDE * place for place, key in enumerate(sorted(columns))}
    lines = []
    for line, query in enumerate(shown):
        expected, seen = {*one["expected"][query]}, {*one["seen"][query]}
        squares = [(places[key], _kind(key in expected, key in seen)) for key in sorted(expected | seen)]
        lines.append({"y": TOP + SIDE * line, "query": query, "squares": squares})
    return {
        "mechanism": one["mechanism"],
        "schedule": one["schedule"],
        "sentence": sentence(one),
        "width": LEFT + SIDE * len(columns) + 2,
        "height": TOP + SIDE * len(shown) + 2,
        "columns": [(x, one["keys"][key]) for key, x in places.items()],
        "lines": lines,
        "words": [_query(one, query) for query in shown],
        "left_out": len(queries(one)) - len(shown),
    }


def _kind(expected: bool, seen: bool) -> str:
    return "right" if expected and seen else "extra" if seen else "missing"


def _query(one: dict, query: int) -> str:
    """`query 9 saw 1 key that it must not (0) and not 2 that it should (3, row 1)`"""
    expected, seen = one["expected"][query], one["seen"][query]
    extra, missing = sorted({*seen} - {*expected}), sorted({*expected} - {*seen})
    many = lambda keys: f"{len(keys)} key{'s' if len(keys) > 1 else ''}"  # noqa: E731
    parts = []
    if extra:
        parts.append(f"saw {many(extra)} that it must not see ({_names(one, extra)})")
    if missing:
        parts.append(f"did not see {many(missing)} that it should ({_names(one, missing)})")
    return f"query {query} {' and '.join(parts)}"


def _names(one: dict, keys: list[int]) -> str:
    named = [name if name.startswith("row") else f"token {name}" for name in (one["keys"][key] for key in keys)]
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return ", ".join(named[:NAMED]) + more
