"""Compares our decoder and file formats with transformers, live and in both directions.

From the same directory both must compute the same logits.
"""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.arrays import Inputs
from rl_reason.models import pretrained, reward_model_files
from rl_reason.models.transformer import forward, unembed
from tests.make_reference_values import CASES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle


def random_model(raw, seed=0):
  torch.manual_seed(seed)
  # A copy, because for_model writes into the inner dictionaries.
  config = transformers.AutoConfig.for_model(**copy.deepcopy(raw))
  model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
  perturb(model)
  return model.eval()


def perturb(model):
  # Fresh models have norms of one and biases of zero, under which a forgotten one would not show.
  with torch.no_grad():
    for name, x in model.named_parameters():
      x.add_(torch.randn_like(x) * (0.3 if x.ndim == 1 else 1.0 * x.shape[-1] ** -0.5))


def our_logits(config, params, tokens, dtype=jnp.float32):
  tokens = jnp.asarray(tokens)
  lengths = jnp.full(tokens.shape[0], tokens.shape[1])
  return np.asarray(jax.jit(lambda p: unembed(
      config, p, forward(config, p, Inputs(tokens, lengths), dtype=dtype)[0]))(params))


def their_logits(model, tokens):
  with torch.no_grad():
    return model(torch.tensor(tokens)).logits.float().numpy()


def report(name, ours, theirs):
  print(
      f"\n{name}: max |ours - theirs| = {np.abs(ours - theirs).max():.2e},"
      f" logits up to {np.abs(theirs).max():.1f}")


TOKENS = np.random.RandomState(2).randint(0, 96, (2, 24))


@pytest.mark.parametrize("name", CASES)
def test_logits_and_greedy_tokens_agree_and_our_files_load_there(name, tmp_path):
  model = random_model(CASES[name])
  model.save_pretrained(
      tmp_path / "theirs", max_shard_size="20KB" if name in ("llama", "gemma3") else "1GB")
  assert (
      (tmp_path / "theirs/model.safetensors.index.json").exists()
      == (name in ("llama", "gemma3")))
  config, params = pretrained.read_config(tmp_path / "theirs"), pretrained.load(tmp_path / "theirs")
  ours, theirs = our_logits(config, params, TOKENS), their_logits(model, TOKENS)
  report(name, ours, theirs)
  np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)

  prompt = TOKENS[:, :6]
  greedy = model.generate(
      torch.tensor(prompt), max_new_tokens=16, do_sample=False, use_cache=True).numpy()
  padded = np.zeros_like(greedy)
  padded[:, :6] = prompt
  step = jax.jit(lambda tokens, n: unembed(
      config, params, forward(config, params, Inputs(tokens, n))[0]).argmax(-1))
  for i in range(6, padded.shape[1]):
    padded[:, i] = np.asarray(step(padded, np.full(2, i)))[:, i - 1]
  np.testing.assert_array_equal(padded, greedy)

  for dtype, shard in (("float32", 5_000_000_000), ("bfloat16", 20_000)):
    target = tmp_path / f"ours_{dtype}"
    pretrained.save(target, config, params, dtype=dtype, max_shard_bytes=shard)
    again, loading = transformers.AutoModelForCausalLM.from_pretrained(
        target, attn_implementation="eager", output_loading_info=True)
    assert (
        not loading["missing_keys"] and not loading["unexpected_keys"]
        and not loading["mismatched_keys"])
    assert type(again).__name__ == type(model).__name__
    assert again.dtype == getattr(torch, dtype)
    if dtype == "float32":
      np.testing.assert_allclose(their_logits(again, TOKENS), theirs, atol=1e-6, rtol=0)
    else:  # The same rounding of every weight, computed in float32 on both sides.
      rounded = our_logits(pretrained.read_config(target), pretrained.load(target), TOKENS)
      # By dtype, because .float() would keep rotary tables rounded.
      again = transformers.AutoModelForCausalLM.from_pretrained(
          target, attn_implementation="eager", dtype=torch.float32)
      np.testing.assert_allclose(rounded, their_logits(again, TOKENS), atol=1e-4, rtol=0)


