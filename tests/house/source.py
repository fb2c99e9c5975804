"""What `test_house` reads of the source, by its syntax alone: sizes, imports, and private names used elsewhere.

`python tests/house/source.py` prints what breaks the house's rules, place by place.
"""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import nn

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "apical"
TESTS = ROOT / "tests"

FLOORS = [
    "capturing",
    "checks citations distributed files losses nested noise per_copy step_hooks",
    "synapses data",
    "plasticity composites",
    "pathways",
    "phases rules",
    "learner networks",
    "attaching cuda_graphs measures optim",
    "parallel replicas",
    "__init__",  # the front door of the library: the laboratory may come in by it, as users do
    "training machine",
    "benchmark comparison papers queue search",
    "report",
    "cli",
    "__main__",
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
LIBRARY = {room for room, floor in FLOOR.items() if floor < FLOOR["__init__"]} - {"data", "networks"}
PYTORCHS = {name for name in vars(nn.Module()) if name.startswith("_")}


def room(module: str) -> str:
    """The folder, or file, of the package's root that `module` lies in; "__init__" for the package itself."""
    return module.split(".")[1] if "." in module else "__init__"


@dataclass(frozen=True)
class Place:
    """A line of a module that names something of another one."""

    module: str
    line: int
    name: str
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        owners = f" (of {', '.join(self.others)})" if self.others else ""
        return f"{path_of(self.module).relative_to(PACKAGE)}:{self.line}: {self.name}{owners}"


@cache
def sources() -> dict[str, Path]:
    """Module name -> file, of the whole package."""
    files = sorted(PACKAGE.rglob("*.py"))
    parts = {file: ("apical", *file.relative_to(PACKAGE).with_suffix("").parts) for file in files}
    return {".".join(name for name in names if name != "__init__"): file for file, names in parts.items()} | {
        "apical.__main__": PACKAGE / "__main__.py"
    }


def path_of(module: str) -> Path:
    return sources()[module]


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text())


def lines(file: Path) -> int:
    return len(file.read_text().splitlines())


def folders(top: Path) -> dict[str, int]:
    """Folder -> number of files in it, as a clean clone has them; the marker py.typed aside."""
    found = Counter(
        file.parent.relative_to(top.parent).as_posix()
        for file in top.rglob("*")
        if file.is_file() and not {"__pycache__", ".pytest_cache", "py.typed"} & set(file.parts)
    )
    return dict(found)


