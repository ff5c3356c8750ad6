"""The default dtype of a process of one's own, as tests of runs take it."""

import pytest
import torch


@pytest.fixture
def float32(float64):
    """As in a process of one's own."""
    torch.set_default_dtype(torch.float32)
