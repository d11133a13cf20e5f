# SPDX-License-Identifier: Apache-2.0
"""``linnet bench serve``: a trace, or a load that is drawn, against a server that speaks OpenAI's API."""

import asyncio
import json
import os
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linnet.cli.options import option
from linnet.cli.words import Command, Group
from linnet.errors import CapacityError, ConfigError, UnsupportedError
from linnet.extras import install_command

if TYPE_CHECKING:
    from linnet.cli.address import Address
    from linnet.cli.bench.client import Answer
    from linnet.cli.bench.traces import Wish

KEY_VARIABLE = "LINNET_API_KEY"

bench = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="Measure a server.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@bench.command("serve", cls=Command)
def serve(
    url: Annotated[str, typer.Argument(help="Where the server is, as http://localhost:8000.", show_default=False)],
    *,
    trace: Annotated[Path | None, option(help="Azure's .csv or Mooncake's .jsonl.", show_default="drawn load")] = None,
    requests: Annotated[int, option(min=1, metavar="N", help="Requests.")] = 100,
    rate: Annotated[
        float | None,
        option(
            min=1e-6, metavar="N", help="Requests a second on average.", show_default="the trace's; drawn: all at once"
        ),
    ] = None,
    concurrency: Annotated[
        int | None, option(min=1, metavar="N", help="Open requests at most.", show_default="no bound")
    ] = None,
    prompt_tokens: Annotated[
        int | None, option(min=1, metavar="N", help="Prompt tokens; of a trace: at most.", show_default="drawn: 512")
    ] = None,
    new_tokens: Annotated[
        int | None, option(min=1, metavar="N", help="New tokens; of a trace: at most.", show_default="drawn: 64")
    ] = None,
    shared_tokens: Annotated[
        int, option(min=0, metavar="N", help="Of a drawn load: tokens that all prompts begin with.")
    ] = 0,
    divisor: Annotated[int, option(min=1, metavar="N", help="Make a trace's prompts so many times shorter.")] = 1,
    model: Annotated[str | None, option(help="Name of the model.", show_default="the server's first")] = None,
    vocabulary: Annotated[
        int | None,
        option(min=2, metavar="N", help="Send token ids below it, in exact lengths.", show_default="send words"),
    ] = None,
    ignore_eos: Annotated[bool, option(help="Ask for answers of exactly that length, as vLLM spells it.")] = True,
    slo_ttft: Annotated[float, option(min=0, metavar="SECONDS", help="A good request's first token.")] = 1.0,
    slo_tpot: Annotated[float, option(min=0, metavar="SECONDS", help="A good request's further tokens.")] = 0.1,
    seed: Annotated[int, option(help="Of prompts and drawn arrivals.")] = 0,
    to_json: Annotated[
        Path | None, option("--json", metavar="FILE", help="Write figures and every request's times.")
    ] = None,
    png: Annotated[Path | None, option(metavar="FILE", help="Draw the times.", show_default=False)] = None,
) -> None:
    """Send a load to any server with OpenAI's completions and measure it.

    Times count from when a request was due. Goodput: requests a second that kept both --slo bounds.
    An API key comes from LINNET_API_KEY.

    [dim]Examples[/]

      linnet bench serve http://localhost:8000 --requests 200 --rate 4
      linnet bench serve http://localhost:8000 --trace AzureLLMInferenceTrace_code.csv --divisor 8 --png times.png
    """
    from linnet.cli.address import Address
    from linnet.cli.bench.client import Refused, models
    from linnet.cli.bench.figures import Objective, draw, figures
    from linnet.cli.bench.traces import Prompts

    if png is not None and find_spec("matplotlib") is None:
        raise UnsupportedError(f"--png draws a picture, which needs matplotlib: {install_command('report')}")
    address = Address.of(url, os.environ.get(KEY_VARIABLE) or None)
    wishes = _wishes(trace, requests, rate, prompt_tokens, new_tokens, shared_tokens, divisor, seed)
    try:
        names = asyncio.run(models(address))
    except (OSError, Refused, ValueError, KeyError) as error:
        raise CapacityError(f"{url} does not answer as a server of OpenAI's API: {error}") from None
    name = model or names[0]
    prompts = Prompts(seed, vocabulary)
    common = {"model": name, "temperature": 0, **({"ignore_eos": True} if ignore_eos else {})}
    bodies = [{**common, "prompt": prompts.make(one), "max_tokens": one.new_tokens} for one in wishes]
    answers = asyncio.run(_replay(address, wishes, bodies, concurrency))
    found = figures(answers, Objective(slo_ttft, slo_tpot))
    if found["failed"] < len(answers):
        _show(found, name, url)
    if to_json is not None:
        settings = {"url": url, "model": name, "trace": trace and trace.name, "rate": rate, "concurrency": concurrency}
        settings |= {"slo_ttft_s": slo_ttft, "slo_tpot_s": slo_tpot, "seed": seed, "divisor": divisor}
        whole = {"settings": settings, "figures": found, "requests": [vars(one) for one in answers]}
        to_json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    if png is not None:
        draw(answers, found, f"{name}: {len(answers)} requests, {found['requests_per_s']:.2f} a second", png)
    if found["failed"] == len(answers):
        raise CapacityError(f"none of {len(answers)} requests was answered: {next(iter(found['errors']))}")