def at_runtime(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below `node` but those that only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from at_runtime(other)
            continue
        yield child
        yield from at_runtime(child)


def imported(module: str, node: ast.AST) -> Iterator[str]:
    """The apical modules that an import statement loads by name."""
    if isinstance(node, ast.Import):
        yield from (one.name for one in node.names if one.name.split(".")[0] == "apical")
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, f"{module}:{node.lineno}: a relative import"
        if (node.module or "").split(".")[0] == "apical":
            for one in node.names:
                below = f"{node.module}.{one.name}"
                yield below if below in sources() else str(node.module)


@cache
def imports() -> dict[str, list[Place]]:
    """Module -> the apical modules that it imports at runtime, wherever in it the statement stands."""
    return {
        module: [
            Place(module, node.lineno, name) for node in at_runtime(tree(module)) for name in imported(module, node)
        ]
        for module in sources()
    }


def climbing() -> list[Place]:
    """Imports that go neither to a lower floor nor stay in their own folder."""
    return [
        one
        for module, places in imports().items()
        for one in places
        if room(one.name) != room(module) and FLOOR[room(one.name)] >= FLOOR[room(module)]
    ]


def into_the_laboratory() -> list[Place]:
    """Imports of the library half that leave it."""
    return [
        one
        for module, places in imports().items()
        if room(module) in LIBRARY
        for one in places
        if room(one.name) not in LIBRARY
    ]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes of which each can be reached from each other."""
    reach = {start: _reached(graph, start) for start in graph}
    groups = {frozenset(other for other in reach[one] if one in reach.get(other, ())) for one in graph}
    return sorted(sorted(group) for group in groups if group)


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        one = todo.pop()
        if one not in seen:
            seen.add(one)
            todo += graph.get(one, ())
    return seen


def between_files() -> dict[str, set[str]]:
    return {module: {one.name for one in places} - {module} for module, places in imports().items()}


def between_folders() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = defaultdict(set)
    for module, places in imports().items():
        graph[room(module)] |= {room(one.name) for one in places} - {room(module)}
    return graph


def _private(name: object) -> bool:
    return isinstance(name, str) and bool(re.fullmatch(r"_[a-zA-Z]\w*", name))


def defined(module: str) -> set[str]:
    """Private names that a module makes: functions, classes, variables, and attributes of its own objects."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _own(node.value):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and _called(node) in {"register_buffer", "register_parameter", "setattr"}:
            found |= {one.value for one in node.args if isinstance(one, ast.Constant) and _private(one.value)}
    return {name for name in found if _private(name)}


def _own(node: ast.AST) -> bool:
    """Whether a node is the object, or class, that the code around it belongs to."""
    return (isinstance(node, ast.Name) and node.id in {"self", "cls"}) or (
        isinstance(node, ast.Call) and _called(node) in {"super", "type"} and all(_own(one) for one in node.args[:1])
    )


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def used(module: str) -> Iterator[tuple[int, str]]:
    """Private names that a module uses of something that is not its own object: line and name."""
    called = {id(node.func) for node in ast.walk(tree(module)) if isinstance(node, ast.Call)}
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute) and not _own(node.value):
            if node.attr not in PYTORCHS or id(node) in called:  # x._buffers is PyTorch's, x._buffers() is not
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("apical"):
            yield from ((node.lineno, one.name) for one in node.names)
        elif isinstance(node, ast.Call) and _called(node) in {"getattr", "hasattr", "setattr", "delattr"}:
            if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) and not _own(node.args[0]):
                yield node.lineno, str(node.args[1].value)
        elif isinstance(node, ast.Call) and _called(node) in {"update", "pop", "get", "setdefault"}:
            if isinstance(node.func, ast.Attribute) and _variables(node.func.value):
                yield from ((node.lineno, one.arg) for one in node.keywords if one.arg)
                yield from ((node.lineno, one.value) for one in node.args[:1] if _text(one))
        elif isinstance(node, ast.Subscript) and _variables(node.value) and _text(node.slice):
            yield node.lineno, node.slice.value
        elif isinstance(node, ast.Compare) and _text(node.left) and any(_variables(one) for one in node.comparators):
            yield node.lineno, node.left.value


def _variables(node: ast.AST) -> bool:
    """Whether a node is `vars(x)`, or `x.__dict__`, of something that is not the code's own object."""
    if isinstance(node, ast.Attribute) and node.attr == "__dict__":
        return not _own(node.value)
    return isinstance(node, ast.Call) and _called(node) == "vars" and not any(_own(one) for one in node.args)


def _text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@cache
def reaches() -> list[Place]:
    """Uses of a private name that another module of the package makes, and this one does not."""
    own = {module: defined(module) for module in sources()}
    return [
        Place(module, line, name, tuple(sorted(others)))
        for module in sources()
        for line, name in sorted(set(used(module)))
        if _private(name) and name not in own[module]
        if (others := {other.removeprefix("apical.") for other in sources() if name in own[other]})
    ]


def listed(title: str, found: Iterable[object]) -> str:
    found = list(found)
    return "\n".join([f"{title}: {len(found)}", *(f"  {one}" for one in found)])


if __name__ == "__main__":
    print(listed("imports that climb (floors)", climbing()), end="\n\n")
    print(listed("imports of the laboratory from the library", into_the_laboratory()), end="\n\n")
    print(listed("circles between folders", map(" <-> ".join, circles(between_folders()))), end="\n\n")
    print(listed("circles between files", map(" <-> ".join, circles(between_files()))), end="\n\n")
    names = {(one.module, one.name) for one in reaches()}
    print(f"private names of another module: {len(names)} (file, name) pairs, {len({n for _, n in names})} names")
    print(listed("private names of another module, uses", reaches()), end="\n\n")
    print(listed("folders over 12 files", (f for f in (folders(PACKAGE) | folders(TESTS)).items() if f[1] > 12)))
    for top, most in ((PACKAGE, 300), (TESTS, 500)):
        over = [(str(f.relative_to(ROOT)), lines(f)) for f in sorted(top.rglob("*.py")) if lines(f) > most]
        print(listed(f"files over {most} lines", over))
