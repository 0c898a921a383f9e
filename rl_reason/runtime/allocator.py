"""The C library's allocator on a CPU: memory that one program gave back serves the next one."""

from collections.abc import Mapping
import ctypes
import os
import platform

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_OWN_SETTINGS = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_")  # Beginnings of variables.


def keep_freed(environment: Mapping[str, str] = os.environ) -> bool:
  """Lets the process keep what it frees, to be used again, instead of giving each large block back to the system.

  A program's temporary memory is one block, gigabytes for an update, that XLA asks for and frees at each call. glibc maps and
  unmaps such a block every time, and the system clears each of its pages anew (measured: 2 million page faults a step, a
  fifth of its time). All comes from one heap then, which grows to what was once needed and stays (but see `give_back`).

  Call it before the first program runs. Does nothing and returns False where the C library is another one, and where the
  user has set one of glibc's variables or another allocator in the environment. RL_REASON_KEEP_MEMORY=0 turns it off.
  """
  if environment.get("RL_REASON_KEEP_MEMORY") == "0" or any(name.startswith(_OWN_SETTINGS) for name in environment):
    return False
  if platform.libc_ver()[0] != "glibc":
    return False
  mallopt = ctypes.CDLL(None).mallopt
  # -1: never give back the end of the heap. One arena: others have heaps of 64 MB, too small for what matters here.
  return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1), mallopt(_M_ARENA_MAX, 1)])


def give_back() -> None:
  """Gives the system all pages that hold nothing, wherever they lie: after a compilation, whose many small pieces (500 MB for
  an update of eight layers) no program's one large block would fit between. glibc only."""
  ctypes.CDLL(None).malloc_trim(0)
