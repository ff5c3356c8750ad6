"""Imports run downward only, cli → experiments → adjoint_meta → solvers, and in no circle, lazy imports included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the ground up: each folder may import those before it, and itself.
LAYERS = {"solvers": "adjoint_meta.solvers", "adjoint_meta": "adjoint_meta", "experiments": "adjoint_meta.experiments"}
LAYERS["cli"] = "adjoint_meta.cli"
ORDER = list(LAYERS)


def module_name(path: Path) -> str:
    """The import name of a file of the four folders."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([LAYERS[folder], *(part for part in rest if part != "__init__")])


FILES = {module_name(path): path for folder in LAYERS for path in sorted((ROOT / folder).rglob("*.py"))}


def layer(module: str) -> str:
    """The folder that a module lies in."""
    return FILES[module].relative_to(ROOT).parts[0]


def imports_of(source: str, module: str, is_package: bool, modules: set[str]) -> Iterator[str]:
    """The modules among ``modules`` that a source imports, wherever in it the import stands.

    ``from package import name`` is an import of the submodule of that name, or else of the package itself; importing
    a module by a string counts too.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, *filter(None, [node.module])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                if submodule in modules or base in modules:
                    yield submodule if submodule in modules else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from _named(node, module, modules)


def _named(call: ast.Call, module: str, modules: set[str]) -> Iterator[str]:
    """The module that a call of ``import_module`` names by a literal string, relative or absolute."""
    first = call.args[0] if call.args else None
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        name = first.value
        name = f"{module.rsplit('.', 1)[0]}{name}" if name.startswith(".") else name
        if name in modules:
            yield name


def graph() -> dict[str, set[str]]:
    return {
        module: set(imports_of(path.read_text(), module, path.name == "__init__.py", set(FILES))) - {module}
        for module, path in FILES.items()
    }


def cycle(arrows: dict[str, set[str]]) -> list[str]:
    """One cycle of a graph, or nothing."""
    done: set[str] = set()

    def search(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module not in done:
            for target in sorted(arrows[module]):
                if found := search(target, [*trail, module]):
                    return found
            done.add(module)
        return []

    for module in arrows:
        if found := search(module, []):
            return found
    return []


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module):
    own = ORDER.index(layer(module))
    upward = {target for target in graph()[module] if ORDER.index(layer(target)) > own}
    assert not upward, f"{module} lies below {upward}"


def test_there_is_no_circle():
    found = cycle(graph())
    assert not found, " → ".join(found)


def test_every_folder_was_read():
    assert {layer(module) for module in FILES} == set(LAYERS)
    arrows = graph()
    assert "adjoint_meta.solvers.butcher" in arrows["adjoint_meta.solvers.runge_kutta"]
    assert "adjoint_meta.solvers.checks" in arrows["adjoint_meta.learner"]
    assert "adjoint_meta.learner" in arrows["adjoint_meta"]


@pytest.mark.parametrize(
    "source",
    [
        "import p.b",
        "from p.b import thing",
        "from p import b",
        "from . import b",
        "from .b import thing",
        "def f():\n    from .b import thing",
        "if TYPE_CHECKING:\n    from p.b import thing",
        "import importlib\nimportlib.import_module('p.b')",
        "from importlib import import_module\nimport_module('.b', __package__)",
        "class A:\n    def f(self):\n        import p.b as q",
    ],
)
def test_the_reader_sees_every_kind_of_import(source):
    assert set(imports_of(source, "p.a", False, {"p", "p.a", "p.b"})) == {"p.b"}


def test_the_reader_knows_packages():
    modules = {"p", "p.q", "p.q.r", "p.s"}
    assert set(imports_of("from .r import x", "p.q", True, modules)) == {"p.q.r"}
    assert set(imports_of("from ..s import x", "p.q.r", False, modules)) == {"p.s"}
    assert set(imports_of("from . import x", "p.q.r", False, modules)) == {"p.q"}
    assert set(imports_of("import torch\nfrom torch import nn", "p.s", False, modules)) == set()


def test_the_search_finds_a_circle():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
