"""Runs one step of Tunix's GRPOLearner at a time, with the interpreter of Tunix's own environment.

    .venv-bench-tunix/bin/python experiments/benchmarks/worker_tunix.py SHAPE DIRECTORY

All roles are on one device, the sampler is Tunix's own ("vanilla"), and nothing is logged or saved.
The learner asks for a batch when the step before is complete: with one mesh for rollout and
training it loads nothing ahead. So the data set is where the learner can be made to wait.
"""

import json
import os
import sys

from channel import Channel  # First: its clock starts here.
import shapes


def load(directory, model, mesh):
  """Loads the weights of the directory into Tunix's own model of that family.

  By default that model recomputes no activations.
  """
  import jax.numpy as jnp
  sizes = dict(
      num_layers=model["num_layers"], vocab_size=model["vocab_size"], embed_dim=model["width"],
      hidden_dim=model["mlp_hidden"], num_heads=model["num_heads"], head_dim=model["head_dim"],
      num_kv_heads=model["num_kv_heads"], rope_theta=int(model["rope_theta"]),
      norm_eps=model["norm_eps"])
  if model["family"] == "qwen3":
    from tunix.models.qwen3 import model as models
    from tunix.models.qwen3 import params
    config = models.ModelConfig(**sizes, use_tied_embedding=True)
  else:
    from tunix.models.llama3 import model as models
    from tunix.models.llama3 import params
    config = models.ModelConfig(**sizes, weight_tying=True)
  return params.create_model_from_safe_tensors(str(directory), config, mesh, dtype=jnp.float32)


def main(name, directory):
  """Answers one step after the other, until the other side ends the run."""
  # Long on purpose: Tunix's modules can only be imported here, and all that follows uses them.
  channel, shape = Channel(), shapes.SHAPES[name]
  sys.path.pop(0)  # This folder's names are short, and would shadow other packages'.
  os.environ |= dict(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
  from flax import nnx
  import jax
  import numpy as np
  import optax
  import transformers
  from tunix.rl import rl_cluster
  from tunix.rl.grpo import grpo_learner
  from tunix.rl.rollout import base_rollout
  # As in worker_ours: every program is cached, if there is a folder for the cache.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  channel.ready(
      "google-tunix", "jax", "jaxlib", "flax", "optax", "transformers", "numpy",
      device=jax.devices()[0].device_kind)
  channel.wait()

  # The models, the sampler and the optimizer.
  mesh = jax.make_mesh(
      (1, 1), ("fsdp", "tp"), devices=jax.devices()[:1],
      axis_types=(jax.sharding.AxisType.Auto,) * 2)
  group = shape["completions"]
  rollout = base_rollout.RolloutConfig(
      max_tokens_to_generate=shape["max_tokens"], max_prompt_length=shape["prompt_tokens"],
      kv_cache_size=shape["prompt_tokens"] + shape["max_tokens"],
      temperature=shapes.TEMPERATURE, top_p=1.0, top_k=None)
  adamw = optax.adamw(shapes.LEARNING_RATE, weight_decay=0.0)
  with mesh:
    cluster = rl_cluster.RLCluster(
        actor=load(directory, shape["model"], mesh),
        reference=load(directory, shape["model"], mesh),
        tokenizer=transformers.AutoTokenizer.from_pretrained(directory),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh={role: mesh for role in (
                rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)},
            rollout_engine="vanilla", rollout_config=rollout,
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.chain(optax.clip_by_global_norm(shapes.MAX_GRAD_NORM), adamw),
                eval_every_n_steps=shapes.MAX_STEPS + 1, max_steps=shapes.MAX_STEPS,
                mini_batch_size=shape["prompts"],
                train_micro_batch_size=shape["tunix_rows"] // group,
                rollout_micro_batch_size=shape["prompts"],
                compute_logps_micro_batch_size=shape["tunix_rows"] // group)))

  # Count the tokens where they are sampled.
  counted = dict(generated=0, trained=0)
  generate = cluster.generate

  def counting(*args, **kwargs):
    output = generate(*args, **kwargs)
    # Tunix neither returns EOS nor trains on it, so EOS is added to the sampled tokens.
    lengths = [len(tokens) for tokens in output.tokens]
    counted.update(
        generated=sum(min(n + 1, shape["max_tokens"]) for n in lengths), trained=sum(lengths))
    return output
  cluster.generate = counting

  def batches():
    """Yields the prompts of each step; before that, it answers for the last step and waits."""
    with open(f"{directory}/prompts.jsonl") as file:
      prompts = [json.loads(line)["prompt"] for line in file]
    for step in range(shapes.MAX_STEPS):
      if step:
        jax.block_until_ready(nnx.state(cluster.actor_trainer.model))
        channel.answer(**counted)
        channel.wait()
      # Otherwise every step would draw the same numbers, and the same lengths.
      rollout.seed = jax.random.PRNGKey(step)
      yield {"prompts": np.array(prompts[step * shape["prompts"]:(step + 1) * shape["prompts"]])}

  learner = grpo_learner.GRPOLearner(
      rl_cluster=cluster,
      reward_fns=lambda prompts, completions, **_: [shapes.reward(text) for text in completions],
      algo_config=grpo_learner.GRPOConfig(
          num_generations=group, num_iterations=1, beta=shapes.KL_COEF, kl_loss_mode="low_var_kl",
          epsilon=shapes.CLIP))
  learner.train(batches())


if __name__ == "__main__":
  main(*sys.argv[1:])
