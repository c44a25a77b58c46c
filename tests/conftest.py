"""One thread a process: more threads than free cores can make torch fifty times slower.

And the same examples of a property each time: `make fuzz` looks for others.
"""

import os

import torch
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)
settings.register_profile("the same each time", derandomize=True)
settings.load_profile("the same each time")
