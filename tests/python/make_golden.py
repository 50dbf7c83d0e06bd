"""Writes tests/golden: tiny random Llama models, tokenizers, and the values transformers and PEFT give for them.

    python tests/python/make_golden.py            (torch 2.13.0, transformers 5.23.0, peft 0.21.2)

Masks, log-probabilities and impact scores are computed here in the plainest way, apart from the Rust code: tokens are
laid over the text by the bytes they stand for, reference mode is padded for real, and every score comes from explicit
per-sample gradients. Seeds are fixed; another run on the same versions gives the same files.
"""

import json
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from golden_text import CHATML, CORPUS, GOLD, LLAMA3, PROMPTS, RECORDS, TOKEN_CASES
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent.parent / "golden"
BETA = 0.3
MAX_LENGTH = 256


# --- tokenizers ------------------------------------------------------------------------------------------------------


def train_tokenizer(folder, special, template, bos, eos, pad, add_bos):
    """Byte-level BPE on a few sentences. Its post-processor trims offsets, as GPT-2's and SmolLM2's do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    steps = [processors.ByteLevel(trim_offsets=True)]
    if add_bos:
        steps.append(processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]))
    tokenizer.post_processor = processors.Sequence(steps)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)
    fast.chat_template = template
    fast.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def byte_of():
    """GPT-2's printable stand-ins for bytes, inverted."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in printable}
    table.update({chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in printable)})
    return table


BYTES = byte_of()


def byte_spans(tokenizer, ids):
    """The bytes of the text that each token stands for; specials stand for themselves."""
    spans, at = [], 0
    special = set(tokenizer.added_tokens_decoder)
    for i in ids:
        token = tokenizer.convert_ids_to_tokens(i)
        size = len(token.encode()) if i in special else len(bytes(BYTES[c] for c in token))
        spans.append((at, at + size))
        at += size
    return spans, at


# --- masks -----------------------------------------------------------------------------------------------------------


def turns_of(prompt):
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def prompt_text(prompt):
    """A prompt as one string, for formats without roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def fallback(prompt):
    return "### Question: " + prompt_text(prompt) + "\n ### Answer: "


def render(tokenizer, turns, generation=False):
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation)


def exact(tokenizer, prompt, response, max_length=MAX_LENGTH):
    """Appendix C of the method's specification."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    turns = turns_of(prompt)
    if tokenizer.chat_template:
        header = render(tokenizer, turns, generation=True)
        text = render(tokenizer, turns + [{"role": "assistant", "content": response}])
        assert text.startswith(header)
        written = response if text[len(header) :].startswith(response) else response.strip()
        assert text[len(header) :].startswith(written)
        ids = tokenizer(text, add_special_tokens=False).input_ids
    else:
        header, written = fallback(prompt), response
        text = header + written
        ids = tokenizer(text, add_special_tokens=False).input_ids
    spans, size = byte_spans(tokenizer, ids)
    assert size == len(text.encode())
    low, high = len(header.encode()), len((header + written).encode())
    inside = [k for k, (a, b) in enumerate(spans) if a < high and b > low]
    first, end = inside[0], inside[-1] + 1
    before, answer = ids[:first], ids[first:end]
    if tokenizer.chat_template:
        closer = next((i for i in ids[end:] if i in tokenizer.added_tokens_decoder), None)
        assert closer == ids[end], "these templates close a turn at once"
        answer = answer + [closer]
    else:
        before = tokenizer("", add_special_tokens=True).input_ids + before
        answer = answer + [eos]
    room = max(1, max_length - len(answer))
    if len(before) > room:
        before = [bos] + before[len(before) - room + 1 :] if before[0] == bos else before[-room:]
    tokens = (before + answer)[:max_length]
    scored = list(range(len(before), len(tokens)))
    return {"tokens": tokens, "scored": scored, "kl": [t - 1 for t in scored], "prompt_len": len(before)}


