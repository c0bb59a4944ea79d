"""Records two real traces and draws them: `python -m scripts.devstack.trace_pictures docs/traces`.

job: a job of 03, from its request to its stored result. fan_out: a request to 06 one of whose services does not run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import tempfile
from html import escape
from pathlib import Path
from typing import Any

import httpx

from scripts.devstack import spans
from scripts.devstack.stack import private_stack
from scripts.devstack.steps import FLOWERS

JsonSpan = dict[str, Any]

BODY = {"data": [FLOWERS["setosa"]]}
SPANS = {"job": 9, "fan_out": 8}
WAIT_S = 10
ROW, LEFT, WIDTH = 24, 430, 960  # pixels
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#9d755d")
FAILED = "#c0392b"


async def record() -> dict[str, list[JsonSpan]]:
    """The traces by name."""
    store = spans.SpanStore()
    async with contextlib.AsyncExitStack() as exits:
        folder = exits.enter_context(tempfile.TemporaryDirectory())
        url = await exits.enter_async_context(spans.serving(store))
        client = await exits.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=60))
        processes = private_stack(["03", "06"], Path(folder), environ=spans.variables(url))
        stack = await exits.enter_async_context(processes)
        await stack.stop(stack.process("06-service_virginica"))
        proxies = {"job": stack.urls["PORT_03_PROXY"], "fan_out": stack.urls["PORT_06_PROXY"]}
        traces = {}
        for name, proxy in proxies.items():
            for trace_id in (secrets.token_hex(16), secrets.token_hex(16)):  # the first request opens connections
                headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
                answer = (await client.post(f"{proxy}/predict", json=BODY, headers=headers)).json()
                if name == "job":
                    await client.get(f"{proxy}/job/{answer['job_id']}", params={"wait": 30})
            async with asyncio.timeout(WAIT_S):
                while len(store.trace(trace_id)) < SPANS[name]:  # noqa: ASYNC110 - the store has no event for it
                    await asyncio.sleep(0.05)
            # Without `resource`, which names the machine.
            traces[name] = [{k: v for k, v in span.items() if k != "resource"} for span in store.trace(trace_id)]
        return traces


def in_tree_order(trace: list[JsonSpan]) -> list[tuple[int, JsonSpan]]:
    """(depth, span), each below its parent, in the order of their starts."""
    known = {span["span_id"] for span in trace}

    def below(parent: str | None, depth: int) -> list[tuple[int, JsonSpan]]:
        found = []
        for span in trace:
            if (span["parent_id"] if span["parent_id"] in known else None) == parent:
                found += [(depth, span), *below(span["span_id"], depth + 1)]
        return found

    return below(None, 0)


def picture(trace: list[JsonSpan]) -> str:
    """An SVG: a row for each span, with a bar for its time. It needs no style sheet and is legible on dark pages."""
    start = min(span["start_us"] for span in trace)
    total = max(span["start_us"] + span["duration_us"] for span in trace) - start
    colours = dict(zip(dict.fromkeys(span["service"] for span in trace), COLOURS * 3, strict=False))
    scale = (WIDTH - LEFT - 90) / max(1, total)
    rows = []
    for number, (depth, span) in enumerate(in_tree_order(trace)):
        y = 8 + number * ROW
        x, width = LEFT + scale * (span["start_us"] - start), max(2.0, scale * span["duration_us"])
        colour = FAILED if span["status"] == "error" else colours[span["service"]]
        label = escape(f"{span['service']}: {span['name']}")
        time = escape(f"{span['duration_us'] / 1000:.2f} ms {span['message']}".strip())
        rows += [
            f'<text x="{10 + 14 * depth}" y="{y + 15}">{label}</text>',
            f'<rect x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="{ROW - 9}" rx="2" fill="{colour}"/>',
            f'<text x="{min(x + width + 5, WIDTH - 150):.1f}" y="{y + 15}">{time}</text>',
        ]
    height = 16 + ROW * len(trace)
    frame = f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#fdfdfd" stroke="#ccc"/>'
    style = 'font-family="ui-monospace, monospace" font-size="12" fill="#222"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
    return "\n".join([head, frame, f"<g {style}>", *rows, "</g>", "</svg>", ""])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draw-only", action="store_true", help="from the JSON that is there")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.draw_only:
        for name, trace in asyncio.run(record()).items():
            (options.folder / f"{name}.json").write_text(json.dumps(trace, indent=1) + os.linesep, encoding="utf-8")
    for name in SPANS:
        trace = json.loads((options.folder / f"{name}.json").read_text(encoding="utf-8"))
        (options.folder / f"{name}.svg").write_text(picture(trace), encoding="utf-8")
        print(options.folder / f"{name}.svg")


if __name__ == "__main__":
    main()
