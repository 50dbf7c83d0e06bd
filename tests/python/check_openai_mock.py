"""Talks to `oracle-service mock` with the official client.

    check_openai_mock.py PROGRAM

Starts the mock on a free port with a small rule file and checks what the client makes of its answers, its errors and its
model list, synchronously and asynchronously; then compares the mock's bill with the usage the client was told.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import urllib.request

import openai

RULES = """
default = "COMPLIANT"
correction = "A kind reply to: {prompt}"
[[rule]]
pattern = "bad"
applies_to = "response"
verdict = "NON-COMPLIANT"
"""
QUESTION = "Does the response comply with the policy? Answer with exactly one word: COMPLIANT or NON-COMPLIANT."


def messages(response: str) -> list[dict[str, str]]:
    user = f"Prompt: how?\n\nResponse: {response}\n\n{QUESTION}"
    return [{"role": "system", "content": "Be kind."}, {"role": "user", "content": user}]


def main(program: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rules = os.path.join(folder, "rules.toml")
        with open(rules, "w", encoding="utf-8") as file:
            file.write(RULES)
        command = [program, "mock", "--listen", "127.0.0.1:0", "--rules", rules, "--require-key"]
        environment = os.environ | {"OPENAI_API_KEY": "right-key"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as mock:
            try:
                url = mock.stdout.readline().strip().removeprefix("listening on ")
                check(url)
            finally:
                mock.terminate()


def check(url: str) -> None:
    client = openai.OpenAI(api_key="right-key", base_url=f"{url}/v1", max_retries=0)
    assert [model.id for model in client.models.list()] == ["mock-oracle"]

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

    stranger = openai.OpenAI(api_key="wrong-key", base_url=f"{url}/v1", max_retries=0)
    for client_, model, error in [
        (stranger, "mock-oracle", openai.AuthenticationError),
        (client, "gpt-9", openai.NotFoundError),
    ]:
        try:
            client_.chat.completions.create(model=model, messages=messages("good"))
            raise AssertionError(f"{error} was expected")
        except error as raised:
            assert raised.body["message"] and raised.code, raised.body
    try:
        client.chat.completions.create(model="mock-oracle", messages=[])
        raise AssertionError("a bad request was expected")
    except openai.BadRequestError as raised:
        assert "messages" in raised.message

    with urllib.request.urlopen(f"{url}/bill") as reply:
        bill = json.load(reply)
    assert bill["calls"] == 22 and bill["prompt_tokens"] + bill["completion_tokens"] == told, bill
    print(f"the official client (openai {openai.__version__}) understands the mock; the bill is what it was told")


if __name__ == "__main__":
    main(sys.argv[1])
