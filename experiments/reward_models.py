r"""Reward models on human preferences: HH-RLHF (harmless) or PandaLM, from SmolLM2-135M-Instruct.

    python -m rl_reason.models.pretrained fetch smollm2-135m
    python -m rl_reason.train --config=experiments/reward_models.py:hh --workdir=runs/rm_hh \
        --config.rm.data.train.path=hh_rlhf_train.jsonl.gz \
        --config.rm.data.heldout.path=hh_rlhf_test.jsonl.gz
    ... :pandalm              # Votes of three people: their share is a soft label.
    ... :hh_cpu, :pandalm_cpu # Two cores: a third of the layers, only the head learns, few tokens.

Each half is a part of its file: set rows='' for the whole of it. PandaLM has several pairs of the
same instruction side by side, so its 661 human-labelled rows are cut where one ends.

Result of the :cpu sizes (seed 0, 60 steps of 16 pairs, 12 and 15 minutes on two busy cores of an
AMD EPYC; accuracy on held-out pairs with its 95 % interval; 668 training pairs of the harmless test
file of HH-RLHF and 362 of PandaLM's 661 human-labelled rows are short enough):

    data      pairs   reward model          longer     random   where longer   where it
                                            response            is better      is worse
    hh        165     0.618 (0.542-0.689)   0.442      0.497    0.247          0.913
    pandalm   70      0.714 (0.599-0.807)   0.771      0.443    0.870          0.188

On PandaLM the head has learnt to like length, on HH-RLHF brevity: score and length correlate with
0.77 and -0.80 within a pair. Only on HH-RLHF is it better than the length-only baseline, and not
clearly better than "the shorter one", 0.558.
"""

from ml_collections import ConfigDict

from rl_reason.config.overrides import sized

# Format, and where the file is cut into halves.
DATA = {
    # Prompts of several turns repeat; a row that is too long for the limits is left out, and
    # counted.
    "hh": (dict(format="hh_rlhf", bad_rows="drop"), "80%"),
    # Ties of all three votes stay: a soft label of one half.
    "pandalm": (dict(format="pandalm", args=dict(chat=True), bad_rows="drop"), "536"),
}
# What two cores can do, by field.
CPU = {
    "max_prompt_tokens": 192, "policy.args.layers": 10, "policy.dtype": "float32",
    "rm.num_steps": 60, "rm.batch_size": 16, "rm.max_response_tokens": 96,
    "rm.freeze_trunk": True, "rm.learner.optimizer.learning_rate": 1e-3,
}


def get_config(size: str = "hh") -> ConfigDict:
  data, _, where = size.partition("_")
  if data not in DATA or where not in ("", "cpu"):
    raise ValueError(f"Unknown size {size!r}: use :hh or :pandalm (an accelerator), :hh_cpu or"
                     " :pandalm_cpu (two cores).")
  arguments, cut = DATA[data]
  c = ConfigDict(dict(seed=0, max_prompt_tokens=512, stages=("rm",)))
  c.policy = dict(
      source="pretrained", args=dict(path="smollm2-135m", layers=0), dtype="bfloat16")
  c.rm = dict(
      kind="reward_model", num_steps=600, batch_size=64, max_response_tokens=512, bad_rows="drop",
      loss="bradley_terry", freeze_trunk=False, heldout_rows=400,
      data=dict(
          source="comparisons", args=arguments,
          train=dict(path=f"{data}.jsonl.gz", rows=f":{cut}"),
          heldout=dict(path=f"{data}.jsonl.gz", rows=f"{cut}:")),
      learner=dict(optimizer=dict(
          learning_rate=1e-5, schedule="linear", warmup_steps=10, args=dict(weight_decay=0.0))))
  c.evaluation = dict(every=100)
  c.checkpoint = dict(every=50, keep=1)
  return sized(c, where, cpu=CPU)
