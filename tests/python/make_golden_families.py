"""Writes tests/golden/families: tiny random checkpoints of every family, and the values transformers gives for them.

    python tests/python/make_golden_families.py            (torch 2.13.0, transformers 5.23.0)

One folder a shape: config.json, the weights, `config-old-spelling.json` where transformers 4 wrote it otherwise, and
  golden.json          token sequences; prompts of different lengths with their greedy continuations (one padded batch);
                       bf16_errors, how far the same model computed in bf16 is off: root mean squares of hidden states and
                       log-probs, and the norm of the gradient's difference as a share of the gradient's
  golden.safetensors   hidden (after the final norm) and logits of all positions, sequence after sequence; logits_bf16 of
                       the same model computed in bf16; log_probs of all tokens but each sequence's first; grad.NAME, the
                       gradient of the sum of those log-probs by every weight
Weights are drawn wide, so that attention is sharp, soft-caps bite and windows matter. Seeds are fixed.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen2Config

HERE = Path(__file__).resolve().parent.parent / "golden" / "families"
VOCABULARY = 48
LENGTHS = (23, 8, 2)
PROMPT_LENGTHS = (3, 17, 9)
NEW_TOKENS = 12

DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}


def llama3_rope(factor):
    return {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }


def common(heads, kv_heads, layers=2, rope=DEFAULT, tied=False, d=16, **more):
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": d,
        "intermediate_size": 20,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 64,
        "rope_parameters": rope,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    } | more


SHAPES = {
    "llama2": LlamaConfig(**common(4, 4, rms_norm_eps=1e-5)),
    "llama31": LlamaConfig(**common(6, 2, head_dim=10, rope=llama3_rope(8.0), rms_norm_eps=1e-5, d=24)),
    "llama32": LlamaConfig(**common(4, 1, head_dim=6, rope=llama3_rope(32.0), tied=True, rms_norm_eps=1e-5)),
    "llama-linear-biases": LlamaConfig(
        **common(2, 2, rope=DEFAULT | {"rope_type": "linear", "factor": 4.0}, attention_bias=True, mlp_bias=True)
    ),
    "qwen2-tied": Qwen2Config(**common(4, 2, tied=True, rope=DEFAULT | {"rope_theta": 1e6})),
    "qwen2-untied": Qwen2Config(**common(6, 3, rope=DEFAULT | {"rope_theta": 1e6}, head_dim=6, d=18)),
    "qwen2-window": Qwen2Config(**common(4, 2, layers=3, use_sliding_window=True, sliding_window=5, max_window_layers=1)),
    "gemma2": Gemma2Config(
        **common(4, 2, layers=4, tied=True, head_dim=6, query_pre_attn_scalar=10, sliding_window=5),
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma2-no-caps": Gemma2Config(
        **common(4, 1, tied=True, head_dim=4, query_pre_attn_scalar=4, sliding_window=40),
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
    ),
    "gemma2-untied-listed": Gemma2Config(
        **common(3, 3, layers=3, head_dim=8, query_pre_attn_scalar=8, sliding_window=4, attention_bias=True, d=12),
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
    ),
}


def draw(config, seed):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_((0.0 if config.model_type == "gemma2" else 1.0) + 0.3 * torch.randn(weight.shape))
            else:
                weight.normal_(0.0, 0.35)
    return model


def old_spelling(config):
    """What transformers 4 wrote for the same model."""
    old = {k: v for k, v in config.items() if k not in ("rope_parameters", "dtype", "layer_types")}
    rope = dict(config["rope_parameters"])
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if rope["rope_type"] == "linear":
        rope["type"] = rope.pop("rope_type")
    old["torch_dtype"] = config["dtype"]
    if config["model_type"] == "gemma2":
        old["hidden_act"] = old["hidden_activation"]
        if old["tie_word_embeddings"]:
            del old["tie_word_embeddings"]
    return old


def forward(model, sequences):
    """Hidden states and logits of all positions, one sequence at a time, end to end."""
    outs = [model(torch.tensor([s]), output_hidden_states=True) for s in sequences]
    return torch.cat([o.hidden_states[-1][0] for o in outs]), [o.logits[0] for o in outs]


def log_probs_of(logits, sequences):
    pairs = zip(logits, sequences)
    return torch.cat([z[:-1].float().log_softmax(-1).gather(1, torch.tensor(s[1:])[:, None])[:, 0] for z, s in pairs])


def rms(difference):
    return difference.float().square().mean().sqrt().item()


def relative(ours, theirs):
    """The norm of a difference over all tensors, as a share of the second's."""
    norm = lambda tensors: sum(t.float().square().sum() for t in tensors).sqrt()
    return (norm([a.float() - b for a, b in zip(ours, theirs)]) / norm(theirs)).item()


def golden(folder, config, seed):
    model = draw(config, seed)
    shards = "20KB" if folder.name == "llama31" else "1GB"
    model.save_pretrained(folder, max_shard_size=shards)
    (folder / "generation_config.json").unlink(missing_ok=True)
    written = json.loads((folder / "config.json").read_text())
    if not folder.name.endswith("-listed"):  # transformers 4 had no lists of layers
        (folder / "config-old-spelling.json").write_text(json.dumps(old_spelling(written), indent=1) + "\n")

    draws = torch.Generator().manual_seed(seed)
    tokens = lambda n: torch.randint(3, VOCABULARY, (n,), generator=draws).tolist()
    sequences, prompts = [tokens(n) for n in LENGTHS], [tokens(n) for n in PROMPT_LENGTHS]

    hidden, logits = forward(model, sequences)
    log_probs = log_probs_of(logits, sequences)
    log_probs.sum().backward()
    values = {"hidden": hidden, "logits": torch.cat(logits), "log_probs": log_probs}
    values |= {f"grad.{name}": weight.grad for name, weight in model.named_parameters()}
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager").eval()
    half_hidden, half_logits = forward(half, sequences)
    half_log_probs = log_probs_of(half_logits, sequences)
    half_log_probs.sum().backward()
    values["logits_bf16"] = torch.cat(half_logits).float()
    errors = {
        "hidden": rms(half_hidden - hidden),
        "log_probs": rms(half_log_probs - log_probs),
        "gradient": relative([w.grad for w in half.parameters()], [w.grad for w in model.parameters()]),
    }
    with torch.no_grad():
        longest = max(PROMPT_LENGTHS)
        padded = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        model.generation_config.eos_token_id = None
        out = model.generate(padded, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
        for prompt, row in zip(prompts, out):  # padding and cache must not matter
            alone = prompt + row[longest:].tolist()
            best = model(torch.tensor([alone[:-1]])).logits[0, len(prompt) - 1 :]
            assert best.argmax(-1).tolist() == alone[len(prompt) :], folder.name
    greedy = [{"prompt": p, "generated": row[longest:].tolist()} for p, row in zip(prompts, out)]
    (folder / "golden.json").write_text(json.dumps({"sequences": sequences, "greedy": greedy, "bf16_errors": errors}) + "\n")
    save_file({name: value.detach().contiguous() for name, value in values.items()}, folder / "golden.safetensors")


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    torch.set_num_threads(1)
    for seed, (name, config) in enumerate(SHAPES.items()):
        golden(HERE / name, config, seed)
    size = sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file())
    print(f"{len(SHAPES)} shapes, {size / 2**10:.0f} KiB under {HERE}")


if __name__ == "__main__":
    main()
