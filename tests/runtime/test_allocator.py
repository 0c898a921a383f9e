"""The process keeps large blocks that it frees, unless the user has other plans."""

import platform
import subprocess
import sys

import pytest

from rl_reason.runtime import allocator

# Fresh processes: what mallopt sets lasts. A block of 256 MB is written and freed six times; how
# many pages were new from the second on?
FAULTS = """
import ctypes, resource, sys
from rl_reason.runtime import allocator
kept = allocator.keep_freed({} if sys.argv[1] == "keep" else {"RL_REASON_KEEP_MEMORY": "0"})
libc, size = ctypes.CDLL(None), 2**28
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
for i in range(6):
  block = libc.malloc(size)
  ctypes.memset(block, i, size)
  libc.free(block)
  if i == 0:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")
def test_a_freed_block_is_used_again_without_new_pages():
  def faults(argument):
    # No variables of its own: the user of this test may have set some.
    out = subprocess.run([sys.executable, "-c", FAULTS, argument], capture_output=True, text=True,
                         check=True, env={})
    return tuple(map(int, out.stdout.split()))
  kept, few = faults("keep")
  not_kept, many = faults("not")
  assert (kept, not_kept) == (1, 0)
  # Pages of 4 KB or, where the system joins them, 2 MB: all new, each of five times.
  assert many >= 5 * 2**28 // 2**21
  assert few < many / 5


# Of 64 MB in small pieces all but the last piece are freed, so that the heap's end cannot shrink.
HELD = """
import ctypes
from rl_reason.runtime import allocator
assert allocator.keep_freed({})
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def held():
  return int(open("/proc/self/statm").read().split()[1]) * 4096
pieces = [libc.malloc(2**16) for _ in range(2**10)]
for piece in pieces:
  ctypes.memset(piece, 1, 2**16)
for piece in pieces[:-1]:
  libc.free(piece)
before = held()
allocator.give_back()
print(before - held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")
def test_pages_that_hold_nothing_are_given_back():
  out = subprocess.run(
      [sys.executable, "-c", HELD], capture_output=True, text=True, check=True, env={})
  assert int(out.stdout) > 2**25


@pytest.mark.parametrize("variable", ["GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_THRESHOLD_"])
def test_a_users_own_settings_stay(variable, monkeypatch):
  monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("must not be touched"))
  assert not allocator.keep_freed({variable: "anything"})


def test_another_c_library_is_left_alone(monkeypatch):
  monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
  monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("must not be touched"))
  assert not allocator.keep_freed({})