def reference_labels(tokenizer, prompt, response, max_length=MAX_LENGTH):
    """Spec 3.1, padded to max_length on the right; None where the reference itself stops or labels nothing."""
    if tokenizer.chat_template:
        full = render(tokenizer, turns_of(prompt) + [{"role": "assistant", "content": response}])
        prefix = render(tokenizer, turns_of(prompt))
    else:
        prefix = fallback(prompt)
        full = prefix + response
    tokenizer.padding_side = "right"
    enc = tokenizer(full, truncation=True, max_length=max_length, padding="max_length")
    start = len(tokenizer(prefix).input_ids) - 1
    labels = [i if t >= start and m else -100 for t, (i, m) in enumerate(zip(enc.input_ids, enc.attention_mask))]
    if all(label == -100 for label in labels):
        return None
    return enc.input_ids, enc.attention_mask, labels, start


def reference(tokenizer, prompt, response, max_length=MAX_LENGTH):
    made = reference_labels(tokenizer, prompt, response, max_length)
    if made is None:
        return None
    ids, mask, labels, start = made
    kl = [t for t, label in enumerate(labels) if label != -100]
    return {"tokens": ids[: sum(mask)], "scored": [t for t in kl if t >= 1], "kl": kl, "prompt_len": start}


def concat(tokenizer, prompt, response):
    """Spec 3.3."""
    x = tokenizer(prompt_text(prompt), add_special_tokens=False).input_ids[:128]
    y = tokenizer(response, add_special_tokens=False).input_ids[: 512 - len(x)] + [tokenizer.eos_token_id]
    kl = list(range(len(x), len(x) + len(y)))
    return {"tokens": x + y, "scored": [t for t in kl if t >= 1], "kl": kl, "prompt_len": len(x)}


def generation_prompt(tokenizer, prompt):
    """What exact mode generates from: without a template, all that stands before a response's first token."""
    if tokenizer.chat_template:
        return tokenizer(render(tokenizer, turns_of(prompt), generation=True), add_special_tokens=False).input_ids
    made = exact(tokenizer, prompt, "a", 10_000)
    return made["tokens"][: made["prompt_len"]]


def token_golden(tokenizer):
    cases = []
    for prompt, response in TOKEN_CASES:
        case = {"prompt": prompt, "response": response, "generation_prompt": generation_prompt(tokenizer, prompt)}
        if tokenizer.chat_template:
            case["rendered"] = render(tokenizer, turns_of(prompt) + [{"role": "assistant", "content": response}])
            case["rendered_prompt"] = render(tokenizer, turns_of(prompt), generation=True)
        case["sequences"] = [
            {
                "max_length": n,
                "exact": exact(tokenizer, prompt, response, n),
                "reference": reference(tokenizer, prompt, response, n),
            }
            for n in (256, 40, 24, 9, 2)
        ]
        case["gold_reference"] = concat(tokenizer, prompt, response)
        cases.append(case)
    return cases


# --- models ----------------------------------------------------------------------------------------------------------

