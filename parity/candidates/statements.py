"""A port's statements: which one a line belongs to, what it reads and changes, which conditions it hangs on."""

from __future__ import annotations

import ast
from collections.abc import Iterator


def by_line(tree: ast.Module) -> dict[int, ast.stmt]:
    """The innermost statement of each line; of one with a body, its header alone."""
    found: dict[int, ast.stmt] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            for line in range(node.lineno, header_end(node) + 1):
                found[line] = node
    return found


def conditions(tree: ast.Module) -> dict[ast.stmt, list[int]]:
    """For each statement the conditions of its function that it depends on: it stands in a branch of theirs, or behind
    a branch that leaves."""
    found: dict[ast.stmt, list[int]] = {}

    def walk(body: list[ast.stmt], over: list[int]):
        for node in body:
            found[node] = over
            fresh = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            asks = isinstance(node, (ast.If, ast.While, ast.Match))
            for name in ("body", "orelse", "finalbody"):
                walk(getattr(node, name, []), [] if fresh else [*over, node.lineno] if asks else over)
            for inner in (*getattr(node, "handlers", []), *getattr(node, "cases", [])):
                walk(inner.body, [*over, node.lineno])
            if isinstance(node, ast.If) and isinstance(node.body[-1], (ast.Return, ast.Continue, ast.Break, ast.Raise)):
                over = [*over, node.lineno]

    walk(tree.body, [])
    return found


def passed(tree: ast.Module) -> dict[ast.stmt, list[ast.stmt]]:
    """For each statement the conditions and loops of its function that stand before it and that it is not in."""
    found: dict[ast.stmt, list[ast.stmt]] = {}

    def walk(body: list[ast.stmt], before: list[ast.stmt]):
        for node in body:
            found[node] = before
            fresh = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            for name in ("body", "orelse", "finalbody"):
                walk(getattr(node, name, []), [] if fresh else before)
            for inner in (*getattr(node, "handlers", []), *getattr(node, "cases", [])):
                walk(inner.body, before)
            if isinstance(node, (ast.If, ast.For, ast.While, ast.Match)):
                before = [*before, node]

    walk(tree.body, [])
    return found


def binding(node: ast.stmt) -> dict[str, list[ast.stmt]]:
    """Names and attributes that a statement's body binds or writes into, each with the statements that do."""
    found: dict[str, list[ast.stmt]] = {}
    for one in ast.walk(node):
        if isinstance(one, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
            for target in getattr(one, "targets", None) or [one.target]:
                for part in target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]:
                    base = part.value if isinstance(part, (ast.Subscript, ast.Starred)) else part
                    found.setdefault(ast.unparse(base), []).append(one)
    return found


def binders(tree: ast.Module) -> list[tuple[set[ast.stmt], dict[str, int]]]:
    """Of each class, the innermost first, its statements, and how many there and on other objects anywhere in the file
    bind an attribute."""
    others: dict[str, int] = {}
    for name, by in binding(tree).items():
        base, _, attribute = name.rpartition(".")
        if base != "self":
            others[attribute] = others.get(attribute, 0) + len(by)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = []
    for node in reversed(classes):
        own = {name: len(by) for name, by in binding(node).items() if name.startswith("self.")}
        counts = {name: count + others.get(name.removeprefix("self."), 0) for name, count in own.items()}
        found.append(({one for one in ast.walk(node) if isinstance(one, ast.stmt)}, counts))
    return found


def header_end(node: ast.stmt) -> int:
    """The last line of a statement, or of its header."""
    body = getattr(node, "body", None)
    return max(node.lineno, body[0].lineno - 1) if body else node.end_lineno


def expressions(node: ast.stmt) -> list[ast.expr]:
    """What a statement computes, without the statements in its body."""
    return [
        child for child in ast.iter_child_nodes(node) if isinstance(child, (ast.expr, ast.withitem, ast.match_case))
    ]


def decisive(node: ast.stmt, frame) -> ast.stmt | ast.expr:
    """Of a condition `a is None and ...` or `a is not None or ...` the part that decides it whatever the others give;
    else the statement."""
    test = getattr(node, "test", None)
    for one in test.values if isinstance(test, ast.BoolOp) else []:
        if isinstance(one, ast.Compare) and isinstance(one.ops[0], (ast.Is, ast.IsNot)) and is_none(one.comparators):
            found, value = resolve(one.left, frame)
            if found and value is not None and isinstance(one.ops[0], ast.IsNot) == isinstance(test.op, ast.Or):
                return one
    return node


def is_none(compared: list[ast.expr]) -> bool:
    """Whether something is compared with None alone."""
    return len(compared) == 1 and isinstance(compared[0], ast.Constant) and compared[0].value is None


def read(node: ast.stmt | ast.expr, frame) -> Iterator[tuple[str, object]]:
    """Names, and attributes of names, that a statement reads, with what they are before it runs."""
    seen = set()
    for top in [node] if isinstance(node, ast.expr) else expressions(node):
        for one in ast.walk(top):
            if isinstance(one, (ast.Name, ast.Attribute)) and isinstance(one.ctx, ast.Load):
                text = ast.unparse(one)
                if text not in seen:
                    seen.add(text)
                    found, value = resolve(one, frame)
                    if found:
                        yield text, value


def changed(node: ast.stmt, frame) -> Iterator[tuple[str, object]]:
    """What a statement assigns but a name: attributes, and what it writes into; of a call alone, as of a list's
    `append`, what it is a method of."""
    called = getattr(getattr(node, "value", None), "func", None) if isinstance(node, ast.Expr) else None
    if isinstance(called, ast.Attribute):
        found, value = resolve(called.value, frame)
        if found:
            yield ast.unparse(called.value), value
    targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
    for target in targets:
        one = target.value if isinstance(target, ast.Subscript) else target
        if isinstance(one, ast.Attribute) or (isinstance(target, ast.Subscript) and isinstance(one, ast.Name)):
            found, value = resolve(one, frame)
            if found:
                yield ast.unparse(one), value


def resolve(node: ast.expr, frame) -> tuple[bool, object]:
    """What a name or an attribute of names is, without running any code of the port's."""
    if isinstance(node, ast.Name):
        for scope in (frame.f_locals, frame.f_globals):
            if node.id in scope:
                return True, scope[node.id]
        return False, None
    if not isinstance(node, ast.Attribute):
        return False, None
    found, value = resolve(node.value, frame)
    if not found:
        return False, None
    if isinstance(value, dict) and node.attr in value:  # a module of MLX
        return True, dict.get(value, node.attr)
    try:
        inside = object.__getattribute__(value, "__dict__")
    except (AttributeError, TypeError):
        return False, None
    for scope in (inside, inside.get("_parameters"), inside.get("_buffers"), inside.get("_modules")):
        if isinstance(scope, dict) and node.attr in scope:
            return True, scope[node.attr]
    return False, None
