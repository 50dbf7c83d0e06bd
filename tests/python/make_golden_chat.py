"""Writes tests/golden/chat: how Llama 3.1, Qwen2.5, Gemma 2 and SmolLM2 turn conversations into tokens.

    python tests/python/make_golden_chat.py            (transformers 5.23.0, tokenizers 0.23.3)

The released tokenizers are not to be had without the hub, so each folder has a small one of the same build: normaliser,
splitting, byte level or byte fallback, special tokens, what is put before a text. Only vocabulary and merges are learnt
from a few sentences. The templates (chat_templates/) are the released ones written down from memory, for the same reason.
golden.json: per conversation and response, what transformers renders and tokenises, with and without the generation
prompt; which of the tokens are the response's and the one that closes it, found from the bytes that each stands for;
what the tokenizer makes of the rendered text when it adds its own special tokens, begin-of-text twice.
"""

import json
import shutil
import unicodedata
from pathlib import Path

from golden_text import CORPUS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

TEMPLATES = Path(__file__).resolve().parent / "chat_templates"
HERE = Path(__file__).resolve().parent.parent / "golden" / "chat"

# Llama 3's pattern; Qwen2's takes digits one by one.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(special, pre, normalizer=None, bos=None, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(pre)
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, special, pre_tokenizers.ByteLevel.alphabet())
    steps = [processors.ByteLevel(trim_offsets=True)]
    if bos:
        steps.append(begin(tokenizer, bos))
    tokenizer.post_processor = processors.Sequence(steps)
    return tokenizer


def begin(tokenizer, bos):
    return processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])


def train(tokenizer, special, alphabet):
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)


def split_by(digits):
    split = pre_tokenizers.Split(Regex(PATTERN.replace("DIGITS", digits)), behavior="isolated")
    return [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


def llama31():
    special = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag"]
    special = [f"<|{name}|>" for name in special]
    return byte_level(special, split_by("{1,3}"), bos=special[0], ignore_merges=True)


def qwen25():
    return byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], split_by(""), normalizer=normalizers.NFC())


def smollm2():
    pre = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], pre)


def gemma2():
    """SentencePiece's BPE as converted: blanks are marked, unknown characters fall back to bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    fallbacks = [f"<0x{byte:02X}>" for byte in range(256)]
    train(tokenizer, special + fallbacks, ["\n", *map(chr, range(33, 127))])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = begin(tokenizer, "<bos>")
    # Bytes are part of the vocabulary and never found in a text; the real one has runs of newlines as added tokens.
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    tokenizer.add_tokens([AddedToken("\n" * n, normalized=False, special=False) for n in (2, 3)])
    return tokenizer


# Build, class and special tokens as the released tokenizer_config.json names them.
MODELS = {
    "llama31": (llama31, {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
    }),
    "qwen25": (qwen25, {
        "tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "add_prefix_space": False, "bos_token": None,
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None,
    }),
    "gemma2": (gemma2, {
        "tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "add_eos_token": False, "bos_token": "<bos>",
        "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>", "padding_side": "left",
    }),
    "smollm2": (smollm2, {
        "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>",
    }),
}  # fmt: skip


def turns(*texts, system=None):
    roles = [{"role": "system", "content": system}] if system is not None else []
    return roles + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


CASES = [
    (turns("How do I keep basil fresh?"), "Cut the stems and put them into a glass of water."),
    (turns("How do I keep basil fresh?", system="Answer in one sentence."), "Cut the stems."),
    (turns("Tea?", system=""), "Yes."),
    (turns("Tea or coffee?", "Tea.", "How long should it stand?"), "Four minutes."),
    (turns("Tea or coffee?", "Tea.", "How long?", system="You are a helpful gardener."), "Four minutes, 12345 or 3.5?"),
    (turns("  Name two herbs.\n"), "\n\nbasil\n\n\nand  sage \n"),
    (turns("Grüße, wie geht's? It's WE'LL ok"), "Süß — 🌿🌿 ok; I'd say 1 000 000"),
    # Decomposed letters, which one of the tokenizers composes.
    (turns("Cafe\u0301?"), "No\u0308 cafe\u0301, thanks"),
    (turns("What closes a turn?"), "The mark <|im_end|> or <|eot_id|> or <end_of_turn> does."),
    (turns("Say: Yes. Only that: Yes."), "Yes."),
    (turns("Tea?", "Yes.", system=None)[::-1], "The wrong order."),
    (turns("x" * 3) + [{"role": "tool", "content": "12 degrees"}], "Cold."),
]


def printable_bytes():
    """GPT-2's printable stand-ins for bytes, inverted."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in printable}
    return table | {chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in printable)}


BYTES = printable_bytes()


def bytes_of(tokenizer, name, i):
    token = tokenizer.convert_ids_to_tokens(i)
    if i in tokenizer.added_tokens_decoder:
        return token.encode()
    if name == "gemma2":
        return bytes([int(token[3:5], 16)]) if token.startswith("<0x") else token.replace("▁", " ").encode()
    return bytes(BYTES[c] for c in token)


def scored(tokenizer, name, ids, header, text, response):
    """Places of the response's tokens and of the one special token that closes it."""
    form = (lambda s: unicodedata.normalize("NFC", s)) if name == "qwen25" else (lambda s: s)
    written = response if text[len(header) :].startswith(response) else response.strip()
    assert text.startswith(header + written)
    low, high = len(form(header).encode()), len(form(header + written).encode())
    at, inside = 0, []
    for k, i in enumerate(ids):
        end = at + len(bytes_of(tokenizer, name, i))
        if at < high and end > low:
            inside.append(k)
        at = end
    assert at == len(form(text).encode())
    closer = inside[-1] + 1
    assert ids[closer] in tokenizer.all_special_ids or ids[closer] in tokenizer.added_tokens_decoder
    return [*inside, closer]


def golden(tokenizer, name, conversation, response):
    case = {"prompt": conversation, "response": response}
    whole = conversation + [{"role": "assistant", "content": response}]
    try:
        header = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        text = tokenizer.apply_chat_template(whole, tokenize=False)
    except Exception as error:
        return case | {"error": str(error)}
    ids = tokenizer.apply_chat_template(whole, tokenize=True, return_dict=False)
    case |= {"rendered_prompt": header, "rendered": text, "tokens": ids}
    case["prompt_tokens"] = tokenizer.apply_chat_template(
        conversation, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    case["scored"] = scored(tokenizer, name, ids, header, text, response)
    case["with_special_tokens"] = tokenizer(text).input_ids
    return case


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    result = {}
    for name, (build, config) in MODELS.items():
        folder = HERE / name
        folder.mkdir(parents=True)
        raw = build()
        raw.save(str(folder / "tokenizer.json"), pretty=False)
        template = (TEMPLATES / f"{name}.jinja").read_text()
        # Where released folders have it.
        written = config | {"chat_template": template, "clean_up_tokenization_spaces": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        result[name] = [golden(tokenizer, name, *case) for case in CASES]
        for case in result[name]:
            if "tokens" in case and case["tokens"] != raw.encode(case["rendered"], add_special_tokens=False).ids:
                print(f"{name}: {type(tokenizer).__name__} does not follow tokenizer.json: {case['rendered']!r}")
        errors = [case["error"] for case in result[name] if "error" in case]
        print(name, type(tokenizer).__name__, len(tokenizer), len(result[name]), "cases; refused:", errors)
    lines = {name: cases for name, cases in result.items()}
    (HERE / "golden.json").write_text(json.dumps(lines, ensure_ascii=False).replace('{"prompt"', '\n{"prompt"') + "\n")


if __name__ == "__main__":
    main()