def test_bfloat16_checkpoints_of_transformers(tmp_path):
  random_model(CASES["qwen3"]).to(torch.bfloat16).save_pretrained(tmp_path)
  model = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path, attn_implementation="eager", dtype=torch.float32)
  config, params = pretrained.read_config(tmp_path), pretrained.load(tmp_path, dtype=jnp.bfloat16)
  assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(params))
  ours = our_logits(config, jax.tree.map(lambda x: x.astype(jnp.float32), params), TOKENS)
  np.testing.assert_allclose(ours, their_logits(model, TOKENS), atol=1e-4, rtol=0)


def test_the_language_model_inside_gemma3_with_images(tmp_path):
  text = copy.deepcopy({**CASES["gemma3"], "final_logit_softcapping": None})
  vision = dict(
      hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
      image_size=28, patch_size=14)
  config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
  config._attn_implementation = "eager"
  torch.manual_seed(0)
  model = transformers.Gemma3ForConditionalGeneration(config).eval()
  perturb(model)
  model.save_pretrained(tmp_path)
  assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gemma3"
  ours = our_logits(pretrained.read_config(tmp_path), pretrained.load(tmp_path), TOKENS)
  theirs = their_logits(model, TOKENS)
  report("gemma3 with images", ours, theirs)
  np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_soft_capped_attention():
  from transformers.models.gemma3.modeling_gemma3 import eager_attention_forward

  from rl_reason.models.attention import attention
  draw = np.random.RandomState(3)
  q, k, v = (draw.standard_normal((2, 7, heads, 16)).astype(np.float32) for heads in (4, 2, 2))
  causal = np.tril(np.ones((7, 7), bool))
  own = (k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), np.broadcast_to(causal, (2, 1, 7, 7)), None)
  ours = attention(q, [own], scale=0.7, softcap=2.0)
  module = type("Attention", (), dict(num_key_value_groups=2, training=False))
  theirs, _ = eager_attention_forward(
      module, *(torch.tensor(x).transpose(1, 2) for x in (q, k, v)),
      torch.where(torch.tensor(causal), 0.0, -1e9)[None, None], scaling=0.7, softcap=2.0)
  np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("raw", [
    {"model_type": "gemma3", "text_config": dict(
        hidden_size=2560, intermediate_size=10240, model_type="gemma3_text",
        num_hidden_layers=34, sliding_window=1024,
        rope_scaling={"factor": 8.0, "rope_type": "linear"})},
    {"model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 2,
     "num_attention_heads": 32, "intermediate_size": 14336},
    {"model_type": "qwen3", "vocab_size": 1000, "hidden_size": 1024, "num_hidden_layers": 2,
     "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 3072},
    {"model_type": "llama", "vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2,
     "num_attention_heads": 4, "intermediate_size": 128},
])
def test_absent_keys_mean_what_they_mean_to_transformers(raw):
  from rl_reason.models import huggingface
  ours = huggingface.from_json(raw)
  theirs = transformers.AutoConfig.for_model(**raw).get_text_config()
  for field, key in dict(
      vocab_size="vocab_size", width="hidden_size", num_heads="num_attention_heads",
      num_kv_heads="num_key_value_heads", head_dim="head_dim",
      max_positions="max_position_embeddings", norm_eps="rms_norm_eps").items():
    assert getattr(ours, field) == getattr(theirs, key), field
  assert ours.tied_embeddings == theirs.tie_word_embeddings
  rope = theirs.rope_parameters.get("full_attention", theirs.rope_parameters)
  assert ours.rope_theta == rope["rope_theta"]
  if raw["model_type"] == "gemma3":
    assert ours.local_rope_theta == theirs.rope_parameters["sliding_attention"]["rope_theta"]
    assert ours.layer_is_local == tuple(x == "sliding_attention" for x in theirs.layer_types)
    assert ours.query_scale == theirs.query_pre_attn_scalar ** -0.5
  if raw["model_type"] in ("gemma3", "mistral"):
    assert ours.sliding_window == theirs.sliding_window


def test_a_model_with_new_tokens_loads_there(tmp_path):
  from rl_reason.models import sources
  from tests.models.test_tokenizer import FIRST_NEW, model_directory
  raw = {**CASES["llama"], "vocab_size": FIRST_NEW}
  random_model(raw).save_pretrained(tmp_path / "theirs")
  model_directory(tmp_path / "theirs")
  source = sources.from_files(path=str(tmp_path / "theirs"), new_tokens=["<|reflect|>", "<note>"])
  params = source.make_params(jax.random.key(0), None)
  pretrained.save(tmp_path / "ours", source.config, params)
  source.tokenizer.save(tmp_path / "ours")
  tok = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
  ids = tok.encode("1<|reflect|>2<note>", add_special_tokens=False)
  assert (
      ids == source.tokenizer.encode("1<|reflect|>2<note>")
      and ids[1::2] == [FIRST_NEW, FIRST_NEW + 1])
  assert tok.decode(ids, skip_special_tokens=True) == "1<|reflect|>2<note>"
  model = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path / "ours", attn_implementation="eager").eval()
  assert model.get_input_embeddings().weight.shape[0] == FIRST_NEW + 2
  ours, theirs = our_logits(source.config, params, [ids]), their_logits(model, [ids])
  report("new tokens", ours, theirs)
  np.testing.assert_allclose(ours, theirs, atol=1e-4)
  # As transformers' own resizing starts them, but for its noise: the mean of the rows before.
  before = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
  before.resize_token_embeddings(FIRST_NEW + 2, mean_resizing=True)
  theirs = before.get_input_embeddings().weight[-2:].detach().numpy()
  np.testing.assert_allclose(np.asarray(params["embedding"][-2:]), theirs, atol=1e-2)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
