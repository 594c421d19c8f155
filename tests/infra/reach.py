"""What an entry point of the code can reach, read from the source: functions, calls of the store, settings.

A node of the graph is a function or class at the top of a module, with all that is inside it; an edge is any mention
of another one, called or not. So what is not reached is certainly not run; a branch that is never taken counts.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from handler.settings import Settings
from handler.storage import Storage

ROOT = Path(__file__).parents[2]
#: (module, name); the name is empty for what a module does when it is imported.
Node = tuple[str, str]
#: Methods of a store.
METHODS = {name for name in vars(Storage) if not name.startswith("_")}


@cache
def modules() -> frozenset[str]:
    """Every module of the package by its name below `handler`, a sub-package by its own: `jobs`, `jobs.changes`."""
    found = [path.relative_to(ROOT / "handler").with_suffix("") for path in (ROOT / "handler").rglob("*.py")]
    dotted = {".".join(path.parts).removesuffix("__init__").removesuffix(".") for path in found}
    return frozenset(dotted - {""})


@cache
def tree(module: str) -> ast.Module:
    """The source of `handler.<module>`."""
    path = ROOT / "handler" / module.replace(".", "/")
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def is_route(top: ast.stmt) -> bool:
    """Whether this is a function that nobody calls by its name: a router does, once its module is imported."""
    decorators = getattr(top, "decorator_list", ())
    return any(ast.unparse(decorator).startswith("router.") for decorator in decorators)


@cache
def body(node: Node) -> tuple[ast.AST, ...]:
    """The statements of a node."""
    module, name = node
    tops = tree(module).body
    if name:
        return tuple(top for top in tops if getattr(top, "name", None) == name)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    return tuple(top for top in tops if is_route(top) or not isinstance(top, kinds))


def resolve(module: str, name: str) -> Node:
    """What a name of a module is: a module below it, something defined there, or what the module imports itself.

    A value, such as a router, stands for what its module does when it is imported.
    """
    below = f"{module}.{name}".strip(".")
    if below in modules():
        return below, ""
    if body((module, name)):
        return module, name
    return names(module).get(name, (module, ""))


@cache
def names(module: str) -> dict[str, Node]:
    """What the names of a module stand for, where that is a part of the package."""
    known = {top.name: (module, top.name) for top in tree(module).body if hasattr(top, "name") and top.name}
    for found in ast.walk(tree(module)):
        if isinstance(found, ast.ImportFrom) and (found.module or "").partition(".")[0] == "handler":
            _, _, source = (found.module or "").partition(".")
            for alias in found.names:
                known[alias.asname or alias.name] = resolve(source, alias.name)
    return known


def mentions(node: Node) -> Iterator[Node]:
    """The nodes that a node speaks of."""
    known = names(node[0])
    for part in body(node):
        for found in ast.walk(part):
            if isinstance(found, ast.Attribute) and isinstance(found.value, ast.Name):
                target = known.get(found.value.id)
                if target and not target[1]:
                    yield resolve(target[0], found.attr)
            elif isinstance(found, ast.Name) and found.id in known:
                yield known[found.id]


@cache
def reached(module: str) -> frozenset[Node]:
    """All nodes that an entry point's module can come to."""
    done: set[Node] = set()
    # Whoever runs it calls the module's own functions by their names.
    open_ = [(module, "")] + [node for node in names(module).values() if node[0] == module]
    while open_:
        node = open_.pop()
        if node not in done:
            done.add(node)
            open_ += mentions(node)
            open_.append((node[0], ""))
    return frozenset(done)


def calls(node: Node) -> Iterator[tuple[str, str]]:
    """(place, method) of each call of a store: the place is `module.function`, nested functions by their own name."""

    def visit(part: ast.AST, place: str) -> Iterator[tuple[str, str]]:
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
            place = part.name
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.func.attr in METHODS:
            receiver = ast.unparse(part.func.value)
            if receiver == "storage" or receiver.endswith(("._storage", ".storage")):
                yield f"{node[0]}.{place}", part.func.attr
        for child in ast.iter_child_nodes(part):
            yield from visit(child, place)

    if not node[0].startswith("storage"):
        for part in body(node):
            yield from visit(part, node[1])


def clients() -> Iterator[tuple[str, str, str]]:
    """(service, module.function, method) of each use of a boto3 client in the package."""
    for module in sorted(modules()):
        for top in ast.walk(tree(module)):
            if not isinstance(top, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            for found in ast.walk(top):
                if isinstance(found, ast.Attribute):
                    receiver = ast.unparse(found.value)
                    if receiver == "self.client":
                        yield "s3", f"{module}.{top.name}", found.attr
                    elif receiver in ("batch_client()", "sqs_client()"):
                        yield receiver.partition("_")[0], f"{module}.{top.name}", found.attr


def settings_read(module: str) -> set[str]:
    """The fields of the settings that an entry point can read, properties resolved to what they are made of."""
    properties = {name for name, value in vars(Settings).items() if isinstance(value, property)}
    found: set[str] = set()
    for node in reached(module):
        for part in body(node):
            for part_ in ast.walk(part):
                if isinstance(part_, ast.Attribute) and ast.unparse(part_.value).endswith(("settings", "settings()")):
                    found.add(part_.attr)
    made_of = {
        top.name: {part.attr for part in ast.walk(top) if isinstance(part, ast.Attribute)}
        for cls in body(("settings", "Settings"))
        for top in getattr(cls, "body", ())
        if isinstance(top, ast.FunctionDef)
    }
    while used := found & properties:
        found -= used
        for name in used:
            found |= made_of[name]
    return found & set(Settings.model_fields)
