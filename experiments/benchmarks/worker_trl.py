"""Runs one step of TRL's GRPOTrainer at a time, with the interpreter of TRL's own environment.

    .venv-bench-trl/bin/python experiments/benchmarks/worker_trl.py SHAPE DIRECTORY

It is set for speed on the machine at hand: the batch is taken in as many parts as were fastest
(shapes.trl_rows), there is no gradient checkpointing (TRL's default recomputes activations), AdamW
is fused, and nothing is logged or saved. It computes in float32 as all systems do (TRL's default is
bfloat16). Generation is transformers' own.
"""

import os
import sys

from channel import Channel  # First: its clock starts here.
import shapes


def main(name, directory):
  """Answers one step after the other, until the other side ends the run."""
  # Nested on purpose: TRL calls these functions back, and they read what is set up here.
  channel, shape = Channel(), shapes.SHAPES[name]
  sys.path.pop(0)  # This folder's names are short, and would shadow other packages'.
  os.environ |= dict(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
  import datasets
  import torch
  import transformers
  import trl
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
  channel.ready("trl", "torch", "transformers", "accelerate", "datasets", "numpy", device=device)
  counted = dict(generated=0, trained=0)

  def score(completions, completion_ids, **_):
    # EOS is counted, as the loss's mask includes it.
    counted["generated"] = counted["trained"] = sum(map(len, completion_ids))
    return [shapes.reward(text) for text in completions]

  class OneStepAtATime(transformers.TrainerCallback):
    """Waits before a step and answers after it; the trainer does all of the step in between."""
    first = True

    def on_step_begin(self, *_, **__):
      if not self.first:  # The first step's command was taken before loading.
        channel.wait()
      self.first = False

    def on_step_end(self, *_, **__):
      if torch.cuda.is_available():
        torch.cuda.synchronize()
      channel.answer(**counted)

  channel.wait()
  batch = shape["prompts"] * shape["completions"]
  config = trl.GRPOConfig(
      output_dir=f"{directory}/trl", model_init_kwargs=dict(dtype="float32"),
      per_device_train_batch_size=shape["trl_rows"],
      gradient_accumulation_steps=batch // shape["trl_rows"],
      num_generations=shape["completions"], max_completion_length=shape["max_tokens"],
      temperature=shapes.TEMPERATURE, top_k=0, beta=shapes.KL_COEF, epsilon=shapes.CLIP,
      num_iterations=1, loss_type="dapo", scale_rewards="group", learning_rate=shapes.LEARNING_RATE,
      max_grad_norm=shapes.MAX_GRAD_NORM, weight_decay=0.0, lr_scheduler_type="constant",
      max_steps=shapes.MAX_STEPS, bf16=False, fp16=False, gradient_checkpointing=False,
      logging_strategy="no", save_strategy="no", eval_strategy="no", report_to="none",
      disable_tqdm=True, seed=0)
  trainer = trl.GRPOTrainer(
      model=str(directory), reward_funcs=score, args=config, callbacks=[OneStepAtATime()],
      train_dataset=datasets.load_dataset(
          "json", data_files=f"{directory}/prompts.jsonl", split="train"),
      processing_class=transformers.AutoTokenizer.from_pretrained(directory))
  trainer.train()


if __name__ == "__main__":
  main(*sys.argv[1:])
