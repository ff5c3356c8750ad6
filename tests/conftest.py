"""What every test starts from: one thread, float64, a seeded generator, and a data directory that stays where it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# A relative directory is meant from the repository root; tests change directory and start processes elsewhere.
if os.environ.get("ADJOINT_META_DATA"):
    os.environ["ADJOINT_META_DATA"] = str(ROOT / Path(os.environ["ADJOINT_META_DATA"]).expanduser())

torch.set_num_threads(1)

# The same examples on every run: a failure seen once is seen again. Deadlines measure the machine, not the code.
settings.register_profile("adjoint-meta", derandomize=True, deadline=None, database=None, max_examples=50)
settings.load_profile("adjoint-meta")


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)  # not what was found: a fixture of a module may have set another one before


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that calls a function often does not wait for a compiler, and rounds as one that does not."""
    monkeypatch.setattr("adjoint_meta.engine._PATIENCE", 10**9)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20240521)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
