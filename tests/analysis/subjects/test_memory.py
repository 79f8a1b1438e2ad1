import platform
import subprocess
import sys

import pytest

from repshift.analysis.subjects import memory

FAULTS = """
import resource, torch
from repshift.analysis.subjects.memory import keep_freed_memory
torch.set_num_threads(1)
if {keep}:
    assert keep_freed_memory()

def use():
    parts = [torch.ones(2**20) for _ in range(20)]  # 80 MiB, all freed in the end

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    use()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(*[faults() for _ in range(8)])
"""


def page_faults(keep):
    done = subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the C library of GNU can be told to keep memory")
def test_freed_memory_is_kept_and_used_again():
    # pages of 4 KiB; all of it would be 20,480. Small things that lie between may part what was free the first times
    assert page_faults(keep=True)[-1] < 2000
    assert max(page_faults(keep=False)) > 10_000


def test_another_c_library_is_left_alone(monkeypatch):
    def missing(name):
        raise OSError

    monkeypatch.setattr(memory.ctypes, "CDLL", missing)
    assert memory.keep_freed_memory() is False
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
