r"""SmolLM2-135M-Instruct on grade-school word problems, with math-verify as the judge.

    python -m rl_reason.models.pretrained fetch smollm2-135m
    python -m rl_reason.train --config=experiments/smollm2_gsm.py:cpu --workdir=runs/smollm2 \
        --config.task.train.path=svamp.jsonl.gz --config.task.heldout.path=svamp.jsonl.gz
    ... --config=experiments/smollm2_gsm.py          # GSM8K, an accelerator; set both paths to its train and test files.

Result: not measured yet. The :cpu setting ran for two steps on two busy cores (140 s, then 84 s a step; sampler and trainer
agreed to 5e-5); held-out accuracy before training was 0.047 on 64 SVAMP additions and subtractions at temperature 0.7. No
accuracy after training is known. Prompts that ask for free reasoning were cut at 80 tokens in 15 of 16 samples.
"""

from ml_collections import ConfigDict

INSTRUCTION = "{question}\nThink step by step, then write the final number as \\boxed{{number}}."
# Two cores decode some 200 tokens a second: one equation, which 32 tokens can hold.
SHORT_INSTRUCTION = "{question}\nWrite one equation, with its result as \\boxed{{number}}."


def get_config(size: str = "full") -> ConfigDict:
  if size not in ("full", "cpu"):
    raise ValueError(f"Unknown size {size!r}: use :full (GSM8K, an accelerator) or :cpu (SVAMP, two cores).")
  cpu = size == "cpu"
  c = ConfigDict(dict(seed=0, max_prompt_tokens=192 if cpu else 512, stages=("sft", "rl") if cpu else ("rl",)))
  c.policy = dict(source="pretrained", args=dict(path="smollm2-135m"), dtype="float32" if cpu else "bfloat16")
  if cpu:
    c.task = dict(
        source="jsonl",
        args=dict(prompt=SHORT_INSTRUCTION, chat=True, reference="{answer:g}", solution="{equation} = \\boxed{{{answer:g}}}",
                  id="{id}", unique=True, where=dict(type=["Addition", "Subtraction"])),
        train=dict(path="svamp.jsonl.gz", rows=":80%"), heldout=dict(path="svamp.jsonl.gz", rows="80%:"))
    c.sft = dict(
        kind="sft", num_steps=25, batch_size=16, microbatches=4, max_completion_tokens=40,
        optimizer=dict(learning_rate=2e-5, warmup_steps=3, args=dict(weight_decay=0.0)))
  else:
    c.task = dict(
        source="jsonl",
        args=dict(prompt=INSTRUCTION, chat=True, reference="{answer}", reference_pattern=r"####\s*(.+)$", id="{id}"),
        train=dict(path="gsm8k_train.jsonl.gz"), heldout=dict(path="gsm8k_test.jsonl.gz"))
  sampling = dict(temperature=0.7, max_tokens=32) if cpu else dict(temperature=1.0, max_tokens=512)
  c.rl = dict(
      kind="policy_gradient", num_steps=40 if cpu else 1000, prompts_per_step=8 if cpu else 64, group_size=8 if cpu else 16,
      sampling=sampling, rewards=dict(math_answer=1.0, boxed_format=0.2),
      baseline="leave_one_out", normalise="none", mean_over="token", kl_coef=0.02 if cpu else 0.01, kl_estimator="k3",
      clip_low=0.2, clip_high=0.28, remat="none" if cpu else "dots",
      optimizer=dict(learning_rate=1e-5 if cpu else 2e-6, warmup_steps=3, args=dict(weight_decay=0.0)))
  c.evaluation = dict(
      rewards=dict(math_answer=1.0), num_problems=100 if cpu else 1319, samples_per_problem=4,
      every=0 if cpu else 50, batch_size=25 if cpu else 128, sampling=sampling)
  c.checkpoint = dict(every=10 if cpu else 50, keep=1 if cpu else 2)
  return c
