"""Samples completions of a policy, in one turn or in several, in one way for every caller."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rl_reason.arrays import Inputs
from rl_reason.batches.prompts import encode_prompts
from rl_reason.models.config import ModelConfig
from rl_reason.models.tokenizer import Tokenizer
from rl_reason.rollout.episodes import BoundedEnvironment, play
from rl_reason.rollout.generate import Completions, generate
from rl_reason.rollout.samples import check_sampling, make_samples
from rl_reason.rollout.sampling import Sampling
from rl_reason.runtime import memory, sharding
from rl_reason.types import Params, Problem, Sample


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Samples completions of a policy. Training, evaluation and commands all use this class.

  model: architecture of the policy.
  tokenizer: tokenizer of the policy.
  dtype: dtype of the computation.
  max_prompt_tokens: most tokens of a prompt; longer prompts are an error.
  prefill_tokens: prompts are read in stretches of `n` tokens (rollout.generate); 0: whole.
  environment: who answers the policy's turns; None: a completion is one turn.
  """
  model: ModelConfig
  tokenizer: Tokenizer
  dtype: jnp.dtype
  max_prompt_tokens: int
  prefill_tokens: int = 0
  environment: BoundedEnvironment | None = None

  def __call__(
      self, params: Params, problems: Sequence[Problem], prompts: Inputs, sampling: Sampling,
      **options: Any,
  ) -> Completions:
    """Samples completions, in turns where there is an environment.

    Args:
      params: parameters of the policy, without adapters (lora.merge).
      problems: as in rollout.episodes.play.
      prompts: the problems, encoded (`encode`).
      sampling: how tokens are drawn.
      options: further arguments of rollout.generate: group_size, rng and others.
    """
    options |= dict(dtype=self.dtype, prefill_tokens=self.prefill_tokens)
    given = (self.model, params, prompts, sampling)
    if self.environment is not None:
      return play(*given, environment=self.environment, problems=problems,
                  tokenizer=self.tokenizer, **options)
    return generate(*given, stop_ids=self.tokenizer.stop_ids, decode_text=self.tokenizer.decode,
                    **options)

  def encode(self, problems: Sequence[Problem], *, bucket: int | None = None) -> Inputs:
    """Encodes this process's prompts.

    Args:
      problems: problems of this process.
      bucket: prompts are padded to a multiple of `bucket` tokens; None: of `prompt_bucket`.
    Raises: ValueError for prompts that are too long.
    """
    return encode_prompts(problems, self.tokenizer, max_tokens=self.max_prompt_tokens,
                          bucket=self.prompt_bucket if bucket is None else bucket)

  def encode_everywhere(self, problems: Sequence[Problem]) -> Inputs:
    """Encodes the prompts of all processes; each gives its own, and all get the same result."""
    return jax.tree.map(sharding.gather_rows, self.encode(problems))

  def samples(
      self, problems: Sequence[Problem], completions: Completions, sampling: Sampling,
      **options: Any,
  ) -> list[Sample]:
    """Turns completions into what rewards read. Options are those of samples.make_samples."""
    return make_samples(problems, completions, self.tokenizer, stop_strings=sampling.stop_strings,
                        **options)

  def check(self, sampling: Sampling, path: str) -> None:
    """Checks a `sampling` section.

    Args:
      sampling: the section.
      path: place of the section, for errors, e.g. "config.evaluation".
    Raises: ValueError for a section that the model or the environment cannot use.
    """
    check_sampling(sampling, self.model, self.tokenizer, max_prompt_tokens=self.max_prompt_tokens)
    if self.environment is not None:
      self.environment.check(sampling, path)

  def batch(self, prompts: int, group_size: int, sampling: Sampling) -> memory.Batch:
    """Returns what devices decode at once, for the estimate of memory.

    In later turns of an episode each completion reads a context of its own, so that prompts are no
    longer shared by groups.
    """
    if self.environment is None:
      return memory.Batch(prompts, group_size, self.max_prompt_tokens, sampling.max_tokens)
    turn = self.environment.turn_tokens
    context = self.max_prompt_tokens + self.environment.max_tokens - turn
    return memory.Batch(prompts * group_size, 1, context, turn)

  @property
  def prompt_bucket(self) -> int:
    """Returns the tokens to whose multiple prompts are padded: few programs, little padding.

    Several processes pad to the limit, because each process sees only its own prompts.
    """
    return 32 if jax.process_count() == 1 else self.max_prompt_tokens
