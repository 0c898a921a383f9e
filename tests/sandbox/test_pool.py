"""The pool of worker processes: order, deadlines, crashes, limits.

No worker outlives its parent.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from rl_reason.sandbox import pool as workers
from tests import environment

# What no worker may load: it takes seconds and hundreds of megabytes, once per worker.
HEAVY = {"jax", "flax", "optax", "rl_reason.rewards", "rl_reason.models"}

# What the workers run: a module of its own, so that a worker imports nothing else from here.
FUNCTIONS = r'''
import os, signal, sys, time

def act(item):
  """Does what the item says."""
  kind, value = item
  if kind == "square":
    return value * value
  if kind == "echo":
    return value
  if kind == "length":
    return len(value)
  if kind == "sleep":
    time.sleep(value)
    return "slept"
  if kind == "kill once":  # Or whatever signal; `value` is (file, signal).
    if not os.path.exists(value[0]):
      open(value[0], "w").close()
      os.kill(os.getpid(), value[1])
    return "right"
  if kind == "kill":
    os.kill(os.getpid(), value)
    time.sleep(60)
  if kind == "exit":
    os._exit(3)
  if kind == "segfault":
    os.kill(os.getpid(), signal.SIGSEGV)
  if kind == "pid":
    return os.getpid()
  if kind == "sigint":
    os.kill(os.getpid(), signal.SIGINT)
    return "alive"
  if kind == "memory":
    return len(bytearray(value))
  if kind == "recursion":
    return act(item)
  if kind == "power":
    return (9 ** 9 ** value) % 10  # One C call, which holds the interpreter.
  if kind == "print":
    print("noise" * value, flush=True)
    os.write(1, b"more noise")
    return sys.stdin.read()
  if kind == "child":
    if os.fork() == 0:
      time.sleep(60)
      os._exit(0)
    os._exit(0)
  if kind == "modules":
    return sorted(sys.modules)
  if kind == "mathematics":
    from rl_reason.sandbox import math_answers
    assert math_answers.check_math(value)
    return sorted(sys.modules)
  if kind == "bug":
    raise KeyError("a bug of the function")
  return object()
'''


@pytest.fixture
def make_pool(tmp_path, monkeypatch):
  (tmp_path / "worker_functions.py").write_text(FUNCTIONS)
  monkeypatch.syspath_prepend(str(tmp_path))
  pools = []

  def make(**settings):
    settings = dict(num_workers=2, timeout_seconds=30.0) | settings
    pools.append(workers.WorkerPool("worker_functions:act", **settings))
    return pools[-1]

  yield make
  for pool in pools:
    pool.close()


def runs(pid):
  """Whether a process is there and not a zombie that nobody has reaped."""
  try:
    os.kill(pid, 0)
    with open(f"/proc/{pid}/stat") as f:
      return f.read().rpartition(")")[2].split()[0] != "Z"
  except ProcessLookupError:
    return False
  except FileNotFoundError:  # Gone in between, or no /proc on this system.
    return sys.platform != "linux"


def wait_until_gone(pids, seconds=10.0):
  deadline = time.monotonic() + seconds
  while any(map(runs, pids)) and time.monotonic() < deadline:
    time.sleep(0.05)
  return not any(map(runs, pids))


def test_results_come_in_the_order_of_the_items(make_pool):
  pool = make_pool()
  # The first item is the last to finish.
  assert pool.map([("sleep", 0.3), *(("square", i) for i in range(50))]) == [
      "slept", *(i * i for i in range(50))]
  assert pool.map([]) == []
  assert not pool.failures


def test_workers_start_at_first_use_and_are_kept(make_pool):
  pool = make_pool(num_workers=1)
  assert not pool._workers
  pid, = pool.map([("pid", 0)])
  assert pool.map([("pid", 0)]) == [pid] and pid != os.getpid()
  pool.close()
  pool.close()
  assert wait_until_gone([pid])
  assert pool.map([("pid", 0)]) != [pid]  # A closed pool comes back.


def test_no_more_workers_than_items(make_pool):
  pool = make_pool(num_workers=2)
  pool.map([("square", 2)])
  assert len(pool._workers) == 1


def test_a_hanging_item_is_killed_and_the_others_go_on(make_pool):
  pool = make_pool(num_workers=1, timeout_seconds=0.5)
  pid, = pool.map([("pid", 0)])
  start = time.monotonic()
  items = [("square", 3), ("sleep", 60), ("power", 9), ("square", 4)]
  assert pool.map(items, on_failure="late") == [9, "late", "late", 16]
  assert time.monotonic() - start < 10
  assert pool.failures == {"timeout": 2}
  assert wait_until_gone([pid])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGSTOP])
def test_a_worker_that_is_killed_or_stopped_costs_no_answer(make_pool, tmp_path, number):
  pool = make_pool(num_workers=1, timeout_seconds=0.5)
  assert pool.map([("kill once", [str(tmp_path / "file"), number]), ("square", 3)]) == ["right", 9]
  assert not pool.failures
  assert pool.retried == 1


@pytest.mark.parametrize("number, reason, result", [
    (signal.SIGKILL, "crash", "unknown"), (signal.SIGSTOP, "timeout", "unknown"),
    (signal.SIGSEGV, "crash", "wrong")])
def test_a_second_stop_leaves_an_item_unknown_and_a_crash_of_its_own_is_wrong(
    make_pool, number, reason, result):
  pool = make_pool(num_workers=1, timeout_seconds=0.3, on_stopped="unknown")
  items = [("kill", number), ("square", 3)]
  assert pool.map(items, on_failure="wrong") == [result, 9]
  assert pool.failures == {reason: 1}


def test_an_item_that_computes_too_long_is_not_tried_again(make_pool):
  pool = make_pool(num_workers=1, timeout_seconds=0.5, on_stopped="unknown")
  assert pool.map([("power", 9)], on_failure="wrong") == ["wrong"]
  assert pool.retried == 0


STARTS = """
import os, signal

