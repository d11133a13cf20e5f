# SPDX-License-Identifier: Apache-2.0
"""``linnet chat``: a conversation with a model on the terminal, or one question and its answer."""

import sys
from typing import Annotated

import typer

from linnet.cli import options
from linnet.cli.declaring import Given, offers
from linnet.errors import ConfigError


@offers(asked=(options.max_tokens("Longest answer.", 4096), *options.SAMPLING), opening=options.OPENING)
def chat(
    model: options.Model,
    prompt: Annotated[
        str | None,
        typer.Argument(help="One question to answer (-p or --prompt too); without it, a conversation."),
    ] = None,
    *,
    system: Annotated[str | None, options.option(help="What the model is told it is.", show_default=False)] = None,
    asked: Given,
    seed: Annotated[int | None, options.option(help="Makes sampled answers repeat.", show_default="none")] = None,
    opening: Given,
) -> None:
    """Talk with a model, compressed or not.

    Ctrl-C ends an answer; /help lists what else there is. Without a terminal every line of the input is a message.

    [dim]Examples[/]

      linnet chat ./my-model
      linnet chat ./my-model "What is the capital of France?"
      linnet chat ./my-model --system "You answer in one sentence." --temperature 0.7
    """
    from rich.markup import escape

    from linnet.api import CHAT_MAX_TOKENS, read_sampling_defaults
    from linnet.cli.conversation import Conversation, converse
    from linnet.cli.standard_input import standard_input
    from linnet.cli.terminal import notices
    from linnet.formats import resolve_model

    directory = resolve_model(model, opening["revision"])
    recommended = read_sampling_defaults(directory, opening["generation_config"])
    parameters = options.sampling(recommended, asked, seed=seed)
    open_model = options.opener(opening, max_sequences=1)
    interactive = sys.stdin.isatty() and sys.stdout.isatty() and prompt is None

    def say(text: str) -> None:
        print(text, end="", flush=True)

    def note(text: str) -> None:
        notices().print(f"[dim]{escape(text)}[/]")

    with open_model(directory, opening["policy"], opening["kv_cache"]) as llm:
        if not llm.tokenizer.templates.names:
            raise ConfigError(
                f"{model} has no chat template: it is a base model, which continues texts; linnet generate {model} "
                '"Once upon a time" does that'
            )
        conversation = Conversation(llm, parameters, recommended.max_tokens or CHAT_MAX_TOKENS, say, note, system)
        if prompt is not None:
            conversation.ask("".join(standard_input()) if prompt == "-" else prompt)
            if conversation.interrupted:
                raise KeyboardInterrupt
            return
        if interactive:
            sampled = f"; {recommended}" if str(recommended) else ""
            note(f"{llm.name}, context {llm.max_model_len:,} tokens{sampled}. /help lists commands, /quit leaves.")
        converse(conversation, interactive, note)
