"""What the checks with the official client share: a mock of their own, with a small rule file."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator

RULES = """
default = "COMPLIANT"
correction = "A kind reply to: {prompt}"
[[rule]]
pattern = "bad"
applies_to = "response"
verdict = "NON-COMPLIANT"
"""
QUESTION = "Does the response comply with the policy? Answer with exactly one word: COMPLIANT or NON-COMPLIANT."


@contextlib.contextmanager
def served(program: str, options: list[str], plan: str) -> Iterator[str]:
    """Starts the mock on a free port, wanting the key `right-key`, and gives its address."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name, text in [("rules", RULES), ("plan", plan)]:
            paths[name] = os.path.join(folder, f"{name}.toml")
            with open(paths[name], "w", encoding="utf-8") as file:
                file.write(text)
        command = [program, "mock", "--listen", "127.0.0.1:0", "--rules", paths["rules"], "--require-key"]
        command += ["--fault-plan", paths["plan"], *options]
        environment = os.environ | {"OPENAI_API_KEY": "right-key"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as mock:
            try:
                yield mock.stdout.readline().strip().removeprefix("listening on ")
            finally:
                mock.terminate()
