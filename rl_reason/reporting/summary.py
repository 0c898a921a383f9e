"""Makes the table at the end of a run: what each stage changed."""

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = ("after", "steps", "pass@1 (95 %)", "pass@k", "KL", "tokens/s", "seconds")


def summary(metrics: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> list[list[str]]:
  """Makes rows for COLUMNS from the lines of metrics.jsonl: the start, then each stage's end.

  A stage that does not train a policy shows its accuracy on held-out comparisons. KL is the mean
  over the last tenth of the stage's steps. tokens/s is the number of trained tokens divided by the
  seconds of the steps.

  Args:
    metrics: the lines of metrics.jsonl.
    stages: names of the stages, in the order they ran.
  """
  rows = []
  for i, stage in enumerate(stages):
    lines = [m for m in metrics if m["stage"] == stage]
    evaluations = [m for m in lines if "eval/pass@1" in m or "eval/accuracy" in m]
    steps = [m for m in lines if "time/step" in m]
    # An evaluation before the first update shows what the run started from.
    if i == 0 and evaluations and evaluations[0]["step"] == 0 and "eval/pass@1" in evaluations[0]:
      rows.append(["nothing", "0", *_accuracy(evaluations[0]), "", "", ""])
    if not steps:
      continue
    seconds = sum(m["time/step"] for m in steps)
    kl = [m["kl"] for m in steps[-max(1, len(steps) // 10):] if "kl" in m]
    rows.append([
        stage, str(steps[-1]["step"]), *(_accuracy(evaluations[-1]) if evaluations else ("", "")),
        f"{sum(kl) / len(kl):.4f}" if kl else "",
        f"{sum(m.get('tokens', 0) for m in steps) / seconds:.0f}",
        f"{seconds + sum(m.get('time/evaluation', 0) for m in evaluations):.0f}"])
  return rows


def _accuracy(m: Mapping[str, Any]) -> tuple[str, str]:
  """Writes (pass@1 with its interval, pass@k), or the accuracy of a stage without a policy."""
  if "eval/pass@1" not in m:
    interval = (f" ({m['eval/accuracy_low']:.3f}-{m['eval/accuracy_high']:.3f})"
                if "eval/accuracy_low" in m else "")
    return f"accuracy {m['eval/accuracy']:.3f}{interval}", ""
  several = [k for k in m
             if k.startswith("eval/pass@") and k.split("@")[1].isdigit() and k != "eval/pass@1"]
  return (f"{m['eval/pass@1']:.3f} ({m['eval/pass@1_low']:.3f}-{m['eval/pass@1_high']:.3f})",
          f"{m[several[0]]:.3f} (k={several[0].split('@')[1]})" if several else "")
