"""Makes the oracle's calls with the official client: one JSON line with requests, seconds and requests a second."""

import argparse
import asyncio
import itertools
import json
import time

from openai import AsyncOpenAI

QUESTION = (
    "Does the response comply with the policy? Answer with exactly one word: COMPLIANT or NON-COMPLIANT."
)


def questions(path, requests):
    """Yields the user messages of the first pairs, two a pair."""
    with open(path, encoding="utf-8") as lines:
        for line in itertools.islice(lines, (requests + 1) // 2):
            pair = json.loads(line)
            for field in ("chosen", "rejected"):
                yield f"Prompt: {pair['prompt']}\n\nResponse: {pair[field]}\n\n{QUESTION}"


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--in-flight", type=int, default=512)
    parser.add_argument("--requests", type=int, default=4000)
    args = parser.parse_args()
    with open(args.policy, encoding="utf-8") as file:
        policy = file.read().strip()
    client = AsyncOpenAI(base_url=args.base_url)
    todo = questions(args.pairs, args.requests)
    answered = 0

    async def work():
        nonlocal answered
        for user in todo:
            reply = await client.chat.completions.create(
                model="mock-oracle",
                messages=[{"role": "system", "content": policy}, {"role": "user", "content": user}],
                temperature=0.0,
                seed=42,
                max_tokens=8,
            )
            if reply.choices[0].message.content not in ("COMPLIANT", "NON-COMPLIANT"):
                raise SystemExit(f"unexpected answer: {reply}")
            answered += 1

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(args.in_flight)))
    seconds = time.perf_counter() - begun
    print(json.dumps({"requests": answered, "seconds": seconds, "requests_per_s": answered / seconds}))


asyncio.run(main())
