"""Self-training: a policy samples, rewards judge, and the policy imitates its own good completions.

This goes on round after round:

    generate -> score -> keep (threshold, distinct, n per problem) -> imitate

What the papers do is a choice of fields:

    rejection sampling (RFT, arXiv:2308.01825)
        num_rounds=1, distinct, imitate_solutions
    expert iteration (arXiv:1705.08439)
        several rounds, begin="current", accumulate
    STaR (arXiv:2203.14465)
        begin="initial", per_problem=1, hint: rationalisation of the unsolved
    ReST (arXiv:2308.08998)
        rising thresholds: improve steps on one grown set; imitate_solutions
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import time
from typing import Any

import jax
from jaxtyping import Bool, Float
import numpy as np

from rl_reason.arrays import Inputs, LearnerState
from rl_reason.batches import demonstrations
from rl_reason.batches.demonstrations import Examples
from rl_reason.batches.prompts import encode_prompts
from rl_reason.config import naming
from rl_reason.config.checks import at_least, check_microbatches, one_of
from rl_reason.learner.step import Learner, make_learner, Update
from rl_reason.models import lora as lora_lib
from rl_reason.objectives import losses
from rl_reason.rewards.composition.build import build_rewards
from rl_reason.rewards.composition.reward_set import RewardSet
from rl_reason.rollout.record import Rollout
from rl_reason.rollout.samples import check_sampling
from rl_reason.runtime import memory as memory_lib
from rl_reason.runtime import sharding
from rl_reason.stages import groups, sft
from rl_reason.stages.adapters import merging_memory, trained_policy, with_adapters
from rl_reason.stages.base import Batches, first_rows, Kind, Stage, StepResult, Trained
from rl_reason.stages.context import Context
from rl_reason.stages.rollouts import RolloutSection, sample_rollout, sampling_memory
from rl_reason.stages.self_training import selection
from rl_reason.stages.self_training.selection import Keep
from rl_reason.tasks import pipeline
from rl_reason.types import Params, Problem

BEGINNINGS = ("current", "initial")


@dataclasses.dataclass(frozen=True)
class Config:
  """The section of a self_training stage: rounds of generating and imitating.

  In all there are num_rounds * (generation_steps + len(keep.thresholds) * updates) steps.

  num_rounds: rounds of generating and imitating.
  generation_steps: batches of problems that a round samples, as `rollout` says.
  updates: updates that a round makes per threshold.
  batch_size: kept completions per update.
  rollout: how completions are sampled.
  rewards: what completions earn (rewards.composition.build).
  learner: memory, LoRA, optimizer (learner.step.Update).
  keep: which completions are imitated. Those that the length limit cut are never kept: imitating
    them teaches not to end.
  begin: "current": a round's updates go on from the policy that sampled; "initial": from the policy
    that this stage starts from.
  accumulate: whether what earlier rounds kept is imitated too.
  imitate_solutions: whether the sampled problems' own solutions are imitated too, whatever the
    threshold.
  hint: a prompt made from {prompt} and {reference}, with which the problems are asked again of
    which no completion reaches the lowest threshold. What is kept of that is imitated after the
    prompt without hint (STaR's rationalisation). "": they are not asked again.
  mean_over: token, sequence or fixed_length (losses.token_weights).
  start: the stage whose policy it starts from (run.earlier).
  """
  kind: naming.Name
  num_rounds: int
  generation_steps: int
  updates: int
  batch_size: int
  rollout: RolloutSection
  rewards: Mapping[str, Any]
  learner: Update
  keep: Keep = Keep()
  begin: str = "current"
  accumulate: bool = False
  imitate_solutions: bool = False
  hint: str = ""
  mean_over: str = "token"
  start: str = ""

  def __post_init__(self):
    at_least(1, num_rounds=self.num_rounds, generation_steps=self.generation_steps,
             updates=self.updates, batch_size=self.batch_size)
    check_microbatches(self.learner.microbatches, self.batch_size)
    one_of(BEGINNINGS, begin=self.begin)
    one_of(losses.REDUCTIONS, mean_over=self.mean_over)
    if self.hint:
      try:
        filled = self.hint.format(prompt="a prompt", reference="a reference")
      except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"hint={self.hint!r} cannot be filled in ({error!r}): it may name {{prompt}} and"
            " {reference} only, and literal braces are doubled.") from error
      if "a prompt" not in filled or "a reference" not in filled:
        raise ValueError(f"hint={self.hint!r} must hold {{prompt}} and {{reference}}: it is the"
                         " prompt with its answer.")

  @property
  def steps_per_round(self) -> int:
    return self.generation_steps + len(self.keep.thresholds) * self.updates

  @property
  def num_steps(self) -> int:
    return self.num_rounds * self.steps_per_round


def check(config: Config, context: Context, name: str) -> None:
  """Tries the first problems.

  Raises: ValueError for what sampling and rewards cannot use, for hints that make prompts too long,
    and for missing solutions.
  """
  tokenizer = context.policy.tokenizer
  check_sampling(config.rollout.sampling, context.policy.config, tokenizer,
                 max_prompt_tokens=context.max_prompt_tokens)
  if context.environment is not None:
    raise ValueError(
        "A self_training stage imitates whole completions, and with config.environment they hold an"
        " environment's words too: leave the environment out, or train with policy_gradient.")
  problems = first_rows(context.task.train)
  encode_prompts(problems, tokenizer, max_tokens=context.max_prompt_tokens)
  if config.hint:
    encode_prompts([with_hint(p, config.hint) for p in problems], tokenizer,
                   max_tokens=context.max_prompt_tokens)
  if config.imitate_solutions:
    _solutions(config, context, problems)
  with contextlib.closing(build_rewards(config.rewards, models=context.models)) as rewards:
    rewards.check_references([p.reference for p in problems])


def trained(config: Config, context: Context, name: str) -> Trained:
  """Describes the policy, which is what the stage leaves."""
  return trained_policy(context, config.learner.lora)


def memory(config: Config, context: Context, name: str) -> list[memory_lib.Part]:
  """Estimates what a device needs to run this stage: to sample, to update."""
  state_shape = learner_of(config, context, None, name).state_shape
  return [
      *merging_memory(context, config.learner.lora, "evaluation", "sampling"),
      *sampling_memory(config.rollout, context),
      *sft.update_memory(
          context, state_shape, config.learner, batch_size=config.batch_size,
          max_completion_tokens=config.rollout.sampling.max_tokens)]


def learner_of(config: Config, context: Context, params: Params | None, name: str) -> Learner:
  """Makes the learner of what `trained` says, starting from the policy `params`."""
  return make_learner(
      context.partitioning, trained(config, context, name).shapes,
      lambda: with_adapters(context, params, config.learner.lora, name), config.learner.optimizer,
      _num_updates(config))


def build(config: Config, context: Context, params: Params, name: str) -> Stage:
  """Builds the stage: it samples problems in rounds, and learns from its own completions."""
  learner = learner_of(config, context, params, name)
  update = sft.imitation_update(
      context, learner, config.learner, batch_size=config.batch_size, mean_over=config.mean_over,
      max_completion_tokens=config.rollout.sampling.max_tokens)
  rewards = build_rewards(config.rewards, models=context.models)
  parts = SelfTraining(config, context, name, learner, update, rewards, selection.Pool())
  return Stage(
      num_steps=config.num_steps, init=learner.init, state_shape=learner.state_shape,
      step=parts.step, max_skipped=config.learner.optimizer.max_skipped,
      resumable={"rewards": rewards, "pool": parts.pool}, close=rewards.close,
      data=Rounds(pipeline.batches(
          context.task.train, batch_size=config.rollout.prompts,
          seed=context.stream_seed(name, "data"),
          process_index=jax.process_index(), process_count=jax.process_count()), config))


@dataclasses.dataclass
class SelfTraining:
  """The parts of a self_training stage, and what a step does with them.

  update: (state, examples) -> (state, StepResult), imitation.
  rewards: judge completions.
  pool: completions that may be imitated.
  """
  config: Config
  context: Context
  name: str
  learner: Learner
  update: Callable[[LearnerState, Examples], tuple[LearnerState, StepResult]]
  rewards: RewardSet
  pool: selection.Pool
  _kept: tuple[tuple[int, int], list[selection.Candidate]] | None = None

  def step(
      self, state: LearnerState, problems: list[Problem], index: int,
  ) -> tuple[LearnerState, StepResult]:
    """Samples, in the first steps of a round, or imitates what is kept."""
    round_index, within = divmod(index, self.config.steps_per_round)
    if within == 0 and not self.config.accumulate:
      self.pool.clear()
    if within < self.config.generation_steps:
      return state, self.collect(state, problems, index)
    # One threshold after the other.
    phase, number = divmod(within - self.config.generation_steps, self.config.updates)
    return self.imitate(state, round_index, phase, number)

  # Sampling.

  def collect(self, state: LearnerState, problems: list[Problem], index: int) -> StepResult:
    """Samples and judges one batch of problems; what may be imitated joins the pool."""
    params = lora_lib.merge(state.params)

    # Completions and their rewards.
    rollout = self._sample(params, problems, "rollout", index)
    prompts, solved = _rows(rollout.prompts), self._reached(rollout.scores)
    self.pool.add(prompts, rollout.completions, rollout.scores, self._lowest)
    metrics = {**rollout.metrics, **groups.metrics(rollout), "solved": float(solved.mean()),
               **rollout.seconds}

    # The unsolved problems again, with a hint.
    if self.config.hint:
      spent, rationalised = self._with_hints(params, problems, solved, index)
      metrics |= {key: metrics[key] + value for key, value in spent.items()}
      metrics["solved_with_hint"] = rationalised

    # The problems' own solutions.
    if self.config.imitate_solutions:
      examples = _solutions(self.config, self.context, problems)
      self.pool.add_examples(prompts, jax.tree.map(sharding.gather_rows, examples))
    tokens = metrics.pop("tokens")
    number = index // self.config.steps_per_round + 1.0
    return StepResult({"round": number, **metrics}, tokens=tokens, shown=rollout.shown)

  def _with_hints(
      self, params: Params, problems: list[Problem], solved: Bool[np.ndarray, "P"], index: int,
  ) -> tuple[dict[str, float], float]:
    """Asks the unsolved problems again, with a hint.

    Args:
      solved: of all processes' problems.
    Returns: (what it cost, by metric; the share of problems that it solved).
    """
    first, size = jax.process_index() * len(problems), len(problems)
    unsolved = [p for p, done in zip(problems, solved[first:first + size]) if not done]
    # Every process must sample, or none: sampling is one program over all of them.
    if not sharding.any_process(bool(unsolved)):
      return {}, 0.0
    # As many as were asked the first time, so that one program serves both. They are filled up
    # with any problems, which do not count.
    asked = (unsolved + list(problems))[:size]
    counts = np.repeat(sharding.gather_rows(np.arange(size) < len(unsolved)),
                       self.config.rollout.group_size)
    second = self._sample(
        params, [with_hint(p, self.config.hint) for p in asked], "hint", index)
    scores = np.where(counts, second.scores, -np.inf)
    # Imitated after the prompts without hint, which the policy will be asked.
    self.pool.add(_rows(self.context.sampler.encode_everywhere(asked)), second.completions,
                  scores, self._lowest, hinted=True)
    # What the fill-ups cost was spent, too.
    cost = {**groups.metrics(second), **second.seconds}
    spent = {key: cost[key] for key in ("tokens", "environment_calls", *second.seconds)}
    return spent, float(self._reached(scores).mean())

  def _sample(
      self, params: Params, problems: list[Problem], stream: str, index: int) -> Rollout:
    return sample_rollout(
        self.config.rollout, self.context, params, problems, self.rewards, index=index,
        rng=self.context.rng(self.name, stream, index))

  @property
  def _lowest(self) -> float:
    return self.config.keep.thresholds[0]

  def _reached(self, scores: Float[np.ndarray, "B"]) -> Bool[np.ndarray, "P"]:
    """Says per problem whether one of its completions reaches the lowest threshold."""
    return (scores.reshape(-1, self.config.rollout.group_size) >= self._lowest).any(axis=1)

  # Imitation.

  def imitate(
      self, state: LearnerState, round_index: int, phase: int, number: int,
  ) -> tuple[LearnerState, StepResult]:
    """Makes the update `number` with the threshold `phase` of a round."""
    config, chosen = self.config, self.kept(round_index, phase)
    if not chosen and number == 0:
      self.pool.empty += 1
    metrics = {
        "round": round_index + 1.0, "threshold": config.keep.thresholds[phase],
        "kept/samples": float(len(chosen)),
        "kept/problems": float(len({c.prompt for c in chosen})),
        "kept/share": sum(c.score < np.inf for c in chosen) / max(1, self.pool.sampled),
        "kept/empty": float(self.pool.empty)}
    if not chosen:  # Nothing to imitate: the policy stays as it is; the next round samples anew.
      return state, StepResult(metrics)
    if config.begin == "initial" and phase == 0 and number == 0:
      state = self.learner.init()
    started = time.perf_counter()
    batch = selection.draw(
        chosen, number * config.batch_size, config.batch_size, balance=config.keep.balance,
        seed=self.context.stream_seed(self.name, "order", round_index, phase))
    state, result = self.update(state, selection.to_examples(
        batch, self.context.max_prompt_tokens + config.rollout.sampling.max_tokens))
    metrics |= {**result.metrics, "time/update": time.perf_counter() - started}
    return state, dataclasses.replace(result, metrics=metrics)

  def kept(self, round_index: int, phase: int) -> list[selection.Candidate]:
    """Selects what the updates of a phase imitate.

    It is complete once a round has sampled, and the same after a restart.
    """
    keep, key = self.config.keep, (round_index, phase)
    if self._kept is None or self._kept[0] != key:
      self._kept = key, selection.keep(
          self.pool.candidates, threshold=keep.thresholds[phase], per_problem=keep.per_problem,
          choose=keep.choose, distinct=keep.distinct,
          seed=self.context.stream_seed(self.name, "keep", round_index, phase))
    return self._kept[1]


class Rounds(Iterator):
  """Yields problems for the steps that sample, and an empty list for those that imitate."""

  def __init__(self, batches: Batches, config: Config):
    self._batches, self._config, self._step = batches, config, 0

  def __next__(self) -> list[Problem]:
    within = self._step % self._config.steps_per_round
    self._step += 1
    return next(self._batches) if within < self._config.generation_steps else []

  def get_state(self) -> dict[str, Any]:
    return {"step": self._step, "batches": self._batches.get_state()}

  def set_state(self, state: dict[str, Any]) -> None:
    self._step = state["step"]
    self._batches.set_state(state["batches"])


def with_hint(problem: Problem, hint: str) -> Problem:
  """Puts the answer into a problem's prompt; of messages, into the last one."""
  def fill(text):
    return hint.format(prompt=text, reference=problem.reference)
  if isinstance(problem.prompt, str):
    return dataclasses.replace(problem, prompt=fill(problem.prompt))
  *before, last = problem.prompt
  return dataclasses.replace(problem, prompt=(*before, {**last, "content": fill(last["content"])}))




def _rows(prompts: Inputs) -> list[tuple[int, ...]]:
  """Lists the token ids of each prompt."""
  return [tuple(row[:n].tolist()) for row, n in zip(prompts.tokens, prompts.lengths)]


def _solutions(config: Config, context: Context, problems: Sequence[Problem]) -> Examples:
  return demonstrations.encode(
      problems, context.policy.tokenizer, max_prompt_tokens=context.max_prompt_tokens,
      max_completion_tokens=config.rollout.sampling.max_tokens)


def _num_updates(config: Config) -> int:
  """Counts the updates over which the learning rate follows its schedule.

  They are those of one round where each round begins anew.
  """
  return len(config.keep.thresholds) * config.updates * (
      1 if config.begin == "initial" else config.num_rounds)


KIND = Kind(Config=Config, check=check, memory=memory, trained=trained, build=build)
