import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty user cache, and no data directory named by the environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home-cache"))
    monkeypatch.delenv("ADJOINT_META_DATA", raising=False)
    return tmp_path / "home-cache" / "adjoint-meta"


@pytest.fixture(scope="session")
def real_data():
    named = os.environ.get("ADJOINT_META_DATA")
    if not named:
        pytest.skip("ADJOINT_META_DATA is not set: no real data here")
    return ROOT / named  # an absolute path replaces the root
