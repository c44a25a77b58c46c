"""What a process that computes is set to."""

import platform
import subprocess
import sys

import pytest

TASKS = """
import resource, torch
from metaopt.process import on_one_core
{setting}

def task():
    kept = [2 * torch.ones(2**18) for _ in range(40)]  # a megabyte each

task()
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


def test_it_has_one_thread() -> None:
    assert threads_and_faults("torch.set_num_threads(2); on_one_core()")[0] == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_what_a_task_frees_serves_the_next() -> None:
    """Left to itself malloc is given thousands of pages again; how many depends on how memory happens to lie."""
    assert max(threads_and_faults("")[1] for _ in range(3)) > 1000
    assert threads_and_faults("on_one_core()")[1] < 100
