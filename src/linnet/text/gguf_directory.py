# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a GGUF file as the files of a model directory."""

import json
from pathlib import Path

from linnet.text.gguf_tokenizer import read_gguf_tokenizer


def tokenizer_files(path: Path) -> dict[str, str]:
    """tokenizer.json, tokenizer_config.json, generation_config.json and the chat templates, by file name.

    Raises as ``read_gguf_tokenizer``.
    """
    found = read_gguf_tokenizer(path)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **found.config}
    files = {"tokenizer.json": found.backend.to_str(pretty=True)}
    sources = found.templates.sources
    if "default" in sources:
        files["chat_template.jinja"] = sources["default"]
    if sources.keys() - {"default"}:
        config["chat_template"] = [{"name": name, "template": text} for name, text in sorted(sources.items())]
        files.pop("chat_template.jinja", None)
    if found.eos_token_ids:
        files["generation_config.json"] = json.dumps({"eos_token_id": sorted(found.eos_token_ids)}, indent=2) + "\n"
    files["tokenizer_config.json"] = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return files
