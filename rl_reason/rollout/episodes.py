"""Samples episodes of several turns: the policy writes, an environment answers, the policy goes on.

rollout.environment says what an environment is. The turns of all running episodes are sampled
together, and then all are answered together (rollout.asking). Between turns a context is read anew.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
from typing import Any

import jax
from jaxtyping import Int, PRNGKeyArray
import numpy as np

from rl_reason.arrays import Inputs
from rl_reason.batches.prompts import pad_rows
from rl_reason.config import naming
from rl_reason.config.checks import at_least
from rl_reason.models.config import ModelConfig
from rl_reason.models.tokenizer import Tokenizer
from rl_reason.rollout.asking import Reply, RunningEpisodes
from rl_reason.rollout.environment import Environment, Turn
from rl_reason.rollout.generate import blank_completions, Completions, generate
from rl_reason.rollout.sampling import Sampling
from rl_reason.runtime import sharding
from rl_reason.types import Params, Problem


@dataclasses.dataclass(frozen=True)
class EnvironmentSection:
  """Names who answers the policy's turns, wherever completions are sampled; they are then episodes.

  With it, the max_tokens of a `sampling` section is the length of a whole episode, and the stop
  strings end turns.

  source: a name in envs.ENVIRONMENTS, or the dotted path of a class or function that makes an
    environment (rollout.environment).
  max_turns: most turns of the policy in an episode, at least 2.
  turn_tokens: most tokens of each turn; a turn that is cut off is the last.
  answer_tokens: most tokens of each answer; further tokens are dropped.
  args: arguments of the source.
  """
  source: naming.Name
  max_turns: int
  turn_tokens: int
  answer_tokens: int
  args: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    at_least(2, max_turns=self.max_turns)
    at_least(1, turn_tokens=self.turn_tokens, answer_tokens=self.answer_tokens)


@dataclasses.dataclass(frozen=True)
class BoundedEnvironment:
  """Holds an environment and the limits of its episodes.

  environment: who answers a policy's turns.
  max_turns: as in EnvironmentSection.
  turn_tokens: as in EnvironmentSection.
  answer_tokens: as in EnvironmentSection.
  name: name of the environment, for errors; "": the name of its class.

  Raises: ValueError for an object that is not an environment.
  """
  environment: Environment
  max_turns: int
  turn_tokens: int
  answer_tokens: int
  name: str = ""

  def __post_init__(self):
    if not self.name:
      object.__setattr__(self, "name", type(self.environment).__qualname__)
    if not isinstance(self.environment, Environment):
      raise ValueError(
          f"The environment {self.name!r} is {str(self.environment)[:200]}, which has no methods"
          " `reset` and `step`: see rl_reason.rollout.environment, where Stateless makes one of a"
          " function from a turn's text to its answer.")

  @property
  def max_tokens(self) -> int:
    """Returns the most tokens of a whole episode, the answers included."""
    return self.max_turns * self.turn_tokens + (self.max_turns - 1) * self.answer_tokens

  def check(self, sampling: Sampling, where: str) -> None:
    """Raises: ValueError if an episode could be longer than sampling.max_tokens."""
    if sampling.max_tokens < self.max_tokens:
      raise ValueError(
          f"{where}.sampling.max_tokens={sampling.max_tokens} is less than an episode may have,"
          f" max_turns * turn_tokens + (max_turns - 1) * answer_tokens = {self.max_tokens}: raise"
          " it, or lower a field of config.environment.")


def play(
    config: ModelConfig, params: Params, prompts: Inputs, sampling: Sampling, *,
    environment: BoundedEnvironment, problems: Sequence[Problem], tokenizer: Tokenizer,
    group_size: int, rng: PRNGKeyArray, slots: int = 0,
    on_finished: Callable[[Completions, Int[np.ndarray, "N"]], None] | None = None, **options: Any,
) -> Completions:
  """Samples completions as `generate` does, but in turns.

  Completions hold the policy's turns and, marked as `observed`, the environment's answers. A
  completion ends with a turn of the policy, and is truncated if that turn is. Which random numbers
  a later turn gets depends on which episodes go on.

  Args:
    config: architecture of the policy.
    params: parameters of the policy.
    prompts: the problems, encoded.
    sampling: how tokens are drawn; its max_tokens is the length of a whole episode.
    environment: the environment, which answers and pays, and its limits.
    problems: the problems of all prompts, or this process's part of them; then every process has
      the same number of problems, and steps the episodes of its own.
    tokenizer: tokenizer of the policy.
    group_size: completions per prompt.
    rng: random key, also of the environment's seeds, one for each completion.
    slots: as in `generate`.
    on_finished: as in `generate`, but called between turns.
    options: further arguments, as in `generate`.

  Returns: Completions, as `generate` does, with `observed` and `environment_rewards`.
  Raises: what RunningEpisodes.step raises; ValueError for an answer that has no tokens.
  """
  # The prompts as lists of tokens, one per completion, and blank completions.
  prompts = jax.tree.map(sharding.fetch, prompts)
  texts = [row[:n].tolist() for row, n in zip(prompts.tokens, prompts.lengths)
           for _ in range(group_size)]
  out = blank_completions(len(texts), sampling.max_tokens)
  out = out.replace(observed=np.zeros(out.tokens.shape, bool),
                    environment_rewards=np.full(out.tokens.shape, np.nan, np.float32))
  one_turn = dataclasses.replace(sampling, max_tokens=environment.turn_tokens)
  options = dict(options, stop_ids=tokenizer.stop_ids, decode_text=tokenizer.decode)
  episodes = RunningEpisodes(environment.environment, environment.name, problems,
                             group_size=group_size, count=len(texts), rng=rng)

  going = np.arange(len(texts))
  with contextlib.closing(episodes):
    for turn in range(environment.max_turns):
      # 1. Sample one turn of all episodes that go on. In the first turn the groups share their
      # prompts; later each episode has a context of its own, in a group of one.
      if turn:
        contexts = [texts[i] + out.tokens[i, :out.lengths[i]].tolist() for i in going]
        # Rows are filled up with the first context, so that few numbers of rows are compiled.
        contexts += contexts[:1] * (_few_sizes(len(going), len(texts)) - len(going))
        # The longest context that this turn may have: one width, and so one program, per turn.
        width = (prompts.tokens.shape[1]
                 + turn * (environment.turn_tokens + environment.answer_tokens))
        lengths = np.array(list(map(len, contexts)), np.int32)
        read, size = Inputs(pad_rows(contexts, width), lengths), 1
      else:
        read, size = prompts, group_size
      options["slots"] = min(slots, len(read.lengths) * size)
      sampled = generate(config, params, read, one_turn, group_size=size,
                         rng=jax.random.fold_in(rng, turn), **options)
      _append(out, going, sampled)

      # 2. Ask the environment for its replies, and see which episodes go on.
      replies = episodes.step(dict(_own_turns(
          going, sampled, tokenizer, episodes, last=turn + 1 == environment.max_turns)))
      for row, turn_tokens in zip(going.tolist(), sampled.lengths):
        _take_reply(out, row, int(turn_tokens), replies[row], tokenizer, environment)
      on = np.array([replies[row].text is not None for row in going.tolist()], bool)
      if on_finished is not None and not on.all():
        on_finished(out, going[~on])
      going = going[on]
      if not len(going):
        break
  return out


def _own_turns(
    rows: Int[np.ndarray, "N"], sampled: Completions, tokenizer: Tokenizer,
    episodes: RunningEpisodes, *, last: bool):
  """Yields (row, turn) of this process's episodes; `last`: the turn is the last allowed one."""
  for row, tokens, n, cut in zip(
      rows.tolist(), sampled.tokens, sampled.lengths, sampled.truncated):
    if row in episodes:
      ids = tuple(tokens[:n].tolist())
      yield row, Turn(tokenizer.decode(ids), ids, final=last or bool(cut))