starts = os.environ["STARTS"]
with open(starts, "a") as f:
  f.write(".")
if os.path.getsize(starts) <= int(os.environ["BAD_STARTS"]):
  os.kill(os.getpid(), signal.SIGKILL)

def double(item):
  return 2 * item
"""


def killed_at_start(tmp_path, monkeypatch, times):
  """A pool whose first workers are killed while they start."""
  (tmp_path / "worker_starts.py").write_text(STARTS)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
  monkeypatch.setenv("BAD_STARTS", str(times))
  return workers.WorkerPool("worker_starts:double", num_workers=1)


def test_a_worker_that_is_killed_while_it_starts_is_replaced(tmp_path, monkeypatch):
  pool = killed_at_start(tmp_path, monkeypatch, times=2)
  assert pool.map([1, 2]) == [2, 4]
  assert not pool.failures
  pool.close()


def test_workers_that_never_start_are_an_error(tmp_path, monkeypatch):
  pool = killed_at_start(tmp_path, monkeypatch, times=100)
  with pytest.raises(RuntimeError, match="died while starting .exit status -9., and so did all of 3"):
    pool.map([1])


def test_a_crashing_item_costs_itself_only(make_pool):
  pool = make_pool(num_workers=1)
  assert pool.map([("exit", 0), ("square", 3), ("segfault", 0), ("square", 4)], on_failure=-1) == [
      -1, 9, -1, 16]
  assert pool.failures == {"crash": 2}


@pytest.mark.skipif(
    sys.platform != "linux", reason="Only Linux enforces the limit of the address space.")
def test_memory_is_limited(make_pool):
  pool = make_pool(num_workers=1, memory_bytes=workers.GIB)
  assert pool.map([("memory", 2 * workers.GIB), ("memory", 1000)], on_failure=None) == [None, 1000]
  assert pool.failures == {"memory": 1}


def test_endless_recursion_is_counted(make_pool):
  pool = make_pool(num_workers=1)
  assert pool.map([("recursion", 0), ("square", 3)]) == [None, 9]
  assert pool.failures == {"recursion": 1}


def test_megabytes_in_both_directions_do_not_deadlock(make_pool):
  # A pipe holds 64 KiB; JSON makes 10 MB of it, with a lone surrogate.
  big = "x{\ud800\0é" * 800_000
  assert make_pool().map([("echo", big)] * 3 + [("length", big)]) == [big] * 3 + [len(big)]


def test_what_the_function_prints_and_reads_stays_out_of_the_protocol(make_pool):
  assert make_pool(num_workers=1).map([("print", 100_000), ("square", 3)]) == ["", 9]


def test_an_interrupt_from_the_terminal_does_not_reach_workers(make_pool):
  pool = make_pool(num_workers=1)
  assert pool.map([("sigint", 0)]) == ["alive"]
  assert os.getsid(pool._workers[0].process.pid) != os.getsid(0)


def test_an_idle_worker_that_died_is_replaced_without_a_failure(make_pool):
  pool = make_pool(num_workers=1)
  pid, = pool.map([("pid", 0)])
  os.kill(pid, signal.SIGKILL)
  time.sleep(0.2)
  assert pool.map([("square", 3)], on_failure="lost") == [9]
  assert not pool.failures


def test_a_child_that_a_crashed_worker_left_is_killed_and_does_not_hold_the_pipe(make_pool):
  pool = make_pool(num_workers=1, timeout_seconds=1.0)
  pool.map([("square", 1)])
  group = pool._workers[0].process.pid
  assert pool.map([("child", 0)], on_failure="lost") == ["lost"]
  time.sleep(0.2)
  if sys.platform == "linux":
    running = [
        p for p in os.listdir("/proc") if p.isdigit() and runs(int(p)) and _group(p) == group]
    assert not running


def _group(pid):
  try:
    return os.getpgid(int(pid))
  except ProcessLookupError:
    return None


def test_a_bug_in_the_function_is_raised_and_the_pool_still_works(make_pool):
  pool = make_pool()
  # Both workers are up, so that the first is busy when the second raises.
  pool.map([("sleep", 0.5)] * 2)
  with pytest.raises(RuntimeError, match=r"item 1[\s\S]*a bug of the function"):
    pool.map([("sleep", 1), ("bug", 0)])
  assert pool.map([("square", 3), ("square", 4)]) == [9, 16]  # No stale answer of the broken call.
  with pytest.raises(RuntimeError, match="not JSON serializable"):
    pool.map([("object", 0)])
  with pytest.raises(TypeError, match="Item 1 .*not JSON-able"):
    pool.map([("square", 2), object()])
  assert pool.map([("square", 5)]) == [25]


def test_errors_before_any_item(make_pool):
  with pytest.raises(ValueError, match="package.module:function"):
    workers.WorkerPool("no_colon")
  with pytest.raises(ValueError, match="timeout_seconds must be a positive number, got 0"):
    make_pool(timeout_seconds=0)
  with pytest.raises(ValueError, match="memory_bytes"):
    make_pool(memory_bytes=1000)
  with pytest.raises(RuntimeError, match="no_such_module"):
    workers.WorkerPool("no_such_module:function").map([1])
  make_pool()
  with pytest.raises(RuntimeError, match="did not start in 0.001 s"):
    make_pool(start_timeout_seconds=0.001).map([("square", 3)])


def test_a_worker_holds_the_sandbox_and_nothing_heavy(make_pool):
  loaded, = make_pool(num_workers=1).map([("modules", 0)])
  assert "rl_reason.sandbox.pool" in loaded
  assert not HEAVY & set(loaded)
  assert "math_verify" not in loaded  # Only the function that needs it brings it.


def test_a_worker_that_checks_mathematics_holds_nothing_heavy(make_pool):
  # The worker's function is ours here, and looks at what the real one has loaded.
  loaded, = make_pool(num_workers=1).map([("mathematics", [r"\boxed{1/2}", "0.5"])])
  assert "math_verify" in loaded
  assert not HEAVY & set(loaded)


@pytest.mark.parametrize("module", ["rl_reason", "rl_reason.sandbox", "rl_reason.sandbox.pool",
                                    "rl_reason.sandbox.math_answers", "rl_reason.types"])
def test_what_workers_may_import_brings_no_jax(module):
  code = f"import sys, {module}; print(*sys.modules)"
  loaded = subprocess.run(
      [sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
  assert not HEAVY & set(loaded)


def test_shared_pools_are_one_per_function_and_settings():
  a = workers.shared_pool("json:dumps", timeout_seconds=1.0)
  assert workers.shared_pool("json:dumps", timeout_seconds=1.0) is a
  assert workers.shared_pool("json:dumps", timeout_seconds=2.0) is not a


PARENT = """
  import sys
  from rl_reason.sandbox import pool as workers
  pool = workers.WorkerPool("worker_functions:act", num_workers=1, timeout_seconds={timeout})
  print(*pool.map([("pid", 0)]), flush=True)
  {then}
