"""What a process that computes is set to."""

import platform
import subprocess
import sys

import pytest

TASKS = """
import ctypes, resource, torch
from metaopt.process import on_one_core
{setting}

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def task():
    kept = [libc.malloc(2**23) for _ in range(5)]  # 8 MB each, as a tensor's memory is asked for
    for block in kept:
        libc.memset(block, 1, 2**23)
    for block in kept:
        libc.free(block)

for _ in range(5):
    task()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    task()
print(torch.get_num_threads(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def threads_and_faults(setting: str) -> tuple[int, int]:
    """Return the threads of a process after this setting, and how often 20 tasks of 40 MB had to be given a page."""
    done = subprocess.run([sys.executable, "-c", TASKS.format(setting=setting)], capture_output=True, check=True)
    threads, faults = map(int, done.stdout.split())
    return threads, faults


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_it_has_one_thread() -> None:
    assert threads_and_faults("torch.set_num_threads(2); on_one_core()")[0] == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_what_a_task_frees_serves_the_next() -> None:
    """40 MB are 10,240 pages; left to itself malloc is given them again in each of the 20 tasks."""
    assert threads_and_faults("")[1] > 20 * 2000
    assert threads_and_faults("on_one_core()")[1] < 20 * 500
