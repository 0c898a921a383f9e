"""Compiled programs are kept where the user wants them, and counted."""

import jax
import jax.numpy as jnp
import pytest

from rl_reason import compilation


@pytest.fixture
def settings(monkeypatch, tmp_path):
  """No cache set yet, and a user's folder of our own; everything is put back."""
  names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_compilation_cache")
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
  for name, flags, speed in (("one", "avx2", 2000), ("same", "avx2", 3000), ("other", "avx2 avx512f", 2000)):
    (tmp_path / name).write_text(text.format(flags, speed))
  one, same, other, none = (compilation.processor_name(tmp_path / name) for name in ("one", "same", "other", "none"))
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
