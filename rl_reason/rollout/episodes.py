"""Episodes of several turns: the policy writes, an environment answers what it wrote, the policy goes on.

    def environment(episodes: Sequence[Episode]) -> Sequence[str | None]: ...   # The last turn's answer; None: it is over.

Turns of all running episodes are sampled together, then all are answered together; between turns a context is read anew.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
from jaxtyping import Int, PRNGKeyArray
import numpy as np

from rl_reason.arrays import PromptBatch
from rl_reason.batches.prompts import pad_rows
from rl_reason.config.checks import at_least
from rl_reason.models.config import ModelConfig
from rl_reason.models.tokenizer import Tokenizer
from rl_reason.rollout.generate import blank_completions, Completions, generate
from rl_reason.rollout.sampling import Sampling
from rl_reason.runtime import sharding
from rl_reason.types import Params, Problem


@dataclasses.dataclass(frozen=True)
class EnvironmentSection:
  """Who answers what a policy writes, wherever completions are sampled: they become episodes (rollout.episodes).

  source: a name in envs.registry.ENVIRONMENTS or the dotted path of a function that returns one; args: its arguments.
  max_turns, turn_tokens, answer_tokens: rollout.episodes.Environment. A `sampling` section's max_tokens is a whole episode's
    and its stop strings end turns.
  """
  source: str
  max_turns: int
  turn_tokens: int
  answer_tokens: int
  args: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    at_least(2, max_turns=self.max_turns)
    at_least(1, turn_tokens=self.turn_tokens, answer_tokens=self.answer_tokens)


@dataclasses.dataclass(frozen=True)
class Episode:
  """What an environment sees. turns: the policy's texts so far, stop strings included; one more than there are answers."""
  problem: Problem
  turns: tuple[str, ...]
  answers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Environment:
  """Who answers a policy's turns, and how long all may get.

  answer: episodes -> one text each, as it shall stand in the policy's context, or None where the episode is over. Asked
    after each turn that ended by itself, at EOS or a stop string, but not after the last that is allowed.
  max_turns: of the policy, at least 2. turn_tokens: of each at most; one that is cut off is the last. answer_tokens: of each
    answer, whose further tokens are dropped.
  """
  answer: Callable[[Sequence[Episode]], Sequence[str | None]]
  max_turns: int
  turn_tokens: int
  answer_tokens: int

  @property
  def max_tokens(self) -> int:
    """Of a whole episode, the answers included."""
    return self.max_turns * self.turn_tokens + (self.max_turns - 1) * self.answer_tokens

  def check(self, sampling: Sampling, where: str) -> None:
    """Raises: ValueError if an episode could be longer than sampling.max_tokens."""
    if sampling.max_tokens < self.max_tokens:
      raise ValueError(
          f"{where}.sampling.max_tokens={sampling.max_tokens} is less than an episode may have, max_turns * turn_tokens +"
          f" (max_turns - 1) * answer_tokens = {self.max_tokens}: raise it, or lower a field of config.environment.")


