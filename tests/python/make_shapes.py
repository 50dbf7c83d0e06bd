"""Writes random models of every family with the tokenizers of tests/golden/chat, for the comparisons of run_checks.sh.

    python tests/python/make_shapes.py FOLDER

Other shapes than the golden ones: wider, with vocabularies that are padded beyond the tokenizer's, windows shorter than
the records. Drawn wide, so that attention is sharp and soft-caps bite.
"""

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen2Config

CHAT = Path(__file__).resolve().parent.parent / "golden" / "chat"


def shape(heads, kv_heads, layers, d, rope=None, **more):
    return {
        "vocab_size": 512, "hidden_size": d, "intermediate_size": 2 * d + 8, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0} | (rope or {}),
    } | more  # fmt: skip


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip

# The tokenizer's name comes first.
SHAPES = {
    "llama31": LlamaConfig(**shape(8, 2, 3, 48, LLAMA3, head_dim=16, tie_word_embeddings=False, rms_norm_eps=1e-5)),
    "smollm2": LlamaConfig(**shape(9, 3, 2, 36, {"rope_theta": 100000.0}, tie_word_embeddings=True)),
    "qwen25": Qwen2Config(**shape(7, 1, 3, 56, {"rope_theta": 1e6}, tie_word_embeddings=False)),
    "qwen25-window": Qwen2Config(
        **shape(4, 2, 4, 32, tie_word_embeddings=True),
        use_sliding_window=True, sliding_window=11, max_window_layers=2,
    ),
    "gemma2": Gemma2Config(
        **shape(4, 2, 4, 40, head_dim=12, query_pre_attn_scalar=20, sliding_window=9),
        attn_logit_softcapping=5.0, final_logit_softcapping=4.0,
    ),
}  # fmt: skip


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    for seed, (name, config) in enumerate(SHAPES.items()):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter, weight in model.named_parameters():
                if "norm" in parameter:
                    weight.copy_((0.0 if config.model_type == "gemma2" else 1.0) + 0.2 * torch.randn(weight.shape))
                else:
                    weight.normal_(0.0, 0.2)
        folder = Path(sys.argv[1]) / name
        shutil.copytree(CHAT / name.split("-")[0], folder)
        model.save_pretrained(folder)


if __name__ == "__main__":
    main()
