# SPDX-License-Identifier: Apache-2.0
"""/tokenize and /detokenize: pure functions of a body, run in a worker thread."""

from typing import Any

from linnet.serve.body import parse_object
from linnet.serve.errors import invalid
from linnet.serve.preparing import Preparer
from linnet.serve.protocol import DetokenizeRequest, TokenizeRequest, read_request
from linnet.serve.protocol.chat import plain_messages
from linnet.serve.protocol.tools import linked, tool_use


def tokenize(preparer: Preparer, body: bytes) -> dict[str, Any]:
    """``count``, ``max_model_len``, ``tokens`` and, if asked for, ``token_strs``. Raises ApiError 400 or 404."""
    request = preparer.read_turns(TokenizeRequest, body, "messages")
    preparer.check_model(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise invalid("give either prompt or messages", "prompt", "missing_required_parameter")
    use = tool_use(request.tools, None, None)
    if use is not None and request.messages is None:
        raise invalid("tools is accepted only with messages", "tools")
    if request.messages is not None:
        text = preparer.render(
            linked(plain_messages(request.messages)),
            request.add_generation_prompt,
            request.continue_final_message,
            request.chat_template_kwargs,
            use,
        )
        ids = preparer.encode(text, "messages", add_special=bool(request.add_special_tokens))
    else:
        ids = preparer.encode(request.prompt or "", "prompt", add_special=request.add_special_tokens is not False)
    tokenizer = preparer.facts.tokenizer
    return {
        "count": len(ids),
        "max_model_len": preparer.facts.max_model_len,
        "tokens": list(ids),
        "token_strs": [tokenizer.token(token_id) for token_id in ids] if request.return_token_strs else None,
    }


def detokenize(preparer: Preparer, body: bytes) -> dict[str, Any]:
    """``prompt``: the text of token ids. Raises ApiError 400 or 404."""
    request = read_request(DetokenizeRequest, parse_object(body))
    preparer.check_model(request.model)
    most = preparer.facts.vocabulary_size
    tokens = request.tokens
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < most for token in tokens):
        raise invalid(f"tokens must be a list of token ids from 0 to {most - 1}", "tokens")
    return {"prompt": preparer.facts.tokenizer.decode(tokens, skip_special_tokens=False)}
