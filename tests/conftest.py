"""Gives every test eight fake CPU devices, and the fixtures that tests share.

The number of devices is set before JAX starts; tests that need the real number start a process. The
`tiny` fixtures are one model and one batch that the tests of the core share.
"""

import gc
import importlib.metadata
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

import jax
import numpy as np
import pytest

# Tracing makes millions of small objects that live on. Collecting them as often as Python does by
# itself takes an eighth of the tests' time.
gc.set_threshold(50_000, 50, 100)


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
