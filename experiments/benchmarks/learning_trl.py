"""Runs TRL's part of learning.py, with the interpreter of TRL's own environment.

    .venv-bench-trl/bin/python experiments/benchmarks/learning_trl.py WARM DIRECTORY

WARM holds the policy, its tokenizer, prompts.jsonl and settings.json. In DIRECTORY it writes
rewards.json (a mean per step), versions.json and final/, the policy at the end.
"""

import importlib.metadata
import json
import os
from pathlib import Path
import sys

sys.path.pop(0)  # This folder's names are short, and would shadow other packages'.


def main(warm, directory):
  """Trains the policy in `warm` with TRL, and writes the results to `directory`."""
  os.environ |= dict(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
  import datasets
  import torch
  import transformers
  import trl
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  warm, directory = Path(warm), Path(directory)
  settings, rewards = json.loads((warm / "settings.json").read_text()), []

  def exact_answer(completions, reference, **_):
    """Rewards 1 if the text after the last marker is the reference, else 0.

    It is rl_reason.rewards.answers.exact_answer, which this environment cannot import.
    """
    scores = [
        float("#" in text and text.rpartition("#")[2].strip() == r)
        for text, r in zip(completions, reference)]
    rewards.append(sum(scores) / len(scores))
    return scores

  config = trl.GRPOConfig(
      output_dir=str(directory), model_init_kwargs=dict(dtype="float32"),
      per_device_train_batch_size=settings["prompts"] * settings["completions"],
      gradient_accumulation_steps=1, num_generations=settings["completions"],
      max_completion_length=settings["max_tokens"], temperature=settings["temperature"], top_k=0,
      beta=settings["kl_coef"], epsilon=settings["clip"], num_iterations=1, loss_type="grpo",
      scale_rewards="group", learning_rate=settings["learning_rate"],
      max_grad_norm=settings["max_grad_norm"], weight_decay=0.0, lr_scheduler_type="constant",
      shuffle_dataset=False, max_steps=settings["num_steps"], bf16=False, fp16=False,
      gradient_checkpointing=False, logging_strategy="no", save_strategy="no", eval_strategy="no",
      report_to="none", disable_tqdm=True, seed=settings["seed"])
  trainer = trl.GRPOTrainer(
      model=str(warm), reward_funcs=exact_answer, args=config,
      train_dataset=datasets.load_dataset(
          "json", data_files=str(warm / "prompts.jsonl"), split="train"),
      processing_class=transformers.AutoTokenizer.from_pretrained(warm, padding_side="left"))
  trainer.train()
  versions = {p: importlib.metadata.version(p) for p in ("trl", "torch", "transformers")}
  (directory / "versions.json").write_text(json.dumps(versions))
  (directory / "rewards.json").write_text(json.dumps(rewards))
  # Last: where the policy is, all files are complete.
  trainer.save_model(str(directory / "final"))


if __name__ == "__main__":
  main(*sys.argv[1:])