def _few_sizes(count: int, most: int) -> int:
  """Returns `most`, or a half, a quarter ... of it, at least `count`: each size is a program."""
  while (half := -(-most // 2)) >= max(count, 8):
    most = half
  return most


def _append(out: Completions, rows: np.ndarray, turn: Completions) -> None:
  """Appends the policy's turn to the completions `rows`, in place."""
  for k, i in enumerate(rows):
    begin, n = out.lengths[i], turn.lengths[k]
    for name in ("tokens", "behaviour_logprobs", "logprobs"):
      getattr(out, name)[i, begin:begin + n] = getattr(turn, name)[k, :n]
    out.lengths[i] += n
    out.truncated[i] = turn.truncated[k]


def _take_reply(
    out: Completions, row: int, turn_tokens: int, reply: Reply, tokenizer: Tokenizer,
    environment: BoundedEnvironment) -> None:
  """Appends an answer to a completion, up to answer_tokens, and records what is paid, in place."""
  end = out.lengths[row]
  for position, amount in reply.paid:
    out.environment_rewards[row, end - turn_tokens + position] = amount
  if reply.text is None:
    return
  ids = tokenizer.encode(reply.text)[:environment.answer_tokens]
  if not ids:
    raise ValueError(
        f"The environment {environment.name!r} answered {reply.text!r}, of which the tokenizer"
        " makes no token: two turns would be one. Give another text, or None to end the episode.")
  out.tokens[row, end:end + len(ids)] = ids
  out.observed[row, end:end + len(ids)] = True
  out.lengths[row] += len(ids)
