"""Turns completions into the samples that rewards read, and checks how they are drawn."""

from collections.abc import Sequence

from jaxtyping import Bool
import numpy as np

from rl_reason.models.config import ModelConfig
from rl_reason.models.tokenizer import Tokenizer
from rl_reason.rollout.generate import Completions
from rl_reason.rollout.sampling import Sampling
from rl_reason.types import Problem, Sample


def check_sampling(
    sampling: Sampling, model: ModelConfig, tokenizer: Tokenizer, *, max_prompt_tokens: int,
) -> None:
  """Checks that completions fit into the model's context.

  Raises: ValueError if prompt and completion exceed the context, or if a stop string can never be
    completed.
  """
  if max_prompt_tokens + sampling.max_tokens > model.max_positions:
    raise ValueError(
        f"max_prompt_tokens={max_prompt_tokens} and sampling.max_tokens={sampling.max_tokens} are"
        f" more than the policy's context of {model.max_positions} tokens: later positions were"
        " never trained, and have no meaning. Lower one.")
  for stop in sampling.stop_strings:
    needed = len(tokenizer.encode(stop))
    if needed > sampling.max_tokens:
      raise ValueError(
          f"The stop string {stop!r} has {needed} tokens, sampling.max_tokens is"
          f" {sampling.max_tokens}: no completion could hold it. Raise max_tokens, or remove it.")


def make_samples(
    problems: Sequence[Problem], completions: Completions, tokenizer: Tokenizer,
    *, stop_strings: Sequence[str] = (), step: int = 0, rows: Sequence[int] | None = None,
) -> list[Sample]:
  """Turns completions into text, beside what they are checked against.

  The text ends before EOS or the first stop string. The text of an episode, in which stop strings
  end turns, is whole: Sample.episode and Sample.spans["turn"] tell the turns apart, Sample.own_text
  and Sample.own_tokens are what the policy wrote, and Sample.environment_rewards is what the policy
  was paid for it.

  Args:
    problems: the problems of all completions, one per group.
    completions: the completions.
    tokenizer: tokenizer of the policy.
    stop_strings: texts that end a completion, or a turn of an episode.
    step: number of the step that sampled the completions.
    rows: the completions to use; None: all.
  """
  group_size = len(completions.lengths) // len(problems)
  rows = range(len(completions.lengths)) if rows is None else rows
  tokens = [tuple(completions.tokens[i, :completions.lengths[i]].tolist()) for i in rows]
  # Each group's prompt is rendered once.
  prompts = {
      g: tokenizer.render_prompt(problems[g].prompt) for g in {i // group_size for i in rows}}
  samples = []
  for i, ids, text in zip(rows, tokens, tokenizer.decode_batch(tokens)):
    problem = problems[i // group_size]
    episode, spans, paid = (), {}, ()
    # Episodes: each author's tokens are decoded apart, so that no text spans two authors.
    if completions.observed is not None:
      stretches = author_stretches(completions.observed[i, :len(ids)])
      episode = tuple(tokenizer.decode(ids[a:b]) for a, b, _ in stretches)
      text, spans = "".join(episode), {
          "turn": [(a, b) for a, b, is_observed in stretches if not is_observed]}
    # What the environment paid; NaN says that it paid nothing.
    if completions.environment_rewards is not None:
      amounts = completions.environment_rewards[i, :len(ids)]
      paid = tuple((at, float(amounts[at])) for at in np.flatnonzero(~np.isnan(amounts)).tolist())
    # Where the first stop string begins; the text of an episode is not cut.
    ends = [at for at in (text.find(stop) for stop in stop_strings) if at >= 0 and not episode]
    samples.append(Sample(
        prompt=prompts[i // group_size], completion=text[:min(ends)] if ends else text,
        reference=problem.reference, completion_tokens=ids,
        truncated=bool(completions.truncated[i]), group=i // group_size, step=step,
        metadata=problem.metadata,
        messages=() if isinstance(problem.prompt, str) else tuple(problem.prompt),
        spans=spans, episode=episode, environment_rewards=paid))
  return samples


def author_stretches(observed: Bool[np.ndarray, "T"]) -> list[tuple[int, int, bool]]:
  """Lists the stretches of a completion that have one author.

  Returns: (first token, one after the last, whether the environment wrote it) of each stretch.
  """
  edges = [
      0, *(np.flatnonzero(np.diff(observed.astype(np.int8))) + 1).tolist(), len(observed)]
  return [(a, b, bool(observed[a])) for a, b in zip(edges, edges[1:]) if b > a]
