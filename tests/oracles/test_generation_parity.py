"""Compares our rollouts with transformers' generate: tokens, filters and log-probabilities.

Both have the same weights.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.models import policy, pretrained
from rl_reason.rollout.generate import generate
from rl_reason.rollout.sampling import filter_logits, Sampling

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

T = 24


@pytest.fixture(scope="module")
def model(tiny_config, tiny_params, tmp_path_factory):
  directory = tmp_path_factory.mktemp("model") / "tiny"
  pretrained.save(directory, tiny_config, tiny_params)
  return transformers.AutoModelForCausalLM.from_pretrained(
      directory, attn_implementation="eager").eval()


def left_padded(prompts):
  """Their generate wants padding on the left, with its mask."""
  tokens, mask = np.zeros_like(prompts.tokens), np.zeros_like(prompts.tokens)
  for row, n in enumerate(prompts.lengths):
    tokens[row, -n:], mask[row, -n:] = prompts.tokens[row, :n], 1
  return torch.tensor(tokens, dtype=torch.int64), torch.tensor(mask)


@pytest.mark.parametrize("with_stop", [False, True])
def test_greedy_tokens_and_log_probabilities(
    with_stop, model, tiny_config, tiny_params, tiny_batch):
  tokens, mask = left_padded(tiny_batch.prompts)
  def theirs(stop):
    return model.generate(
        tokens, attention_mask=mask, max_new_tokens=T, do_sample=False, eos_token_id=stop,
        pad_token_id=0, return_dict_in_generate=True, output_logits=True)
  out = theirs(None)
  stop = None
  if with_stop:  # A token that ends some rows early and not others.
    stop = next(
        i for i in range(1, 32)
        if 0 < sum(i in row for row in out.sequences[:, 6:].tolist()) < 4)
    out = theirs(stop)
  expected = out.sequences[:, 6:].numpy()
  logprobs = torch.stack(out.logits, 1).log_softmax(-1).gather(
      2, out.sequences[:, 6:, None])[..., 0].numpy()
  ours = generate(
      tiny_config, tiny_params, tiny_batch.prompts, Sampling(max_tokens=T, temperature=0.0),
      group_size=1, rng=jax.random.key(0), stop_ids=[] if stop is None else [stop],
      chunk_size=10)
  np.testing.assert_array_equal(ours.tokens[:, :expected.shape[1]], expected)
  real = np.arange(expected.shape[1]) < ours.lengths[:, None]
  np.testing.assert_allclose(
      np.where(real, logprobs, 0), ours.logprobs[:, :expected.shape[1]], atol=1e-4)
  np.testing.assert_array_equal(ours.truncated, ~(expected == stop).any(1))
  assert ours.truncated.all() != with_stop


@pytest.mark.parametrize("filters", [
    dict(), dict(top_k=5), dict(top_k=1), dict(top_p=0.7), dict(top_p=0.999), dict(min_p=0.1),
    dict(top_k=10, top_p=0.8), dict(top_k=20, top_p=0.95, min_p=0.02)], ids=str)
@pytest.mark.parametrize("temperature", [0.6, 1.5])
def test_filters_equal_their_logits_processors(filters, temperature, model):
  config = transformers.GenerationConfig(
      do_sample=True, temperature=temperature, **{"top_k": 0, **filters})
  # In the order in which their generate applies them.
  processors = model._get_logits_processor(config, input_ids_seq_length=1)
  logits = 3 * np.random.RandomState(0).standard_normal((50, 32)).astype(np.float32)
  expected = processors(torch.zeros((50, 1), dtype=torch.int64), torch.tensor(logits)).numpy()
  np.testing.assert_allclose(
      filter_logits(jnp.asarray(logits), Sampling(1, temperature=temperature, **filters)),
      expected, rtol=1e-5)
  assert np.isfinite(expected).all() == (not filters)


def test_trainer_log_probabilities_and_entropies(model, tiny_config, tiny_params, tiny_batch):
  # Theirs from left-padded prompts and right-padded completions, one full row each.
  temperature = 0.7
  tokens, mask = (x.repeat_interleave(2, 0) for x in left_padded(tiny_batch.prompts))
  completions = torch.tensor(tiny_batch.completions, dtype=torch.int64)
  real = np.asarray(tiny_batch.completion_mask)
  attention_mask = torch.cat([mask, torch.tensor(real).to(mask)], 1)
  positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
  with torch.no_grad():
    logits = model(
        torch.cat([tokens, completions], 1), attention_mask=attention_mask,
        position_ids=positions).logits
  table = (logits[:, 5:-1] / temperature).log_softmax(-1)
  logprobs, entropies = jax.jit(functools.partial(
      policy.completion_logprobs, tiny_config, temperature=temperature))(
          tiny_params, tiny_batch.prompts, tiny_batch.completions, tiny_batch.completion_lengths)
  np.testing.assert_allclose(
      logprobs[real], table.gather(2, completions[..., None])[..., 0].numpy()[real], atol=1e-4)
  np.testing.assert_allclose(
      entropies[real], -(table.exp() * table).sum(-1).numpy()[real], atol=1e-4)
