"""Runs one GRPO step of rl_reason at a time.

    python -m rl_reason.experiments.benchmarks.worker_ours SHAPE DIRECTORY

It is the stage that `rl_reason.train` runs, called as the training loop calls it.
"""

import sys

from rl_reason.experiments.benchmarks import shapes
from rl_reason.experiments.benchmarks.channel import Channel


def score(samples):
  """Rewards samples as all systems do."""
  return [shapes.reward(s.completion) for s in samples]


def get_config(shape, directory):
  """Makes the config of a run with this shape, on the files that `inputs` wrote to `directory`."""
  from ml_collections import ConfigDict
  prompts = dict(source="jsonl", args=dict(path=f"{directory}/prompts.jsonl", prompt="{prompt}"),
                 train=dict(rows="1:"), heldout=dict(rows=":1"))
  sampling = dict(max_tokens=shape["max_tokens"], temperature=shapes.TEMPERATURE)
  return ConfigDict(dict(
      stages=("rl",), max_prompt_tokens=shape["prompt_tokens"], task=prompts,
      policy=dict(source="pretrained", args=dict(path=str(directory))),
      # A task needs an evaluation, which is never called.
      evaluation=dict(rewards=dict(exact_answer=1.0), num_problems=1, sampling=sampling),
      rl=dict(
          kind="policy_gradient", num_steps=shapes.MAX_STEPS,
          rewards=dict(parity=dict(function=f"{__name__}:score")),
          rollout=dict(
              prompts=shape["prompts"], group_size=shape["completions"], sampling=sampling),
          credit=dict(baseline="group_mean", normalise="group_std"),
          objective=dict(
              clip_low=shapes.CLIP, clip_high=shapes.CLIP,
              kl=dict(coef=shapes.KL_COEF, estimator="k3"), mean_over="token"),
          learner=dict(
              optimizer=dict(learning_rate=shapes.LEARNING_RATE, max_grad_norm=shapes.MAX_GRAD_NORM,
                         args=dict(weight_decay=0.0))))))


def main(name, directory):
  """Answers one step after the other, until the other side ends the run."""
  channel = Channel()
  import jax

  from rl_reason.run.config import check
  from rl_reason.run.context import make_context
  from rl_reason.run.process import start
  from rl_reason.stages.registry import STAGES
  # If JAX_COMPILATION_CACHE_DIR names a folder, every program is cached, however fast it compiled.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  channel.ready(
      "rl_reason", "jax", "jaxlib", "flax", "optax", "numpy", device=jax.devices()[0].device_kind)

  # Loading and compiling are part of the first step's time.
  channel.wait()
  start()  # The settings that every command makes.
  run_config, sections = check(get_config(shapes.SHAPES[name], directory))
  context = make_context(run_config)
  with context.partitioning.use():
    stage = STAGES["policy_gradient"].build(sections["rl"], context, context.initial_params(), "rl")
    state = stage.init()
    for index in range(shapes.MAX_STEPS):
      state, result = stage.step(state, next(stage.data), index)
      jax.block_until_ready(state)
      metrics = result.metrics
      channel.answer(
          generated=result.tokens, trained=result.tokens, loss=metrics["loss"],
          grad_norm=metrics["grad_norm"],
          parts={
              k.removeprefix("time/"): v for k, v in metrics.items() if k.startswith("time/")})
      channel.wait()


if __name__ == "__main__":
  main(*sys.argv[1:])
