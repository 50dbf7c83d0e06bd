"""Uses the files and batches of `oracle-service mock` with the official client.

    check_openai_batches.py PROGRAM

Uploads, creates, polls, reads output and error files, lists, cancels; with lines that fail, are missing or come twice, a
batch that expires half way and one that does not pass its validation; and the limits of a batch's input.
"""

import io
import json
import os
import sys
import time
import urllib.request

import openai

from openai_mock import QUESTION, served

# The mock's time runs ten times as fast, and the window of 24 hours is one minute. What is cancelled would halt anyway, so
# that a slow machine does not see it end first.
PLAN = """
seed = 1
[batches]
validate_s = 1
run_s = 8
finalize_s = 1
window_s = 60
cancel_s = 1
[[fault]]
of = "batch"
request = 2
what = "expired"
[[fault]]
of = "batch"
request = 5
what = "expired"
[[fault]]
of = "batch"
request = 6
what = "queue-full"
[[fault]]
of = "line"
request = 3
what = "missing"
[[fault]]
of = "line"
request = 4
what = "duplicate"
[[fault]]
of = "line"
request = 5
what = "500"
"""
SPEED = "10"


def line(name: str, response: str = "good", **changed: object) -> dict[str, object]:
    user = f"Prompt: how?\n\nResponse: {response} {name}\n\n{QUESTION}"
    body = {"model": "mock-oracle", "max_tokens": 8, "messages": [{"role": "user", "content": user}]}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body} | changed


def upload(client: openai.OpenAI, lines: list[dict[str, object]]) -> str:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    file = client.files.create(file=("part.jsonl", text.encode()), purpose="batch")
    assert file.object == "file" and file.bytes == len(text) and file.purpose == "batch", file
    assert client.files.retrieve(file.id).filename == "part.jsonl"
    assert client.files.content(file.id).text == text
    return file.id


def create(client: openai.OpenAI, lines: list[dict[str, object]], part: str) -> openai.types.Batch:
    return client.batches.create(
        input_file_id=upload(client, lines),
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"job": "check", "part": part},
    )


def end(client: openai.OpenAI, batch: openai.types.Batch) -> tuple[openai.types.Batch, list[str]]:
    """Waits for a batch's end; returns it and the states it was seen in."""
    seen = [batch.status]
    begun = time.monotonic()
    while seen[-1] not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() - begun < 30, seen
        time.sleep(0.005)
        batch = client.batches.retrieve(batch.id)
        if batch.status != seen[-1]:
            seen.append(batch.status)
    return batch, seen


def read(client: openai.OpenAI, file: str | None) -> list[dict]:
    return [json.loads(text) for text in client.files.content(file).text.splitlines()] if file else []


def refused(error: type[Exception], call) -> openai.APIStatusError:
    try:
        call()
    except error as raised:
        return raised
    raise AssertionError(f"{error} was expected")