"""


def start_parent(tmp_path, then, timeout=100.0):
  """A process without a main guard that uses a pool; (process, its worker's pid)."""
  (tmp_path / "worker_functions.py").write_text(FUNCTIONS)
  script = tmp_path / "script.py"
  script.write_text(textwrap.dedent(PARENT).format(then=then, timeout=timeout))
  parent = subprocess.Popen(
      [sys.executable, str(script)], stdout=subprocess.PIPE, text=True,
      env=environment(folders=[tmp_path]), cwd=tmp_path)
  return parent, int(parent.stdout.readline())


@pytest.mark.parametrize(
    "then", ["sys.stdin.read() or __import__('time').sleep(60)", "pool.map([('sleep', 60)])"],
    ids=["idle", "busy"])
def test_no_worker_outlives_a_killed_parent(tmp_path, then):
  parent, worker = start_parent(tmp_path, then)
  time.sleep(0.2)
  assert runs(worker)
  parent.kill()
  parent.communicate()
  assert wait_until_gone([worker], seconds=5.0)


@pytest.mark.slow
def test_a_worker_inside_a_c_call_dies_after_its_parent(tmp_path):
  parent, worker = start_parent(tmp_path, "pool.map([('power', 9)])", timeout=0.9)
  time.sleep(0.2)
  parent.kill()
  parent.communicate()
  assert wait_until_gone([worker], seconds=30.0)


def test_no_worker_is_left_at_a_normal_end(tmp_path):
  parent, worker = start_parent(tmp_path, "pass")
  assert parent.wait(timeout=10) == 0
  parent.stdout.close()
  assert wait_until_gone([worker], seconds=1.0)
