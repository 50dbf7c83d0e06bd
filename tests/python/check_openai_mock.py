"""Talks to `oracle-service mock` with the official client.

    check_openai_mock.py PROGRAM

Starts the mock on a free port with a small rule file and checks what the client makes of its answers, its errors and its
model list, synchronously and asynchronously: log-probabilities, structured answers, cached prompts, refusals, limits; then
compares the mock's bill with the usage the client was told.
"""

import asyncio
import json
import math
import sys
import urllib.request

import openai

from openai_mock import QUESTION, served

# Requests are counted from the first that brings the right key.
PLAN = """
burst_s = 60
[[limits]]
rpm = 1000
tpm = 1000000
[[fault]]
request = 26
what = "refusal"
[[fault]]
request = 27
what = "429"
retry_after_s = 7
[[fault]]
request = 28
what = "quota"
[[fault]]
request = 29
what = "cut"
"""


def messages(response: str, policy: str = "Be kind.") -> list[dict[str, str]]:
    user = f"Prompt: how?\n\nResponse: {response}\n\n{QUESTION}"
    return [{"role": "system", "content": policy}, {"role": "user", "content": user}]


def check(url: str) -> None:
    client = openai.OpenAI(api_key="right-key", base_url=f"{url}/v1", max_retries=0)
    assert [model.id for model in client.models.list()] == ["mock-oracle"]
    assert client.models.retrieve("mock-oracle").owned_by == "mock"

    told = 0
    for response, expected in [("good", "COMPLIANT"), ("bad", "NON-COMPLIANT")]:
        answer = client.chat.completions.create(
            model="mock-oracle", messages=messages(response), temperature=0, seed=42, max_tokens=8
        )
        assert answer.choices[0].message.content == expected, answer
        assert answer.choices[0].finish_reason == "stop" and answer.object == "chat.completion"
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        told += answer.usage.total_tokens

    async def at_once() -> int:
        patient = openai.AsyncOpenAI(api_key="right-key", base_url=f"{url}/v1", max_retries=0)
        asked = [
            patient.chat.completions.create(model="mock-oracle", messages=messages(f"good {n}"), max_completion_tokens=8)
            for n in range(20)
        ]
        answers = await asyncio.gather(*asked)
        assert {answer.choices[0].message.content for answer in answers} == {"COMPLIANT"}
        return sum(answer.usage.total_tokens for answer in answers)

    told += asyncio.run(at_once())

    def ask(**options):
        return client.chat.completions.create(**({"model": "mock-oracle", "messages": messages("good")} | options))

    sure = ask(logprobs=True, top_logprobs=3)
    tokens = sure.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == "COMPLIANT"
    assert 0.9 < math.exp(tokens[0].logprob) < 1 and len(tokens[0].top_logprobs) == 3, tokens[0]
    schema = {
        "type": "object",
        "properties": {"verdict": {"type": "string", "enum": ["COMPLIANT", "NON-COMPLIANT"]}},
        "required": ["verdict"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}
    formed = ask(messages=messages("bad"), response_format=wanted)
    assert json.loads(formed.choices[0].message.content) == {"verdict": "NON-COMPLIANT"}, formed
    told += sure.usage.total_tokens + formed.usage.total_tokens

    policy = "Be kind. " * 1000
    cached = []
    answer = client.chat.completions.with_raw_response.create(model="mock-oracle", messages=messages("a", policy))
    assert answer.headers["x-ratelimit-limit-requests"] == "1000" and answer.headers["x-ratelimit-reset-tokens"]
    cached.append(answer.parse().usage)
    refusal = ask(messages=messages("b", policy))
    assert refusal.choices[0].message.content is None and refusal.choices[0].message.refusal, refusal
    cached.append(refusal.usage)
    assert [usage.prompt_tokens_details.cached_tokens for usage in cached] == [0, 2176], cached
    told += sum(usage.total_tokens for usage in cached)

    def refused(error: type[Exception], client_: openai.OpenAI = client, **options) -> openai.APIStatusError:
        try:
            client_.chat.completions.create(**({"model": "mock-oracle", "messages": messages("good")} | options))
        except error as raised:
            return raised
        raise AssertionError(f"{error} was expected")

    limited = refused(openai.RateLimitError)
    assert limited.code == "rate_limit_exceeded" and limited.response.headers["retry-after"] == "7"
    assert limited.response.headers["x-ratelimit-remaining-requests"]
    assert refused(openai.RateLimitError).code == "insufficient_quota"
    refused(openai.APIConnectionError)

    stranger = openai.OpenAI(api_key="wrong-key", base_url=f"{url}/v1", max_retries=0)
    for raised in [refused(openai.AuthenticationError, stranger), refused(openai.NotFoundError, model="gpt-9")]:
        assert raised.body["message"] and raised.code, raised.body
    assert "messages" in refused(openai.BadRequestError, messages=[]).message

    with urllib.request.urlopen(f"{url}/bill") as reply:
        bill = json.load(reply)
    assert bill["calls"] == 26 and bill["prompt_tokens"] + bill["completion_tokens"] == told, bill
    assert bill["cached_tokens"] == 2176 and bill["batch_calls"] == 0
    with urllib.request.urlopen(f"{url}/stats") as reply:
        stats = json.load(reply)
    assert stats["planned_failures"] == {"refusal": 1, "429": 1, "quota": 1, "cut": 1}, stats
    assert stats["rate_limited"] == 0 and stats["limits"]["requests"]["granted"] == 26, stats


if __name__ == "__main__":
    with served(sys.argv[1], [], PLAN) as address:
        check(address)
    print(f"the official client (openai {openai.__version__}) understands the mock; the bill is what it was told")
