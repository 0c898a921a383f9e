"""Sets the C library's allocator on a CPU, so that memory freed by one program serves the next."""

from collections.abc import Mapping
import ctypes
import os
import platform

# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
# Beginnings of environment variables by which a user has chosen otherwise.
_OWN_SETTINGS = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_")


def keep_freed(environment: Mapping[str, str] = os.environ) -> bool:
  """Lets the process keep the memory that it frees, instead of giving it back to the system.

  The temporary memory of a program is one block, gigabytes for an update, that XLA asks for and
  frees at each call. glibc maps and unmaps such a block every time, and the system clears each of
  its pages anew (measured: 2 million page faults a step, a fifth of its time). With this setting
  all memory comes from one heap, which grows to the most that was ever needed and stays (but see
  `give_back`).

  Call it before the first program runs. RL_REASON_KEEP_MEMORY=0 turns it off.

  Args:
    environment: environment variables.

  Returns: whether the setting was made. It is not made where the C library is not glibc, and where
    the user has set one of glibc's variables or another allocator in the environment.
  """
  if environment.get("RL_REASON_KEEP_MEMORY") == "0" or any(
      name.startswith(_OWN_SETTINGS) for name in environment):
    return False
  if platform.libc_ver()[0] != "glibc":
    return False
  mallopt = ctypes.CDLL(None).mallopt
  # -1: the end of the heap is never given back. One arena: other arenas have heaps of 64 MB, which
  # are too small for the large blocks.
  return all(
      [mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1), mallopt(_M_ARENA_MAX, 1)])


def give_back() -> None:
  """Gives all pages that hold nothing back to the system, wherever they lie. glibc only.

  Call it after a compilation. The compiler leaves many small pieces (500 MB for an update of eight
  layers), and the one large block of a program would not fit between them.
  """
  ctypes.CDLL(None).malloc_trim(0)
