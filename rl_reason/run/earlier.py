"""Answers what a stage may ask about the stages before it and about other runs.
"""

from collections.abc import Sequence
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections

from rl_reason.batches.prompts import encode_prompts
from rl_reason.config import checks as config_lib
from rl_reason.config import naming
from rl_reason.rollout.generate import Completions
from rl_reason.rollout.samples import make_samples
from rl_reason.rollout.sampling import Sampling
from rl_reason.run.config import check
from rl_reason.run.context import make_environment, make_policy
from rl_reason.run.workdir import Workdir
from rl_reason.runtime import sharding
from rl_reason.scorers.scorer import Scorer
from rl_reason.stages.base import Trained
from rl_reason.stages.context import Context
from rl_reason.stages.registry import STAGES
from rl_reason.types import Params, Problem, Sample


def starting_points(context: Context) -> dict[str, str]:
  """Per stage the name of the one whose policy it starts from, or "" for the policy before any stage.

  A section's `start` names an earlier stage that trains a policy, or is "initial". "": the last such stage before it, or
  the initial policy where there is none.

  Raises: ValueError for other names.
  """
  points = {}
  for name, section in context.sections.items():
    points[name] = _policy_name(context, name, "start", section.start)
    _policy_name(context, name, "reference", getattr(section, "reference", ""))
  return points


def _policy_name(context: Context, stage: str, field: str, value: str) -> str:
  """Of the stage whose policy a field of another stage's section names; "" for the initial policy."""
  known = policies_before(context, stage)
  if value and value not in known:
    raise ValueError(f"config.{stage}.{field}={value!r} is no earlier stage that trains a policy."
                     f"{naming.did_you_mean(value, known)} Known: {', '.join(known)}; or \"\" for the last of them.")
  name = value or known[-1]
  return "" if name == "initial" else name


def find_scorer(context: Context, name: str, earlier: Sequence[str]) -> Scorer:
  """A model for learned rewards: of an earlier stage, or of another run by its workdir (stages.base.Models).

  Args:
    context: of with_stages.
  Raises: ValueError for what is no model that scores.
  """
  scoring = [n for n in earlier if hasattr(STAGES[context.sections[n].kind], "make_scorer")]
  if name in scoring:
    return STAGES[context.sections[name].kind].make_scorer(context.sections[name], context, name)
  if name not in context.sections and (Path(name) / "config.json").is_file() or _split(name)[1]:
    return scorer_of_run(name, context.partitioning)
  raise ValueError(f"{name!r} is neither an earlier stage that trains a model that scores, nor the workdir of another run."
                   f"{naming.did_you_mean(name, scoring)} Such stages: {', '.join(scoring) or 'none'}; their kinds:"
                   f" {', '.join(k for k, s in STAGES.items() if hasattr(s, 'make_scorer'))}.")


def scorer_of_run(name: str, partitioning: sharding.Partitioning | None = None) -> Scorer:
  """The model of a run's stage, by "workdir:stage", or by "workdir" that of its last stage with one; by default on all devices.

  Raises: ValueError if there is none, or it is not trained yet.
  """
  folder, stage, context = _opened(name, partitioning)
  sections = context.sections
  scoring = [n for n in sections if hasattr(STAGES[sections[n].kind], "make_scorer")]
  stage = stage or (scoring[-1] if scoring else "")
  if stage not in scoring:
    raise ValueError(f"The run in {folder} has no stage {stage!r} that trains a model that scores; such are:"
                     f" {', '.join(scoring) or 'none'}.")
  if not (folder / "checkpoints" / stage).is_dir():
    raise ValueError(f"The run in {folder} has not trained its stage {stage!r} yet: run it first.")
  return find_scorer(context, stage, list(sections))


def policy_of_run(name: str) -> tuple[Context, Params]:
  """(what is the same for all of a run, without its task; the policy after a stage, on all devices), by "workdir:stage".

  Raises: ValueError for what is no run, or has no such stage that trains a policy.
  """
  folder, stage, context = _opened(name)
  training = [n for n in context.sections if trained(context, n).policy is not None]
  config_lib.one_of(training, **{f"stage of the run in {folder} that trains a policy": stage})
  return context, trained(context, stage).policy(context.finished(stage))


def complete(
    name: str, problems: Sequence[Problem], sampling: Sampling, *, group_size: int = 1, slots: int = 0, seed: int = 0,
) -> tuple[list[Sample], Completions]:
  """So many completions of each problem by the policy after a stage of a run, "workdir:stage", one after the other.

  Args: slots: completions decoded at once; 0: all. seed: of the draws.
  Raises: ValueError as `policy_of_run`, and for prompts longer than the run's.
  """
  context, params = policy_of_run(name)
  prompts = encode_prompts(problems, context.policy.tokenizer, max_tokens=context.max_prompt_tokens)
  with context.partitioning.use():
    completions = context.complete(
        params, problems, prompts, sampling, group_size=group_size, slots=slots, rng=jax.random.key(seed))
  return make_samples(problems, completions, context.policy.tokenizer, stop_strings=sampling.stop_strings), completions


def _opened(name: str, partitioning: sharding.Partitioning | None = None) -> tuple[Path, str, Context]:
  """(workdir, stage or "", context of the run) of "workdir" or "workdir:stage"."""
  folder, stage = (Path(name), "") if (Path(name) / "config.json").is_file() else _split(name)
  if not (folder / "config.json").is_file():
    raise ValueError(f"{name} is not the workdir of a run: it has no config.json.")
  config, sections = check(ml_collections.ConfigDict(json.loads((folder / "config.json").read_text())))
  return folder, stage, Workdir(folder).with_stages(Context(
      seed=config.seed, policy=make_policy(config.policy), dtype=jnp.dtype(config.policy.dtype), task=None,
      environment=config.environment and make_environment(config.environment), max_prompt_tokens=config.max_prompt_tokens,
      prefill_tokens=config.prefill_tokens, partitioning=partitioning or sharding.Partitioning(sharding.make_mesh()),
  ), config, sections)


def _split(name: str) -> tuple[Path, str]:
  """(workdir, stage) of "workdir:stage"; ("", "") of anything else."""
  path, _, stage = name.rpartition(":")
  return (Path(path), stage) if path and (Path(path) / "config.json").is_file() else (Path(), "")


def trained(context: Context, name: str) -> Trained:
  """What the stage of that name trains."""
  return STAGES[context.sections[name].kind].trained(context.sections[name], context)


def policies_before(context: Context, stage: str) -> list[str]:
  """What another stage's policy may be called there: "initial", and the earlier stages that train one."""
  return ["initial", *(name for name in context.earlier(stage) if trained(context, name).policy is not None)]