def check(client: openai.OpenAI, url: str) -> None:
    names = [f"item-{n}" for n in range(20)]
    whole, seen = end(client, create(client, [line(n, "bad" if n.endswith("7") else "good") for n in names], "1"))
    order = ["validating", "in_progress", "finalizing", "completed"]
    assert seen == [state for state in order if state in seen] and seen[-1] == "completed", seen
    assert whole.created_at <= whole.in_progress_at <= whole.completed_at <= whole.expires_at
    assert (whole.request_counts.total, whole.request_counts.completed, whole.request_counts.failed) == (20, 18, 1)
    output, errors = read(client, whole.output_file_id), read(client, whole.error_file_id)
    told = [reply["custom_id"] for reply in output]
    assert len(told) == 19 and len(set(told)) == 18, "one is missing, one comes twice, one is in the error file"
    assert told != sorted(told, key=names.index), "results come in any order"
    for reply in output:
        assert reply["error"] is None and reply["response"]["status_code"] == 200 and reply["response"]["request_id"]
        answer = openai.types.chat.ChatCompletion.model_validate(reply["response"]["body"])
        expected = "NON-COMPLIANT" if reply["custom_id"].endswith("7") else "COMPLIANT"
        assert answer.choices[0].message.content == expected, reply
    assert [reply["response"]["status_code"] for reply in errors] == [500]
    assert len({*names} - {*told} - {reply["custom_id"] for reply in errors}) == 1

    late, _ = end(client, create(client, [line(n) for n in names], "2"))
    assert late.status == "expired" and late.expired_at, late
    output, errors = read(client, late.output_file_id), read(client, late.error_file_id)
    assert len(output) == 10 and {reply["error"]["code"] for reply in errors} == {"batch_expired"} and len(errors) == 10

    wrong = [line("a"), line("a"), line("b", url="/v1/embeddings")]
    failed, _ = end(client, create(client, wrong, "3"))
    assert failed.status == "failed" and failed.output_file_id is None and failed.request_counts.total == 0
    assert [(e.line, e.code) for e in failed.errors.data] == [(2, "duplicate_custom_id"), (3, "mismatched_endpoint")]
    crowd = {"custom_id": "", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "mock-oracle"}}
    crowded, _ = end(client, create(client, [crowd | {"custom_id": str(n)} for n in range(50_001)], "4"))
    assert crowded.status == "failed" and "50000" in crowded.errors.data[0].message, crowded

    stopped = client.batches.cancel(create(client, [line(n) for n in names], "5").id)
    assert stopped.status in ("cancelling", "cancelled"), stopped
    stopped, _ = end(client, stopped)
    assert stopped.status == "cancelled" and stopped.cancelled_at
    assert len(read(client, stopped.error_file_id)) + len(read(client, stopped.output_file_id)) == 20
    refused(openai.ConflictError, lambda: client.batches.cancel(stopped.id))

    crowded_out, _ = end(client, create(client, [line("a")], "6"))
    assert [error.code for error in crowded_out.errors.data] == ["token_limit_exceeded"], crowded_out

    # A crash that lost a batch's id finds it by its metadata: newest first, page by page.
    assert [batch.metadata["part"] for batch in client.batches.list(limit=2)] == list("654321")
    page = client.batches.list(limit=2)
    assert page.has_more and page.data[1].id == stopped.id

    used = whole.input_file_id
    assert client.files.delete(used).deleted
    refused(openai.NotFoundError, lambda: client.files.retrieve(used))
    for changed, named in [
        ({"input_file_id": used}, "Cannot find file"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"long": "x" * 513}}, "metadata"),
    ]:
        right = {
            "input_file_id": late.input_file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        error = refused(openai.BadRequestError, lambda: client.batches.create(**(right | changed)))
        assert named in error.message or named == error.param, error.body
    refused(openai.NotFoundError, lambda: client.batches.retrieve("batch_none"))
    large = io.BytesIO(b" " * 200_000_001)
    error = refused(openai.BadRequestError, lambda: client.files.create(file=("l.jsonl", large), purpose="batch"))
    assert "too large" in error.message, error.body

    with urllib.request.urlopen(f"{url}/bill") as reply:
        bill = json.load(reply)
    paid = 18 + 10 + len(read(client, stopped.output_file_id))
    assert bill["calls"] == bill["batch_calls"] == paid, (paid, bill["calls"])
    half = (bill["prompt_tokens"] * 1.0 + bill["completion_tokens"] * 4.0) / 1e6 / 2
    assert abs(bill["cost_usd"] - half) < 1e-9, bill["cost_usd"]


if __name__ == "__main__":
    with served(sys.argv[1], ["--speed", SPEED], PLAN) as address:
        check(openai.OpenAI(api_key="right-key", base_url=f"{address}/v1", max_retries=0), address)
    print(f"the official client (openai {openai.__version__}) works off batches of the mock")
