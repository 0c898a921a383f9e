"""Turns completions into the samples that rewards read, and checks how they are drawn."""

from collections.abc import Sequence

from jaxtyping import Bool
import numpy as np

from rl_reason.models.config import ModelConfig
from rl_reason.models.tokenizer import Tokenizer
from rl_reason.rollout.generate import Completions
from rl_reason.rollout.sampling import Sampling
from rl_reason.types import Problem, Sample


def check_sampling(sampling: Sampling, model: ModelConfig, tokenizer: Tokenizer, *, max_prompt_tokens: int) -> None:
  """Raises: ValueError if prompt and completion exceed the model's context, or a stop string can never be completed."""
  if max_prompt_tokens + sampling.max_tokens > model.max_positions:
    raise ValueError(
        f"max_prompt_tokens={max_prompt_tokens} and sampling.max_tokens={sampling.max_tokens} are more than the policy's"
        f" context of {model.max_positions} tokens: later positions were never trained, and have no meaning. Lower one.")
  for stop in sampling.stop_strings:
    needed = len(tokenizer.encode(stop))
    if needed > sampling.max_tokens:
      raise ValueError(f"The stop string {stop!r} has {needed} tokens, sampling.max_tokens is {sampling.max_tokens}: no"
                       " completion could hold it. Raise max_tokens, or remove it.")


def make_samples(
    problems: Sequence[Problem], completions: Completions, tokenizer: Tokenizer,
    *, stop_strings: Sequence[str] = (), step: int = 0, rows: Sequence[int] | None = None,
) -> list[Sample]:
  """Completions (these rows of them, or all) as text, beside what they are checked against.

  Text ends before EOS or the first stop string; of episodes, where stop strings end turns, it is whole, and the turns are
  told apart in Sample.episode and Sample.spans["turn"].
  """
  group_size = len(completions.lengths) // len(problems)
  rows = range(len(completions.lengths)) if rows is None else rows
  tokens = [tuple(completions.tokens[i, :completions.lengths[i]].tolist()) for i in rows]
  prompts = {g: tokenizer.render_prompt(problems[g].prompt) for g in {i // group_size for i in rows}}
  samples = []
  for i, ids, text in zip(rows, tokens, tokenizer.decode_batch(tokens)):
    problem = problems[i // group_size]
    episode, spans = (), {}
    if completions.observed is not None:
      stretches = author_stretches(completions.observed[i, :len(ids)])
      episode = tuple(tokenizer.decode(ids[a:b]) for a, b, _ in stretches)
      text, spans = "".join(episode), {"turn": [(a, b) for a, b, is_observed in stretches if not is_observed]}
    ends = [at for at in (text.find(stop) for stop in stop_strings) if at >= 0 and not episode]
    samples.append(Sample(
        prompt=prompts[i // group_size], completion=text[:min(ends)] if ends else text, reference=problem.reference,
        completion_tokens=ids, truncated=bool(completions.truncated[i]), group=i // group_size, step=step,
        metadata=problem.metadata, messages=() if isinstance(problem.prompt, str) else tuple(problem.prompt),
        spans=spans, episode=episode))
  return samples


def author_stretches(observed: Bool[np.ndarray, "T"]) -> list[tuple[int, int, bool]]:
  """A completion's stretches of one author: (first token, one after its last, whether it is the environment's)."""
  edges = [0, *(np.flatnonzero(np.diff(observed.astype(np.int8))) + 1).tolist(), len(observed)]
  return [(a, b, bool(observed[a])) for a, b in zip(edges, edges[1:]) if b > a]
