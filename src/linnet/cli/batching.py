# SPDX-License-Identifier: Apache-2.0
"""``linnet batch``: a file of requests in OpenAI's batch form, answered without a server."""

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from linnet.child_process import child_environment, start_child
from linnet.cli import options
from linnet.cli.declaring import Given, offers
from linnet.cli.serve_options import BATCH
from linnet.cli.serving import open_served, served_names
from linnet.errors import ConfigError
from linnet.logs import begin_log
from linnet.settings import ENGINE_MODULE, RequestLimits, ServeConfig


@offers(given=BATCH)
def batch(
    model: options.Model,
    requests: Annotated[
        Path,
        typer.Argument(
            metavar="IN.jsonl", help="File with one request a line: custom_id, method, url, body.", show_default=False
        ),
    ],
    *,
    output: Annotated[
        Path,
        options.option("--output", "-o", metavar="OUT.jsonl", help="File for the answers.", show_default=False),
    ],
    given: Given,
) -> None:
    """Answer a file of requests in OpenAI's batch form, as a server would.

    Answers are written as they come, to OUT.jsonl.partial; whatever ends the command, the same command goes on from
    there. At the end they are in OUT.jsonl in the order of the requests. A line that is no request is answered with an
    error.

    [dim]Examples[/]

      linnet batch ./my-model IN.jsonl -o OUT.jsonl
      linnet batch ./my-model IN.jsonl -o OUT.jsonl --served-model-name gpt-4o-mini --max-num-seqs 128
    """
    from linnet.api import begin_opening
    from linnet.formats import resolve_model
    from linnet.serve import Answers, BatchCounts, BatchInterrupted, Requests, run_batch

    begin_log()
    config = given.make(
        ServeConfig,
        names=given["names"] or served_names(model),
        limits=given.make(RequestLimits),
        ui=False,
        queue_prompt_tokens=1 << 26,
    )
    lines = Requests(requests, config.limits.body_bytes)
    if output.resolve() == requests.resolve():
        raise ConfigError(f"{output} is the file of the requests; give -o another name")
    from linnet.cli.terminal import stages

    with ExitStack() as stack:
        answers = stack.enter_context(Answers(output))
        began = len(answers)
        child = start_child(ENGINE_MODULE, child_environment(os.environ))
        stack.callback(child.kill)
        opening = options.opening(
            given, resolve_model(model, given["revision"]), given["policy"], given["kv_cache"], large_pages=True
        )
        served = open_served(opening, given, config, begin_opening(opening, child), stack)
        progress = stack.enter_context(stages())
        began_s = time.monotonic()

        def tell(counts: BatchCounts) -> None:
            rate = counts.new_tokens / max(time.monotonic() - began_s, 1e-6)
            progress.update(
                "requests", counts.done, counts.total, f"{counts.done:,} of {counts.total:,}; {rate:,.0f} tokens/s"
            )

        try:
            counts = run_batch(served, config, lines, answers, tell)
        except BatchInterrupted:
            progress.say(f"{len(answers):,} answers are in {answers.partial}; the same command goes on from there")
            raise KeyboardInterrupt from None
    print(_summary(counts, began, time.monotonic() - began_s, output))


def _summary(counts, began: int, seconds: float, output: Path) -> str:  # type: ignore[no-untyped-def]
    parts = [f"{counts.total:,} lines"]
    if began:
        parts.append(f"{began:,} answered before")
    parts.append(f"{counts.done - began - counts.refused - counts.bad:,} answered")
    parts += [f"{count:,} {word}" for count, word in ((counts.refused, "refused"), (counts.bad, "no request")) if count]
    tokens = f"{counts.prompt_tokens:,} prompt tokens, {counts.new_tokens:,} new ones in {seconds:,.1f} s"
    return f"{', '.join(parts)}; {tokens}; {output}"
