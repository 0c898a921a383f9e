"""Gives every test eight fake CPU devices, and the fixtures that tests share.

The number of devices is set before JAX starts; tests that need the real number start a process. The
`tiny` fixtures are one model and one batch that the tests of the core share.
"""

import fnmatch
import gc
import importlib.metadata
import io
import os
import pathlib
import tempfile

# Tests spend most of their time compiling. Without XLA's optimisations a small model's gradient
# takes 1.7 s to compile, and with them 11 s.
flags = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
# Only with this version: XLA ends the process over a flag that it no longer has.
if importlib.metadata.version("jaxlib").startswith("0.10."):
  flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiled programs, also those of processes that tests start, are kept while the tests run, and
# apart from the user's cache.
programs = tempfile.TemporaryDirectory(prefix="rl_reason_programs_", ignore_cleanup_errors=True)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", programs.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

from etils import epath
import jax
import numpy as np
import pytest

from tests.trials import Trial

# Tracing makes millions of small objects that live on. Collecting them as often as Python does by
# itself takes an eighth of the tests' time.
gc.set_threshold(50_000, 50, 100)


def pytest_addoption(parser):
  """Adds the options of seeded tests: --seed=3 --count=300."""
  parser.addoption("--seed", type=int, default=0, help="seed of tests that draw damage or kills")
  parser.addoption("--count", type=int, default=0, help="trials of each of them; 0: its own number")


@pytest.fixture
def trials(request):
  """Returns a function: a test's own number of trials -> its trials, as --seed and --count say."""
  seed, count = map(request.config.getoption, ("seed", "count"))
  return lambda number: (
      Trial(f"{request.node.name}, --seed={seed}, {i}") for i in range(count or number))


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
  """Drops a file's programs from memory after its tests; those of all files are gigabytes."""
  yield
  jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_config():
  """Makes the config of a model with two layers of width 32."""
  from rl_reason.models.config import ModelConfig
  return ModelConfig(
      vocab_size=32, width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
      mlp_hidden=48)


@pytest.fixture(scope="session")
def draw_params():
  """Returns a function: config -> parameters with norms near 1 and biases that are not 0.

  They are drawn with NumPy, because init_params takes seconds to compile.
  """
  def draw(config, seed=0):
    from rl_reason.models.transformer import abstract_params
    rng = np.random.RandomState(seed)

    def one(path, x):
      noise = rng.standard_normal(x.shape).astype(np.float32)
      if "norm" in jax.tree_util.keystr(path):
        return np.float32(not config.norm_plus_one) + 0.1 * noise
      return noise / np.sqrt(config.width, dtype=np.float32)
    return jax.tree.map_with_path(one, abstract_params(config))
  return draw


@pytest.fixture(scope="session")
def tiny_params(tiny_config, draw_params):
  """Draws parameters of the tiny model."""
  return draw_params(tiny_config)


@pytest.fixture(scope="session")
def tiny_batch(tiny_config):
  """Makes a batch of 4 prompts of up to 6 tokens, with 2 completions each of up to 5 tokens.

  Its arrays are NumPy's, with zeros where padded.
  """
  from rl_reason.arrays import Inputs, length_mask, RolloutBatch
  from rl_reason.objectives.losses import token_weights
  rng = np.random.RandomState(1)
  prompt_lengths, lengths = (
      np.array([6, 3, 1, 5], np.int32), np.array([5, 2, 1, 5, 3, 4, 5, 1], np.int32))
  mask = np.asarray(length_mask(lengths, 5))
  prompts = rng.randint(0, tiny_config.vocab_size, (4, 6)) * np.asarray(
      length_mask(prompt_lengths, 6))
  def noise(scale):
    return np.where(mask, scale * rng.standard_normal((8, 5)), 0.0).astype(np.float32)
  return RolloutBatch(
      prompts=Inputs(tokens=prompts.astype(np.int32), lengths=prompt_lengths),
      completions=(rng.randint(0, tiny_config.vocab_size, (8, 5)) * mask).astype(np.int32),
      completion_lengths=lengths, behaviour_logprobs=noise(0.5) - 3 * mask,
      advantages=noise(1.0), reference_logprobs=noise(0.5) - 3 * mask,
      token_weights=np.asarray(token_weights(mask, mean_over="token", max_tokens=5)))


@pytest.fixture
def shared_data():
  """Returns the folder with real data sets, or skips: tests must pass in a bare checkout."""
  folder = pathlib.Path(os.environ.get(
      "RL_REASON_DATA", pathlib.Path(__file__).parents[2] / "shared" / "data"))
  if not folder.is_dir():
    pytest.skip(f"No real data at {folder}; set RL_REASON_DATA.")
  return folder


class ObjectStore:
  """A file system behind epath's interface that stands in for gs://: objects, and no appending.

  Objects lie in a dict. A folder is there while an object is in it, as in a real store.
  """

  def __init__(self):
    self.objects, self.times = {}, {}
    self.uploads = 0

  def _key(self, path):
    key = os.fspath(path).rstrip("/")
    assert key.startswith("gs://"), f"{key} is no path of the store"
    return key

  def open(self, path, mode):
    key = self._key(path)
    if "r" in mode:
      if key not in self.objects:
        raise FileNotFoundError(key)
      content = io.BytesIO(self.objects[key])
    elif "w" in mode:
      content = _Upload(self, key)
    else:
      raise ValueError("objects cannot be appended to")
    return content if "b" in mode else io.TextIOWrapper(content)

  def _below(self, path):
    return [key for key in self.objects if key.startswith(self._key(path) + "/")]

  def exists(self, path):
    return self._key(path) in self.objects or self.isdir(path)

  def isdir(self, path):
    return bool(self._below(path))

  def listdir(self, path):
    return sorted({
        key.removeprefix(self._key(path) + "/").partition("/")[0] for key in self._below(path)})

  def glob(self, path):
    return [key for key in self.objects if fnmatch.fnmatch(key, self._key(path))]

  def makedirs(self, path, *, exist_ok=False, mode=None):
    pass

  def mkdir(self, path, *, exist_ok=False, mode=None):
    pass

  def rmtree(self, path):
    for key in self._below(path):
      del self.objects[key]

  def remove(self, path):
    if self.objects.pop(self._key(path), None) is None:
      raise FileNotFoundError(path)

  def rename(self, path, dst):
    raise AssertionError("a store renames by copying, which is not one step")

  replace = rename

  def stat(self, path):
    content = self.objects.get(self._key(path))
    if content is None and not self.isdir(path):
      raise FileNotFoundError(path)
    return epath.stat_utils.StatResult(
        is_directory=content is None, length=len(content or b""), mtime=0, owner=None, group=None,
        mode=None)


class _Upload(io.BytesIO):
  """An object that is there once it is closed."""

  def __init__(self, store, key):
    super().__init__()
    self.store, self.key = store, key

  def close(self):
    if not self.closed:
      self.store.objects[self.key] = self.getvalue()
      self.store.uploads += 1
    super().close()


@pytest.fixture
def store(monkeypatch):
  """Puts a stand-in where gs:// is, and checks that no local folder `gs:` is made."""
  store = ObjectStore()
  monkeypatch.setitem(epath.gpath._PREFIX_TO_BACKEND, "gs", store)
  yield store
  assert not pathlib.Path("gs:").exists()
