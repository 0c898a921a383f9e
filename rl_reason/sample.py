"""Tries a policy at a prompt.

    python -m rl_reason.sample --config=experiments/quickstart.py --workdir=runs/quickstart --prompt="7+2-5=" --num_samples=4

The prompt is a user's message where the run's task has chat prompts, else plain text. Sampling is that of the config's
evaluation section: --config.evaluation.sampling.temperature=0 for the likeliest completion.
"""

from pathlib import Path

from absl import flags
import jax
import ml_collections

from rl_reason.batches.prompts import encode_prompts
from rl_reason.reporting.progress import printable
from rl_reason.rollout import generate
from rl_reason.rollout.samples import make_samples
from rl_reason.run import config as run
from rl_reason.run import context as context_lib
from rl_reason.run import process
from rl_reason.run import workdir as workdir_lib
from rl_reason.runtime import compilation, sharding
from rl_reason.types import Problem

_PROMPT = flags.DEFINE_string("prompt", None, "What the policy reads.", required=True)
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Completions to draw.", lower_bound=1)
_INITIAL = flags.DEFINE_bool("initial", False, "The policy before training, in place of the newest checkpoint.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the completions.")


def main(config: ml_collections.ConfigDict, workdir: Path) -> None:
  with process.errors_in_one_line():
    process.start()
    compilation.keep_programs(print)
    run_config, sections = run.check(config)
    folder = workdir_lib.Workdir(workdir)
    context = folder.with_stages(context_lib.make_context(run_config), run_config, sections)
    if run_config.evaluation.sampling is None:
      raise ValueError("The config says nothing of sampling: add config.evaluation.sampling.")
    example, prompt = context.task.heldout[0].prompt if context.task else "", _PROMPT.value
    if not isinstance(example, str):  # A chat, with the task's system message and worked turns, if any.
      prompt = (*example[:-1], {"role": "user", "content": prompt})
    problems, tokenizer = [Problem(prompt=prompt, reference="", id="--prompt")], context.policy.tokenizer
    prompts = encode_prompts(problems, tokenizer, max_tokens=run_config.max_prompt_tokens)
    sampling = run_config.evaluation.sampling
    with context.partitioning.use():
      if _INITIAL.value:
        params = context_lib.initial_params(context)
      else:
        where, params = folder.newest_policy(run_config, context)
        print(f"# {where}")
      completions = generate(
          context.policy.config, params, prompts, sampling,
          group_size=_NUM_SAMPLES.value, rng=jax.random.key(_SEED.value), stop_ids=tokenizer.stop_ids,
          decode_text=tokenizer.decode, dtype=context.dtype, prefill_tokens=context.prefill_tokens)
    if sharding.is_main_process():
      for sample in make_samples(problems, completions, tokenizer, stop_strings=sampling.stop_strings):
        print(printable(sample.completion) + (" [cut at max_tokens]" if sample.truncated else ""))


if __name__ == "__main__":
  process.command(main)
