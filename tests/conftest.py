"""One thread a process: more threads than free cores can make torch fifty times slower.

And the same examples of a property each time: `make fuzz` looks for others.
"""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)
settings.register_profile("the same each time", derandomize=True)
settings.load_profile("the same each time")


@pytest.fixture(scope="session")
def drawings() -> Path:
    """Omniglot as it was published, which is not in the repository: tests of it are skipped where it is not at hand."""
    folder = Path(os.environ.get("METAOPT_DATA") or Path(__file__).parents[2] / "shared" / "data") / "omniglot"
    if not (folder / "images_background.zip").exists():
        pytest.skip(f"no Omniglot at {folder}; METAOPT_DATA names another place")
    return folder
