"""One thread a process: more threads than free cores can make torch fifty times slower."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)
