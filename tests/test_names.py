"""The public face: what `__all__` says is what there is, in order, and documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import adjoint_meta

FACES = ["adjoint_meta", "adjoint_meta.solvers", "adjoint_meta.meta_gradients"]
every_face = pytest.mark.parametrize("face", FACES)


def public(module: ModuleType) -> set[str]:
    """The names that the module's own source binds, submodules and private ones left out."""
    tree = ast.parse(inspect.getsource(module))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    return {alias.asname or alias.name for node in imports for alias in node.names}


@every_face
def test_all_is_what_the_face_imports(face):
    module = importlib.import_module(face)
    assert set(module.__all__) == public(module)
    assert len(module.__all__) == len(set(module.__all__))


@every_face
def test_every_public_name_is_there_and_documented(face):
    module = importlib.import_module(face)
    for name in module.__all__:
        value = getattr(module, name)
        assert name in dir(module)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{face}.{name} has no docstring"
            assert value.__module__.startswith("adjoint_meta.")


def test_a_star_import_brings_all(tmp_path):
    found: dict[str, object] = {}
    exec("from adjoint_meta import *", found)
    assert set(adjoint_meta.__all__) <= set(found)


def test_lazy_names_come_from_their_homes():
    from adjoint_meta.learner import MetaLearner
    from adjoint_meta.solvers.solution import SolverError

    assert adjoint_meta.MetaLearner is MetaLearner
    assert adjoint_meta.SolverError is SolverError


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'adjoint_meta' has no attribute 'MetaLerner'"):
        _ = adjoint_meta.MetaLerner
    with pytest.raises(ImportError):
        exec("from adjoint_meta import MetaLerner")


def test_importing_the_package_does_not_import_torch(root):
    code = "import sys, adjoint_meta; adjoint_meta.__version__; dir(adjoint_meta); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_checkout_imports_its_four_folders(root):
    names = ["adjoint_meta.solvers", "adjoint_meta.learner", "adjoint_meta.experiments", "adjoint_meta.cli"]
    code = f"import importlib; print(*(importlib.import_module(name).__file__ for name in {names}), sep='\\n')"
    found = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    parts = ["solvers", "adjoint_meta", "experiments", "cli"]
    homes = [line for line in found.stdout.splitlines() if line]
    assert len(homes) == 4
    assert [str(root / part) == home.rsplit("/", 1)[0] for part, home in zip(parts, homes, strict=True)] == [True] * 4


def test_the_command_line_runs_from_a_checkout(root):
    found = subprocess.run(
        [sys.executable, "-m", "adjoint_meta.cli", "--help"], cwd=root, check=False, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert "Usage" in found.stdout
