"""One thread for these tests: on small images a second one waits longer than it works."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(few_threads_and_fixed_seed: None) -> Iterator[None]:
    """After the general fixture; on a busy machine two threads took seven times the CPU time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
