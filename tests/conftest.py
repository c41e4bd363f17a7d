import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, Phase, configuration, settings

SUITE = settings(
    max_examples=5,  # of a property of weight 1; see fuzzing.py
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("suite", SUITE)
settings.register_profile(
    "long",
    SUITE,
    derandomize=False,
    max_examples=int(os.environ.get("FUZZ", "150")),
    print_blob=True,
)
settings.load_profile("suite")


# What a shell starts in the background ignores interrupts, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _nothing_kept_by_hypothesis(tmp_path_factory):
    """It would write what it finds in the source into the working folder."""
    configuration.set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))


@pytest.fixture(autouse=True)
def _one_thread_and_a_fixed_seed():
    """The suite's tensors are small: one thread is faster, and every test draws the same."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