def test_reward_models_of_transformers_score_alike_in_both_directions(name, tmp_path):
  torch.manual_seed(0)
  config = transformers.AutoConfig.for_model(**copy.deepcopy(CASES[name]), num_labels=2)
  theirs = transformers.AutoModelForSequenceClassification.from_config(
      config, attn_implementation="eager").eval()
  perturb(theirs)
  theirs.config.pad_token_id = None
  theirs.save_pretrained(tmp_path / "theirs")

  def their_scores(model):
    with torch.no_grad():
      return np.concatenate([model(torch.tensor(row[None])).logits.numpy() for row in TOKENS])

  stored, params = reward_model_files.load(tmp_path / "theirs")
  hidden, _ = forward(stored.model.config, params["trunk"], Inputs(
      jnp.asarray(TOKENS), jnp.full(TOKENS.shape[0], TOKENS.shape[1])))
  ours = np.asarray(hidden[:, -1] @ params["head"]["output"])
  np.testing.assert_allclose(ours, their_scores(theirs), atol=1e-4)
  reward_model_files.save(tmp_path / "ours", stored, params)
  again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
  np.testing.assert_allclose(their_scores(again.eval()), their_scores(theirs), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_base_classes_of_transformers_give_the_same_hidden_states(name, tmp_path):
  config = transformers.AutoConfig.for_model(**copy.deepcopy(CASES[name]))
  theirs = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
  perturb(theirs)
  theirs.save_pretrained(tmp_path)
  ours = pretrained.read_config(tmp_path)
  hidden, _ = forward(ours, pretrained.load(tmp_path), Inputs(
      jnp.asarray(TOKENS), jnp.full(TOKENS.shape[0], TOKENS.shape[1])))
  with torch.no_grad():
    expected = theirs(torch.tensor(TOKENS)).last_hidden_state.numpy()
  np.testing.assert_allclose(hidden, expected, atol=1e-4)
