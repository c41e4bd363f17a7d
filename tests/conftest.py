import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_and_a_fixed_seed():
    """The suite's tensors are small: one thread is faster, and every test draws the same."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