def _wishes(
    trace: Path | None,
    requests: int,
    rate: float | None,
    prompt_tokens: int | None,
    new_tokens: int | None,
    shared_tokens: int,
    divisor: int,
    seed: int,
) -> "list[Wish]":
    from linnet.cli.bench.traces import at_rate, cut, drawn, read

    if trace is None:
        wishes = drawn(requests, prompt_tokens or 512, new_tokens or 64, shared_tokens)
    else:
        wishes = cut(read(trace), requests, divisor, prompt_tokens, new_tokens)
        if not wishes:
            raise ConfigError(f"the trace {trace} has no request")
    return wishes if rate is None else at_rate(wishes, rate, seed)


async def _replay(
    address: "Address", wishes: "Sequence[Wish]", bodies: Sequence[dict[str, Any]], concurrency: int | None
) -> "list[Answer]":
    """Each request when it is due, or as soon after that as the bound on open ones allows."""
    from linnet.cli.bench.client import Answer, complete

    room = asyncio.Semaphore(concurrency or len(wishes))
    begin = time.perf_counter()

    async def one(wish: "Wish", body: dict[str, Any]) -> Answer:
        answer = Answer(wish.new_tokens, begin + wish.arrival_s)
        await asyncio.sleep(max(answer.due_s - time.perf_counter(), 0.0))
        async with room:
            await complete(address, body, answer)
        return answer

    return await asyncio.gather(*map(one, wishes, bodies))


def _show(found: dict[str, Any], name: str, url: str) -> None:
    from rich.table import Table

    from linnet.cli.bench.figures import PERCENTILES, TIMES
    from linnet.cli.terminal import output

    console = output()
    console.print(
        f"{name} on {url}: {found['requests']} requests in {found['seconds']:.1f} s, {found['failed']} failed"
    )
    console.print(
        f"{found['requests_per_s']:.2f} requests/s, {found['new_tokens_per_s']:,.1f} new and "
        f"{found['prompt_tokens_per_s']:,.1f} prompt tokens/s; goodput {found['goodput_per_s']:.2f} requests/s "
        f"({100 * found['good_share']:.0f} % within the bounds)"
    )
    table = Table("ms", "mean", *(f"p{share}" for share in PERCENTILES), box=None)
    for key, words in TIMES.items():
        values = [found[key]["mean"], *(found[key][f"p{share}"] for share in PERCENTILES)]
        table.add_row(words, *(f"{1000 * value:,.1f}" for value in values))
    console.print(table)
    for reason, count in found["errors"].items():
        console.print(f"{count} failed: {reason}", markup=False)
