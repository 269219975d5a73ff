"""The `litellm` package through the proxy, unchanged: after each call the counters hold what the provider tells.

LiteLLM pins versions of what we use too, so it lives in a Python of its own: the one beside the program `litellm`. It
takes seconds to import, so all calls are made by one process, one at a time (`litellm_calls.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from edge import policy, tokens
from llm_provider import TEXT, USED, USED_BY_A_TOOL, USED_BY_AN_EMBEDDING, Provider
from proxy_bench import Bench, bench, run

from fairvisor.clock import NS_PER_S, read_now

pytestmark = pytest.mark.needs("litellm")

STARTED_WITHIN_S = 180
CALLS: dict[str, tuple[Any, int]] = {
    **{
        f"{provider}-{how}": (TEXT, USED)
        for provider in ("openai", "anthropic", "gemini", "mistral")
        for how in ("sync", "sync-streamed", "async", "async-streamed")
    },
    **{f"{provider}-tool": ({"city": "Paris"}, USED_BY_A_TOOL) for provider in ("openai", "anthropic", "gemini")},
    "openai-embedding": ([0.5, 0.25], USED_BY_AN_EMBEDDING),
}  # fmt: skip


async def call_all(proxies: dict[str, Bench], process: asyncio.subprocess.Process) -> None:
    """Make the calls; each must give its answer and add its tokens to the counters, no more and no less."""
    assert process.stdin is not None and process.stdout is not None
    began_ns = read_now().mono_ns
    taken = dict.fromkeys(proxies.values(), 0)
    calls = dict.fromkeys(proxies.values(), 0)
    for name, (expected, used) in CALLS.items():
        proxy = proxies["mistral" if name.startswith("mistral") else ""]
        process.stdin.write(f"{name}\n".encode())
        line = await process.stdout.readline()
        assert line, f"{name} failed, see above"
        given = json.loads(line)
        assert (json.loads(given) if name.endswith("-tool") else given) == expected, name
        calls[proxy] += 1
        while proxy.metric("settlements_total", result="settled") < calls[proxy]:
            await asyncio.sleep(0.005)
        taken[proxy] += used
        in_minute, in_day = proxy.taken("llm", "tokens")
        minutes = (read_now().mono_ns - began_ns) // (60 * NS_PER_S) + 1  # one token comes back in each
        assert taken[proxy] - minutes <= in_minute <= taken[proxy] == in_day, name


def test_after_each_call_of_litellm_the_counters_hold_what_the_provider_tells() -> None:
    program = shutil.which("litellm")
    assert program is not None
    python = Path(program).with_name("python")
    script = Path(__file__).with_name("litellm_calls.py")
    environ = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

    async def test() -> None:
        limited = policy("llm", tokens("tokens", tpm=1, burst_tokens=100_000, tokens_per_day=100_000))
        provider = Provider()
        mistral = {"FAIRVISOR_BACKEND_URL": "https://api.mistral.ai"}
        async with (
            bench(limited, handler=provider.serve) as proxy,
            bench(limited, handler=provider.serve, environ=mistral) as for_mistral,
        ):
            urls = [f"http://127.0.0.1:{each.port}" for each in (proxy, for_mistral)]
            process = await asyncio.create_subprocess_exec(
                str(python), str(script), *urls,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environ,
            )  # fmt: skip
            try:
                await call_all({"": proxy, "mistral": for_mistral}, process)
            finally:
                process.kill()
                await process.wait()

    run(test(), STARTED_WITHIN_S)
