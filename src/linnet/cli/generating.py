# SPDX-License-Identifier: Apache-2.0
"""``linnet generate``: text in, text out, streamed as it comes."""

import time
from pathlib import Path
from typing import Annotated

import typer

from linnet.cli import options
from linnet.cli.declaring import Given, offers

MAX_TOKENS = 128
"""Where a text ends when neither the user nor the checkpoint says it."""


ADAPTER = "adapter"
"""What the one adapter of the command is called within it."""


@offers(
    asked=(options.max_tokens("Stop after this many tokens.", MAX_TOKENS), *options.SAMPLING), opening=options.OPENING
)
def generate(
    model: options.Model,
    prompt: Annotated[
        str,
        typer.Argument(help="The text to continue (-p or --prompt too); - reads standard input.", show_default=False),
    ],
    *,
    asked: Given,
    stop: Annotated[list[str] | None, options.option(help="Stop before this text; may be given again.")] = None,
    seed: options.Seed = 0,
    chat: Annotated[
        bool, options.option("--chat", help="Send the prompt as a user's message through the chat template.")
    ] = False,
    adapter: Annotated[
        Path | None,
        options.option(metavar="DIR", help="A LoRA adapter (PEFT directory) to go through.", show_default=False),
    ] = None,
    opening: Given,
    stats: Annotated[
        bool, options.option("--stats/--no-stats", help="Print token counts and speed at the end.")
    ] = True,
) -> None:
    """Continue a text with a model, compressed or not.

    Sampling that you do not choose is what the model recommends in its generation_config.json.

    [dim]Examples[/]

      linnet generate ./my-model "Once upon a time" --max-tokens 64
      linnet generate ./my-model "Who are you?" --chat --temperature 0.7 --seed 1
      linnet generate ./my-model "Once upon a time" --adapter ./poet-lora
      cat letter.txt | linnet generate ./my-model -
    """
    from linnet.api import read_sampling_defaults
    from linnet.cli.standard_input import standard_input
    from linnet.formats import resolve_model

    text = "".join(standard_input()) if prompt == "-" else prompt
    directory = resolve_model(model, opening["revision"])
    recommended = read_sampling_defaults(directory, opening["generation_config"])
    parameters = options.sampling(recommended, asked, stop=tuple(stop or ()), seed=seed)
    adapters = {} if adapter is None else {ADAPTER: adapter}
    open_model = options.opener(opening, adapters, max_sequences=1)
    with open_model(directory, opening["policy"], opening["kv_cache"]) as llm:
        if chat:
            rendered = llm.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True
            )
            prompt_ids = llm.tokenizer.encode_chat(rendered)
        else:
            prompt_ids = llm.tokenizer.encode(text)
        started = first = time.perf_counter()
        count = 0
        most = recommended.max_tokens or MAX_TOKENS
        through = None if adapter is None else ADAPTER
        pieces = llm.stream(prompt_ids, parameters, default_max_tokens=most, adapter=through)
        if not chat:  # only now, so that a refusal stands alone
            print(text, end="", flush=True)
        for piece in pieces:
            if not count:
                first = time.perf_counter()
            count += len(piece.token_ids)
            print(piece.text, end="", flush=True)
        print(flush=True)
        decode_s = time.perf_counter() - first
    if stats:
        from linnet.cli.terminal import notices

        speed = f"{(count - 1) / decode_s:,.0f} tokens/s" if count > 1 and decode_s > 0 else "one token"
        waited = f"first after {1000 * (first - started):.0f} ms, then {speed}"
        notices().print(f"[dim]{len(prompt_ids)} prompt tokens, {count} generated; {waited}[/]")
