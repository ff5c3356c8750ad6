"""The command line in this process, through its door."""

import sys

import pytest
import torch

from adjoint_meta.cli import main as door


@pytest.fixture
def invoke(monkeypatch, capsys):
    """Return what runs ``adjoint-meta`` with these words: its exit code, and what it printed to stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["adjoint-meta", *map(str, arguments)])
        try:
            door.main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def float32(float64):
    """As in a process of one's own."""
    torch.set_default_dtype(torch.float32)