SHAPE = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    intermediate_size=64, max_position_embeddings=512, rms_norm_eps=1e-5, initializer_range=0.15,
)  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def make_model(folder, tokenizer, tied, rope, shard_size, old_spelling):
    torch.manual_seed(7 if tied else 9)  # chosen so that no greedy step is a near-tie
    config = LlamaConfig(
        vocab_size=len(tokenizer), tie_word_embeddings=tied, rope_parameters=rope,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        dtype="float32", attn_implementation="eager", **SHAPE,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    model.save_pretrained(folder, max_shard_size=shard_size)
    tokenizer.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    rope = dict(written["rope_parameters"])
    old = {key: value for key, value in written.items() if key not in ("rope_parameters", "dtype")}
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    old["torch_dtype"] = written["dtype"]
    if old_spelling:
        (folder / "config.json").write_text(json.dumps(old, indent=2) + "\n")
    else:
        (folder / "config-old-spelling.json").write_text(json.dumps(old, indent=2) + "\n")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def short(values):
    """Floats with nine significant digits: enough for any 32-bit one."""
    return [float(f"{float(v):.9g}") for v in values]


def logits_of(model, tokens):
    return model(torch.tensor([tokens])).logits[0].float()


def token_logps(logits, tokens, scored):
    table = F.log_softmax(logits.float(), -1)
    return torch.stack([table[t - 1, tokens[t]] for t in scored])


def exact_logp(model, tokenizer, prompt, response):
    made = exact(tokenizer, prompt, response)
    return token_logps(logits_of(model, made["tokens"]), made["tokens"], made["scored"]).sum()


@torch.no_grad()
def side_golden(model, tokenizer, prompt, response):
    made = exact(tokenizer, prompt, response)
    made["logps"] = short(token_logps(logits_of(model, made["tokens"]), made["tokens"], made["scored"]))
    made["sum"] = sum(made["logps"])
    ids, mask, labels, _ = reference_labels(tokenizer, prompt, response)
    logits = model(torch.tensor([ids]), attention_mask=torch.tensor([mask])).logits[0]
    by_reference = reference(tokenizer, prompt, response)
    logps = [F.log_softmax(logits[t - 1].float(), -1)[labels[t]] for t in range(1, len(ids)) if labels[t] != -100]
    by_reference["logps"] = short(logps)
    by_reference["sum"] = sum(by_reference["logps"])
    return {"response": response, "exact": made, "reference": by_reference}


@torch.no_grad()
def rows_golden(model, tokens):
    """Whole rows of logits at the first, a middle and the last position."""
    logits = logits_of(model, tokens)
    positions = [0, len(tokens) // 2, len(tokens) - 1]
    return {"tokens": tokens, "positions": positions, "logits": [short(logits[t]) for t in positions]}


@torch.no_grad()
def greedy_golden(model, tokenizer, new_tokens=24):
    prompts = [generation_prompt(tokenizer, prompt) for prompt in PROMPTS]
    width, pad, eos = max(map(len, prompts)), tokenizer.pad_token_id, tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens, use_cache=True,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    rows, margin = [], float("inf")
    for row, (prompt, tail) in enumerate(zip(prompts, out.sequences[:, width:].tolist())):
        generated = tail[: tail.index(eos)] if eos in tail else tail
        for step in range(len(generated)):
            top = out.logits[step][row].float().topk(2).values
            margin = min(margin, float(top[0] - top[1]))
        rows.append({"prompt": PROMPTS[row], "prompt_tokens": prompt, "generated": generated, "stopped": eos in tail})
    assert margin > 1e-3, "a near-tie would make greedy tokens a matter of rounding"
    return {"new_tokens": new_tokens, "smallest_margin": margin, "rows": rows}


# --- adapters, gradients, scores -------------------------------------------------------------------------------------


def make_adapters(base, folder):
    """One adapter at its start (B = 0), one with a random B, both as PEFT saves them."""
    torch.manual_seed(11)
    settings = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base, settings)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            torch.nn.init.uniform_(parameter, -0.3, 0.3)
    model.save_pretrained(folder / "adapter-start")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.05)
    model.save_pretrained(folder / "adapter")
    for adapter in ("adapter-start", "adapter"):
        (folder / adapter / "README.md").unlink(missing_ok=True)
        settings = folder / adapter / "adapter_config.json"
        named = json.loads(settings.read_text())
        named |= {"base_model_name_or_path": None, "target_modules": sorted(named["target_modules"])}
        settings.write_text(json.dumps(named, indent=2, sort_keys=True) + "\n")
    model.unload()


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradient(model, loss):
    """The gradient of one scalar with respect to every adapter matrix, flattened in parameter order."""
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(trainable(model).values()))])


def ratio(model, tokenizer, prompt, response):
    with torch.no_grad(), model.disable_adapter():
        start = exact_logp(model, tokenizer, prompt, response)
    return exact_logp(model, tokenizer, prompt, response) - start


def preference_loss(model, tokenizer, prompt, preferred, other):
    delta = ratio(model, tokenizer, prompt, preferred) - ratio(model, tokenizer, prompt, other)
    return -F.logsigmoid(BETA * delta)


