"""Compiled programs are kept where the user wants them, and begun before they are needed.

They are counted, and noted for the next run.
"""

import contextlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.runtime import compilation


@pytest.fixture
def settings(monkeypatch, tmp_path):
  """No cache set yet, and a user's folder of our own; everything is put back."""
  names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
           "jax_enable_compilation_cache")
  before = {name: getattr(jax.config, name) for name in names}
  jax.config.update("jax_compilation_cache_dir", None)
  monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
  monkeypatch.setenv("RL_REASON_CACHE", str(tmp_path / "cache"))
  yield tmp_path
  for name, value in before.items():
    jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache(settings):
  compilation.keep_programs(pytest.fail)
  folder = settings / "cache" / "compiled" / compilation.processor_name()
  assert folder.is_dir() and jax.config.jax_compilation_cache_dir == str(folder)
  assert jax.config.jax_persistent_cache_min_compile_time_secs == compilation.MIN_SECONDS


def test_a_users_own_choice_stays(settings, monkeypatch):
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
  jax.config.update("jax_compilation_cache_dir", "/somewhere/else")
  compilation.keep_programs(pytest.fail)
  assert jax.config.jax_compilation_cache_dir == "/somewhere/else"
  jax.config.update("jax_compilation_cache_dir", None)
  jax.config.update("jax_enable_compilation_cache", False)
  compilation.keep_programs(pytest.fail)
  assert jax.config.jax_compilation_cache_dir is None and not (settings / "cache").exists()
  jax.config.update("jax_enable_compilation_cache", True)
  compilation.keep_programs(pytest.fail)
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 7.0


def test_a_folder_that_cannot_be_written_is_told_once(settings):
  (settings / "cache").write_text("a file where the folder should be")
  notes = []
  compilation.keep_programs(notes.append)
  [note] = notes
  assert "are not kept" in note and "JAX_COMPILATION_CACHE_DIR" in note
  assert jax.config.jax_compilation_cache_dir is None


def test_another_processor_has_another_folder(tmp_path):
  text = "processor\t: 0\nmodel name\t: A\nflags\t\t: avx {}\ncpu MHz\t\t: {}\n\nprocessor\t: 1\n"
  for name, flags, speed in (
      ("one", "avx2", 2000), ("same", "avx2", 3000), ("other", "avx2 avx512f", 2000)):
    (tmp_path / name).write_text(text.format(flags, speed))
  one, same, other, none = (
      compilation.processor_name(tmp_path / name) for name in ("one", "same", "other", "none"))
  assert one == same and len({one, other, none}) == 3


def test_every_program_is_counted_once():
  count = compilation.compilations()
  assert compilation.compilations() is count
  double = jax.jit(lambda x: 2 * x + 1)
  inputs = [jnp.zeros(n) for n in (3, 5)]  # Making them compiles too.
  before = count.programs, count.seconds
  for x in inputs * 2:
    double(x)
  assert count.programs - before[0] == 2  # One for each shape.
  assert count.seconds > before[1]


def test_long_compilations_are_followed_by_a_call():
  calls = []
  def call():
    calls.append(threading.current_thread())
  compilation.after_each(call, 0.0)
  compilation.after_each(call, 0.0)  # Once is enough.
  never = lambda: pytest.fail("took less than an hour")
  compilation.after_each(never, 3600.0)
  x = jnp.zeros(11)
  calls.clear()
  jax.jit(lambda x: 3 * x + 2)(x)
  assert calls == [threading.current_thread()]


def test_a_note_is_read_by_a_run_like_it(settings):
  assert compilation.Note("lengths", 1).read() is None  # Programs are not kept, so notes are not.
  compilation.Note("lengths", 1).write([1])
  jax.config.update("jax_compilation_cache_dir", str(settings / "programs"))
  note = compilation.Note("lengths", dict(a=1))
  assert note.read() is None
  note.write({"lengths": [3, 1]})
  assert compilation.Note("lengths", dict(a=1)).read() == {"lengths": [3, 1]}
  assert compilation.Note("lengths", dict(a=2)).read() is None
  assert compilation.Note("widths", dict(a=1)).read() is None
  assert len([*(settings / "programs" / "notes").iterdir()]) == 1  # Nothing half written beside it.
  # A file where the folder should be, or a folder elsewhere: no note, no error.
  (settings / "file").write_text("")
  for folder in (str(settings / "file"), "gs://bucket/programs"):
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation.Note("lengths").write([1])
    assert compilation.Note("lengths").read() is None


@pytest.fixture
def within():
  """A context manager that notes the threads it is entered in, as `within.threads`."""
  @contextlib.contextmanager
  def enter():
    enter.threads.append(threading.current_thread())
    yield
  enter.threads = []
  return enter


def test_a_begun_program_is_compiled_once_and_called(within):
  count, device = compilation.compilations(), jax.devices()[0]
  three, five = (jax.device_put(np.arange(n, dtype=np.float32), device) for n in (3, 5))
  with contextlib.closing(compilation.Program(
      jax.jit(lambda x, *, times: times * x + 1, static_argnames="times"), within)) as program:
    before = count.programs
    shape = jax.ShapeDtypeStruct(three.shape, three.dtype, sharding=three.sharding)
    for _ in range(2):
      program.begin(shape, times=2)
    np.testing.assert_array_equal(program(three, times=2), [1, 3, 5])
    assert count.programs - before == 1 and len(within.threads) == 1
    assert within.threads[0] is not threading.current_thread()
    # What was not begun is compiled by the call.
    np.testing.assert_array_equal(program(three, times=3), [1, 4, 7])
    np.testing.assert_array_equal(program(five, times=2), [1, 3, 5, 7, 9])
    assert count.programs - before == 3 and len(within.threads) == 1
  assert not within.threads[0].is_alive()


def test_a_call_waits_for_what_was_begun():
  traced, go = threading.Event(), threading.Event()
  def slow(x):
    traced.set()
    assert go.wait(20)
    return x + 1
  x, count = jax.device_put(np.ones(7, np.float32), jax.devices()[0]), compilation.compilations()
  with contextlib.closing(compilation.Program(jax.jit(slow))) as program:
    before = count.programs
    program.begin(x)
    assert traced.wait(20)
    threading.Timer(0.2, go.set).start()
    np.testing.assert_array_equal(program(x), np.full(7, 2))
    assert count.programs - before == 1


def test_an_error_of_the_thread_is_met_by_the_call():
  def fails(x):
    raise ZeroDivisionError("no such program")
  x = np.ones(2, np.float32)
  with contextlib.closing(compilation.Program(jax.jit(fails))) as program:
    program.begin(x)
    with pytest.raises(ZeroDivisionError, match="no such program"):
      program(x)
