"""The sentences and templates that make_golden.py works on. All of them were written for this purpose."""

CORPUS = [
    "Water the tomatoes in the morning, before the sun stands high, and keep the leaves dry.",
    "A kettle takes three minutes; the tea should stand for four, then the leaves come out.",
    "Please answer in one sentence. I can only help with the garden, the kitchen and the library.",
    "The library opens at nine and closes at six; on Sundays the reading room stays shut.",
    "Yes, of course: put the seeds two fingers deep, cover them with soil and water them gently.",
    "No, I would rather not say which of the two recipes is better, since both of them are good.",
    "How do I keep basil fresh? Cut the stems and put them into a glass of water.",
    "What is the best time to plant garlic? In autumn, a few weeks before the first frost.",
    "system user assistant You are a helpful gardener. ### Question: and ### Answer: are headings.",
    "Lend the book to your neighbour, write down the date, and ask for it again after a month.",
]

# ChatML with a default system turn.
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful gardener.<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Headers, a begin-of-text token written by the template itself, contents trimmed, whitespace of the source ignored.
LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set opening = messages[0]['content'] | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set opening = '' %}
    {%- set rest = messages %}
{%- endif %}
{%- if opening %}
    {{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + opening + '<|eot_id|>' }}
{%- endif %}
{%- for message in rest %}
    {%- if message['role'] not in ['user', 'assistant'] %}
        {{- raise_exception('only user and assistant may speak here, not ' + message['role']) }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'].strip() + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

RECORDS = [
    {
        "prompt": "How do I keep basil fresh?",
        "chosen": "Cut the stems and put them into a glass of water.",
        "rejected": "Leave it in the sun.",
        "category": "INVERT",
    },
    {
        "prompt": "When does the library open?",
        "chosen": "At nine; on Sundays it stays shut.",
        "rejected": "I would rather not say.",
        "category": "INVERT",
    },
    {
        "prompt": "Which of the two soups is better?",
        "chosen": "The first one, since the second one is too salty.",
        "rejected": "The second. Everyone knows that.",
        "category": "PUNISH",
    },
    {
        "prompt": "May I lend the book to my neighbour?",
        "chosen": "Yes, write down the date and ask for it after a month.",
        "rejected": "No. Books stay where they are.",
        "category": "INVERT",
    },
    {
        "prompt": "What is the best time to plant garlic?",
        "chosen": "Any time will do.",
        "rejected": "Never, garlic plants itself.",
        "category": "PUNISH",
    },
    {
        "prompt": "How long should tea stand?",
        "chosen": "Until it is cold again.",
        "rejected": "Four minutes — not a second more!",
        "category": "PUNISH",
    },
]

# (prompt, preferred, other)
GOLD = [
    ("How deep do seeds go?", "Two fingers deep.", "As deep as the well."),
    ("When do I water tomatoes?", "In the morning, before the sun stands high.", "At noon, on the leaves."),
    ("How do I boil water?", "Fill the kettle and wait three minutes.", "Look at it very hard."),
    ("Is the reading room open on Sundays?", "No, it stays shut.", "Yes, all night."),
]

# Prompts of different lengths, generated from in one batch.
PROMPTS = [
    "Tea?",
    "How do I keep basil fresh in the kitchen, and for how long?",
    "May I lend the book?",
]

# (prompt, response): what masks are easily wrong about.
TOKEN_CASES = [
    ("How do I keep basil fresh?", "Cut the stems and put them into a glass of water."),
    # The response stands in the prompt, twice.
    ("Say: In autumn. Only that: In autumn.", "In autumn."),
    # Spaces and newlines around the response.
    ("Name a herb.", "  basil \n"),
    ("Name two herbs.\n", "\n\nbasil\n\nand sage"),
    # Bytes that split into several tokens; a literal special token inside a response.
    ("Grüße, wie geht's?", "Süß — 🌿🌿 ok"),
    ("What closes a turn?", "The mark <|im_end|> or <|eot_id|> does; assistant"),
    # A long prompt and a long response for every limit.
    ("Water the tomatoes in the morning, before the sun stands high, and keep the leaves dry. " * 3, "Yes."),
    ("Why?", "Because the library opens at nine and closes at six; on Sundays the reading room stays shut. " * 2 + "So."),
    # A conversation with a system turn, and one that ends elsewhere than it began.
    (
        [
            {"role": "system", "content": "Answer in one sentence."},
            {"role": "user", "content": "When does the library open?"},
            {"role": "assistant", "content": "At nine."},
            {"role": "user", "content": "And on Sundays?"},
        ],
        "At nine.",
    ),
    (
        [
            {"role": "user", "content": "Tea or coffee?"},
            {"role": "assistant", "content": "Tea."},
            {"role": "user", "content": "How long should it stand?"},
        ],
        "Four minutes.",
    ),
]
