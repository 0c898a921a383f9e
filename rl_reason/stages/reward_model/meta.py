"""MetaRM takes a reward model's gradient where it scores a policy's new responses further apart."""

from collections.abc import Callable, Sequence
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np
import optax

from rl_reason.batches.responses import Encoded, Layout
from rl_reason.config.checks import at_least, one_of
from rl_reason.models import lora
from rl_reason.models.reward_model import ResponseBatch
from rl_reason.models.tokenizer import Tokenizer
from rl_reason.objectives import preferences
from rl_reason.rollout import memory as rollout_memory
from rl_reason.rollout.samples import check_sampling
from rl_reason.rollout.sampling import Sampling
from rl_reason.runtime import memory as memory_lib
from rl_reason.stages.context import Context
from rl_reason.types import Comparison, Params, Problem


@dataclasses.dataclass(frozen=True)
class Meta:
  """MetaRM: gradients are taken at parameters that score a policy's responses further apart.

  Each update's gradient is taken at θ' = θ + step_size ∇J(θ) and applied to θ. J is
  preferences.spread of the scores of a policy's responses, which have no labels. What the pairs
  teach is learnt more where it also separates those responses.

  policy: whose responses: an earlier stage that trains a policy, or "initial". They are sampled
    anew before each update.
  sampling: rollout.Sampling; with an end token the responses must fit into max_response_tokens.
  prompts: rows of an update whose prompts are answered.
  step_size: η.
  responses: k, responses to each prompt.
  max_norm: a longer ∇J is first shortened to this length, for a large step makes all differences
    large and teaches noise.

  Source: Wang et al. 2024, arXiv:2401.06080 (MetaRM): first order, no second derivatives.
  """
  policy: str
  sampling: Sampling
  prompts: int
  step_size: float
  responses: int = 4
  max_norm: float = 1.0

  def __post_init__(self):
    at_least(1, **{"meta.prompts": self.prompts})
    at_least(2, **{"meta.responses (one alone differs from nothing)": self.responses})
    at_least(0, **{"meta.step_size": self.step_size, "meta.max_norm": self.max_norm})


def check(section: Meta, context: Context, layout: Layout) -> None:
  """Raises: ValueError for a policy that no earlier stage trains, and for too long responses.

  Args:
    section: to be checked.
    context: of the stage.
    layout: of the section's rows.
  """
  one_of(context.earlier.policies(), **{
      "meta.policy (an earlier stage that trains a policy)": section.policy})
  if context.environment is not None:
    raise ValueError(
        "meta samples single answers, and the run has an environment: leave out"
        " config.environment, or meta.")
  if section.sampling.max_tokens >= layout.max_response_tokens:
    raise ValueError(
        f"meta.sampling.max_tokens={section.sampling.max_tokens} and an end are more than"
        " max_response_tokens="
        f"{layout.max_response_tokens}: lower the first, or raise the second.")
  if section.prompts % (ways := context.partitioning.ways("batch")):
    raise ValueError(
        f"meta.prompts={section.prompts} is no multiple of the {ways} devices that share a batch:"
        " raise it.")
  check_sampling(section.sampling, context.policy.config, context.policy.tokenizer,
                 max_prompt_tokens=layout.max_prompt_tokens)


def memory(section: Meta, context: Context, layout: Layout) -> list[memory_lib.Part]:
  """Estimates what a device needs to sample: the update's own parts are those of its pairs."""
  batch = memory_lib.Batch(section.prompts, section.responses, layout.max_prompt_tokens,
                           section.sampling.max_tokens)
  return [
      memory_lib.Part("policy that answers", memory_lib.sharded_bytes(context.abstract_params),
                      "leave out meta"),
      *rollout_memory.rollout_parts(
          context.policy.config, context.partitioning, batch, dtype=context.dtype,
          params=context.abstract_params, phase="meta",
          cure="lower meta.prompts or meta.responses")]


class Responses:
  """Samples responses, which have no labels, for one stage.

  The same update gets the same responses again, so there is nothing to save.
  """

  def __init__(self, section: Meta, context: Context, stage: str, layout: Layout):
    """Args: layout: of the stage's own rows."""
    self._section, self._context, self._stage, self._layout = section, context, stage, layout
    self._params: Params | None = None  # Read when first asked.

  def __call__(self, rows: Sequence[Comparison], index: int) -> ResponseBatch:
    """Samples k responses to the prompts of the first rows of update `index`.

    Returns: host arrays; each response has its end token.
    """
    section, context, tokenizer = self._section, self._context, self._context.policy.tokenizer
    if self._params is None:
      self._params = context.earlier.policy(section.policy, "meta.policy")
    # Prompts -> responses.
    problems = [Problem(prompt=row.prompt, reference="") for row in rows[:section.prompts]]
    sampler = dataclasses.replace(
        context.sampler, max_prompt_tokens=self._layout.max_prompt_tokens)
    prompts = sampler.encode(problems, bucket=context.sampler.prompt_bucket)
    sampled = sampler(
        self._params, problems, prompts, section.sampling, group_size=section.responses,
        rng=context.rng(self._stage, "meta", index))
    # Responses -> a batch as the reward model reads it.
    ends = [tokenizer.end_id(p.prompt) for p in problems for _ in range(section.responses)]
    ids = [_with_end(row[:length].tolist(), end, tokenizer)
           for row, length, end in zip(sampled.tokens, sampled.lengths, ends)]
    groups = [ids[i:i + section.responses] for i in range(0, len(ids), section.responses)]
    return self._layout.batch([
        Encoded(
            tokens[:length].tolist(), group, [[len(row) - 1] for row in group], [[0]] * len(group))
        for tokens, length, group in zip(np.asarray(prompts.tokens), prompts.lengths, groups)])[0]


def _with_end(ids: list[int], end: int, tokenizer: Tokenizer) -> list[int]:
  """Ends ids as responses.encode does: with one end, also where the limit cut them."""
  return [*(ids[:-1] if ids and ids[-1] in tokenizer.stop_ids else ids), end]


def ascend(
    section: Meta, scores: Callable[[Params], Float[Array, "P k A"]],
    trained: Params, frozen: Params,
) -> tuple[Params, dict[str, Array]]:
  """Steps towards more spread (learner.train_step's lookahead).

  Args:
    section: with the step size.
    scores: (parameters) -> scores of the responses.
    trained: θ, parameters that are trained.
    frozen: the other parameters.

  Returns: (θ', what is logged of the step).
  """
  spread, gradient = jax.value_and_grad(
      lambda trained: jnp.mean(preferences.spread(scores(lora.combine(trained, frozen)))))(trained)
  norm = optax.tree.norm(gradient)
  step = section.step_size * jnp.minimum(1.0, section.max_norm / jnp.maximum(norm, 1e-12))
  return jax.tree.map(lambda x, g: x + step * g, trained, gradient), {
      "meta/spread": spread, "meta/grad_norm": norm}
