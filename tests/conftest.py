"""What holds for every test: no network for models, one thread, reproducible examples."""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores
os.environ.setdefault(
    "OMP_WAIT_POLICY", "passive"
)  # two threads that spin stand still on busy ones
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from hypothesis import settings

settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def gradients_stay_on():
    """No test may leave torch in a mode in which the tests after it cannot train."""
    yield
    torch = sys.modules.get("torch")
    assert torch is None or (torch.is_grad_enabled() and not torch.is_inference_mode_enabled())