def play(
    config: ModelConfig, params: Params, prompts: PromptBatch, sampling: Sampling, *, environment: Environment,
    problems: Sequence[Problem], tokenizer: Tokenizer, group_size: int, rng: PRNGKeyArray, slots: int = 0,
    on_finished: Callable[[Completions, Int[np.ndarray, "N"]], None] | None = None, **options: Any,
) -> Completions:
  """`generate` in turns: completions hold the policy's turns and, marked as `observed`, the environment's answers.

  A completion ends with a turn of the policy's, and is truncated if that turn is. Which random numbers a later turn gets
  depends on which episodes go on.

  Args:
    problems: of all prompts, or this process's part of them, as many on each process: each asks for its own.
    on_finished: called between turns. sampling, options, others: as in `generate`; max_tokens is a whole episode's.

  Raises: ValueError for an answer that is not text or None, or is empty.
  """
  prompts = jax.tree.map(sharding.fetch, prompts)
  texts = [row[:n].tolist() for row, n in zip(prompts.tokens, prompts.lengths) for _ in range(group_size)]
  out = blank_completions(len(texts), sampling.max_tokens)
  out = out.replace(observed=np.zeros(out.tokens.shape, bool))
  said: list[list[str]] = [[] for _ in texts]  # Turns and answers by turns.
  one_turn = dataclasses.replace(sampling, max_tokens=environment.turn_tokens)
  options = dict(options, stop_ids=tokenizer.stop_ids, decode_text=tokenizer.decode)
  ask = functools.partial(_ask, environment, problems, group_size, said)

  going = np.arange(len(texts))
  for turn in range(environment.max_turns):
    # A turn of all episodes that go on: at first the groups share their prompts.
    if turn:
      contexts = [texts[i] + out.tokens[i, :out.lengths[i]].tolist() for i in going]
      contexts += contexts[:1] * (_few_sizes(len(going), len(texts)) - len(going))
      width = prompts.tokens.shape[1] + turn * (environment.turn_tokens + environment.answer_tokens)
      read, size = PromptBatch(pad_rows(contexts, width), np.array(list(map(len, contexts)), np.int32)), 1
    else:
      read, size = prompts, group_size
    options["slots"] = min(slots, len(read.lengths) * size)
    sampled = generate(config, params, read, one_turn, group_size=size, rng=jax.random.fold_in(rng, turn), **options)
    _append(out, going, sampled)
    for i, tokens, n in zip(going, sampled.tokens, sampled.lengths):
      said[i].append(tokenizer.decode(tokens[:n].tolist()))

    # What is answered, and who goes on.
    asking = going[~out.truncated[going]] if turn + 1 < environment.max_turns else going[:0]
    answers = dict(zip(asking.tolist(), ask(asking.tolist())))
    for i, text in answers.items():
      if text is not None:
        said[i].append(_observe(out, i, text, tokenizer, environment))
    on = np.array([answers.get(i) is not None for i in going.tolist()], bool)
    if on_finished is not None and not on.all():
      on_finished(out, going[~on])
    going = going[on]
    if not len(going):
      break
  return out


def _few_sizes(count: int, most: int) -> int:
  """`most`, or a half, a quarter ... of it: at least `count`. Each number of rows is a program."""
  while (half := -(-most // 2)) >= max(count, 8):
    most = half
  return most


def _append(out: Completions, rows: np.ndarray, turn: Completions) -> None:
  """Appends a turn to the completions `rows`, in place."""
  for k, i in enumerate(rows):
    begin, n = out.lengths[i], turn.lengths[k]
    for name in ("tokens", "behaviour_logprobs", "logprobs"):
      getattr(out, name)[i, begin:begin + n] = getattr(turn, name)[k, :n]
    out.lengths[i] += n
    out.truncated[i] = turn.truncated[k]


def _observe(out: Completions, row: int, text: str, tokenizer: Tokenizer, environment: Environment) -> str:
  """Appends an answer to a completion, in place, as far as there is room. Returns what it is there."""
  ids = tokenizer.encode(text)[:environment.answer_tokens]
  begin = out.lengths[row]
  out.tokens[row, begin:begin + len(ids)] = ids
  out.observed[row, begin:begin + len(ids)] = True
  out.lengths[row] += len(ids)
  return tokenizer.decode(ids)


def _ask(
    environment: Environment, problems: Sequence[Problem], group_size: int, said: Sequence[Sequence[str]],
    rows: Sequence[int],
) -> list[str | None]:
  """The environment's answers to these rows; each process asks for the rows of its own problems, and all learn of all."""
  count = len(problems) * group_size
  first = jax.process_index() * count if count < len(said) else 0
  mine = [i for i in rows if first <= i < first + count]
  episodes = [Episode(problems[(i - first) // group_size], tuple(said[i][::2]), tuple(said[i][1::2])) for i in mine]
  answers = list(environment.answer(episodes)) if episodes else []
  if len(answers) != len(mine):
    raise ValueError(f"The environment gave {len(answers)} answers to {len(mine)} episodes: it must give one to each, None"
                     " where an episode is over.")
  for episode, answer in zip(episodes, answers):
    if answer is not None and (not isinstance(answer, str) or not answer):
      raise ValueError(f"The environment answered {answer!r} to {episode.turns[-1]!r} (problem {episode.problem.id!r}): give"
                       " a text that is not empty, such as an empty block of results, or None to end the episode.")
  if count == len(said):
    return answers
  known = {i: answer for part in sharding.gather_objects(list(zip(mine, answers))) for i, answer in part}
  return [known[i] for i in rows]
