r"""Reward models on human preferences: HH-RLHF (harmless) or PandaLM, from SmolLM2-135M-Instruct or a small encoder.

    python -m rl_reason.models.pretrained fetch smollm2-135m
    python -m rl_reason.train --config=experiments/reward_models.py:hh --workdir=runs/rm_hh \
        --config.rm.data.train.path=hh_rlhf_train.jsonl.gz --config.rm.data.heldout.path=hh_rlhf_test.jsonl.gz
    ... --config=experiments/reward_models.py:pandalm   # Votes of three people: their share is a soft label.
    ... :hh_cpu, :pandalm_cpu                           # Only the head and few tokens: two cores.

Both halves' paths may be one file: :hh and :pandalm then split it with --config.rm.data.train.rows=:80% and
--config.rm.data.heldout.rows=80%:.

Result: not measured yet.
"""

from ml_collections import ConfigDict

DATA = {
    # Prompts of several turns repeat; a row that is too long for the limits is left out, and counted.
    "hh": dict(format="hh_rlhf", bad_rows="drop"),
    # Ties of all three votes stay: a soft label of one half.
    "pandalm": dict(format="pandalm", args=dict(chat=True), bad_rows="drop"),
}


def get_config(size: str = "hh") -> ConfigDict:
  data, _, where = size.partition("_")
  if data not in DATA or where not in ("", "cpu"):
    raise ValueError(f"Unknown size {size!r}: use :hh or :pandalm (an accelerator), :hh_cpu or :pandalm_cpu (two cores).")
  cpu = where == "cpu"
  c = ConfigDict(dict(seed=0, max_prompt_tokens=192 if cpu else 512, stages=("rm",)))
  c.policy = dict(source="pretrained", args=dict(path="smollm2-135m"), dtype="float32" if cpu else "bfloat16")
  c.rm = dict(
      kind="reward_model", num_steps=100 if cpu else 600, batch_size=16 if cpu else 64,
      max_response_tokens=96 if cpu else 512, bad_rows="drop", loss="bradley_terry", freeze_trunk=cpu, heldout_rows=400,
      data=dict(source="comparisons", args=DATA[data], train=dict(path=f"{data}.jsonl.gz", rows=":80%"),
                heldout=dict(path=f"{data}.jsonl.gz", rows="80%:")),
      optimizer=dict(learning_rate=1e-3 if cpu else 1e-5, schedule="linear", warmup_steps=10, args=dict(weight_decay=0.0)))
  c.evaluation = dict(every=50 if cpu else 100)
  c.checkpoint = dict(every=50, keep=1)
  return c
