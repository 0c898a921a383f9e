"""Finds who writes the critiques that a reward model reads with each response."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax

from rl_reason.config import naming
from rl_reason.config.checks import one_of
from rl_reason.judges.asked import GENERATORS
from rl_reason.judges.critiques import Critiques, MARKER, TEMPLATE
from rl_reason.rollout import memory as rollout_memory
from rl_reason.rollout.sampling import Sampling
from rl_reason.rollout.texts import PolicyTexts
from rl_reason.runtime import memory as memory_lib
from rl_reason.stages.context import Context


@dataclasses.dataclass(frozen=True)
class Critique:
  """A critique of each response, written first: the head scores prompt, response and critique.

  generate: who writes it: an earlier stage that trains a policy, or "initial"; a name in
    judges.asked.GENERATORS or a dotted path, as for a judge. "": nobody; the head reads responses
    alone.
  generate_args: for a policy of this run its `sampling` (fields of rollout.Sampling) and what else
    PolicyTexts takes (max_prompt_tokens, batch_size, chat, seed); otherwise what `generate` takes.
  template: as in rewards.critiques.Critiques.
  marker: as in rewards.critiques.Critiques.
  cache_size: as in rewards.critiques.Critiques.
  cache_file: as in rewards.critiques.Critiques.

  Source: Ankner et al. 2024 (Critique-out-Loud), arXiv:2408.11791. There one model writes and
    scores, and goes on learning to write while its head learns. Here they are two models, of which
    the second may start from the first (the stage's `start`).
  """
  generate: naming.Name = ""
  generate_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  template: str = TEMPLATE
  marker: str = MARKER
  cache_size: int = 10_000
  cache_file: str = ""


def check(section: Critique, context: Context) -> None:
  """Raises: ValueError for writers and arguments that cannot work."""
  if not section.generate:
    return
  if jax.process_count() > 1:
    raise ValueError(
        f"critique.generate={section.generate!r}: processes could get different critiques of one"
        " response. Use one process, or generate=''.")
  if isinstance(section.generate, str) and ":" not in section.generate:
    one_of([*context.earlier.policies(), *GENERATORS], **{
        "critique.generate (an earlier stage that trains a policy, or a model)": section.generate})
  make_critiques(section, context)
  context.policy.tokenizer.encode(section.marker)


def make_critiques(section: Critique, context: Context) -> Critiques | None:
  """Makes what writes critiques, or None. A policy's parameters are read when it is first asked.

  Raises: ValueError for arguments that cannot work.
  """
  if not section.generate:
    return None
  generate, args = section.generate, section.generate_args
  if _of_this_run(section, context):
    texts, args = _policy_texts(section, context), {}

    def generate(prompts: Sequence[str]) -> list[str | None]:
      if texts.params is None:
        texts.params = context.earlier.policy(section.generate, "critique.generate")
      with context.partitioning.use():
        return texts(prompts)
  return Critiques(generate, generate_args=args, template=section.template, marker=section.marker,
                   cache_size=section.cache_size, cache_file=section.cache_file)


def memory(section: Critique, context: Context) -> list[memory_lib.Part]:
  """Estimates what a device needs for a writer of this run."""
  if not _of_this_run(section, context):
    return []
  texts = _policy_texts(section, context)
  batch = memory_lib.Batch(texts.batch_size, 1, texts.max_prompt_tokens, texts.sampling.max_tokens)
  return [
      memory_lib.Part(
          "policy that writes critiques", memory_lib.sharded_bytes(context.abstract_params),
          "let a server write them: critique.generate='chat_endpoint'"),
      *rollout_memory.rollout_parts(
          context.policy.config, context.partitioning, batch, dtype=context.dtype,
          params=context.abstract_params, phase="critiques",
          cure="lower critique.generate_args.batch_size")]


def _of_this_run(section: Critique, context: Context) -> bool:
  return section.generate in ("initial", *context.earlier.sections)


def _policy_texts(section: Critique, context: Context) -> PolicyTexts:
  """Makes the policy that writes critiques, without parameters yet."""
  args = {"sampling": {}, **section.generate_args}
  naming.check_arguments("The policy that writes critiques", PolicyTexts, args, positional=3)
  naming.check_arguments("critique.generate_args.sampling", Sampling, args["sampling"])
  args["sampling"] = Sampling(**args["sampling"])
  return PolicyTexts(context.policy.config, None, context.policy.tokenizer,
                     **{"dtype": context.dtype, **args})