def sample_loss(model, tokenizer, record):
    if record["category"] == "INVERT":
        return preference_loss(model, tokenizer, record["prompt"], record["chosen"], record["rejected"])
    parts = [ratio(model, tokenizer, record["prompt"], record[key]) for key in ("chosen", "rejected")]
    return -F.logsigmoid(-BETA * parts[0]) - F.logsigmoid(-BETA * parts[1])


def scores_golden(base, tokenizer, adapter):
    model = PeftModel.from_pretrained(base, adapter, is_trainable=True).eval()
    whole = sum(gradient(model, preference_loss(model, tokenizer, *pair)) for pair in GOLD)
    raw = [float(whole @ gradient(model, sample_loss(model, tokenizer, record))) for record in RECORDS]
    model.unload()
    return raw


def main():
    torch.set_num_threads(1)
    tiny, templates = HERE / "tiny-llama", HERE / "templates"
    for folder in (tiny, templates):
        shutil.rmtree(folder, ignore_errors=True)

    chatml = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    llama3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizers = {
        "chatml": train_tokenizer(templates / "chatml", chatml, CHATML, "<|im_start|>", "<|im_end|>", "<|im_end|>", False),
        "llama3": train_tokenizer(templates / "llama3", llama3, LLAMA3, llama3[0], "<|eot_id|>", llama3[1], True),
        "plain": train_tokenizer(templates / "plain", ["<s>", "</s>"], None, "<s>", "</s>", "</s>", True),
    }
    golden = {name: token_golden(tokenizer) for name, tokenizer in tokenizers.items()}
    write(templates / "golden.json", golden)

    tokenizer = tokenizers["chatml"]
    plain_rope = {"rope_type": "default", "rope_theta": 10000.0}
    golden = {"beta": BETA, "max_length": MAX_LENGTH, "records": RECORDS, "models": {}}
    golden["gold"] = [dict(zip(("prompt", "chosen", "rejected"), pair)) for pair in GOLD]
    for name, tied, rope, shard in (("tied", True, plain_rope, "10MB"), ("untied", False, LLAMA3_ROPE, "150KB")):
        model = make_model(tiny / name, tokenizer, tied, rope, shard, old_spelling=tied)
        pairs = [
            {
                "prompt": record["prompt"],
                "chosen": side_golden(model, tokenizer, record["prompt"], record["chosen"]),
                "rejected": side_golden(model, tokenizer, record["prompt"], record["rejected"]),
            }
            for record in RECORDS[:4]
        ]
        tokens = pairs[0]["chosen"]["exact"]["tokens"]
        half = AutoModelForCausalLM.from_pretrained(tiny / name, dtype=torch.bfloat16, attn_implementation="eager").eval()
        golden["models"][name] = {
            "pairs": pairs,
            "logits": rows_golden(model, tokens),
            "logits_bf16": rows_golden(half, tokens),
            "greedy": greedy_golden(model, tokenizer),
        }
        if not tied:
            continue
        make_adapters(model, tiny)
        model = AutoModelForCausalLM.from_pretrained(tiny / name, dtype=torch.float32, attn_implementation="eager").eval()
        adapted = PeftModel.from_pretrained(model, tiny / "adapter", is_trainable=True).eval()
        golden["adapter"] = {"model": name, "logits": rows_golden(adapted, tokens)}
        adapted.zero_grad()
        total = exact_logp(adapted, tokenizer, RECORDS[0]["prompt"], RECORDS[0]["chosen"])
        total.backward()
        golden["adapter"]["sum"] = total.item()
        named = {key.replace(".default", ""): p.grad.contiguous() for key, p in trainable(adapted).items()}
        save_file(named, tiny / "gradients.safetensors")
        adapted.unload()
        golden["scores"] = {
            "model": name,
            "adapter-start": scores_golden(model, tokenizer, tiny / "adapter-start"),
            "adapter": scores_golden(model, tokenizer, tiny / "adapter"),
        }
    write(tiny / "golden.json", golden)
    size = sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file())
    assert size < 1.5 * 2**20, size
    print(f"{size / 2**10:.0f} KiB under {HERE}")


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace('{"prompt"', '\n{"prompt"') + "\n")


if __name__ == "__main__":
    main()
