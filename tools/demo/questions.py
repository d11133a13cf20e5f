# SPDX-License-Identifier: Apache-2.0
"""Writes what is evaluated and calibrated with: questions.jsonl, heldout.txt, calibration.txt.

Every question and every held-out text lies on the other side of the wall from training (`is_held_out`).
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from small_world.episode import END_OF_TEXT, Item, is_held_out
from small_world.mix import ABILITIES, LONG_SHARES, SHORT_SHARES, stream, text_key
from small_world.prose import Prose
from small_world.stories import draw_text
from small_world.world import World, make_world

QUESTIONS, RECALL_QUESTIONS = 200, 120
HELD_OUT_CHARACTERS = 80_000
CALIBRATION_CHARACTERS, CALIBRATION_LONG_CHARACTERS = 130_000, 20_000
SEPARATOR = "---\n"


def question(item: Item, identifier: str, source: random.Random) -> dict[str, object]:
    """Return the stored form of an item; its choices come in random order."""
    asked = (
        {"messages": [{"role": role, "content": content} for role, content in item.messages]}
        if item.messages
        else {"prompt": item.prompt}
    )
    common = {"id": identifier, "ability": item.ability}
    if item.choices:
        choices = source.sample(item.choices, len(item.choices))
        return {**common, "kind": "choice", **asked, "choices": choices, "answer": choices.index(item.answer)}
    return {**common, "kind": "exact", **asked, "answer": item.answer, "stop": ["\n"], "max_tokens": item.max_tokens}


def make_questions(world: World, seed: int) -> list[dict[str, object]]:
    """Draw the questions of every ability, each prompt once."""
    made = []
    for ability, draw in ABILITIES.items():
        source = random.Random(f"questions-{ability}-{seed}")
        seen: set[str] = set()
        while len(seen) < (RECALL_QUESTIONS if ability == "recall" else QUESTIONS):
            item = draw(world, source)[0]
            asked = item.prompt or json.dumps(item.messages)
            if is_held_out(item.key) and asked not in seen:
                seen.add(asked)
                made.append(question(item, f"{ability}-{len(seen):04d}", source))
    return made


def held_out_texts(world: World, seed: int) -> list[str]:
    """Draw stories and documents about the town that training never shows."""
    source = random.Random(f"heldout-{seed}")
    texts: dict[str, None] = {}
    while sum(map(len, texts)) < HELD_OUT_CHARACTERS:
        text = draw_text(world, source)
        if is_held_out(text_key(text)):
            texts[text] = None
    return list(texts)


def calibration_texts(world: World, prose: Prose, seed: int) -> list[str]:
    """Draw training text, question formats and chats included, of which training itself may see any part."""
    texts = []
    for shares, characters in ((SHORT_SHARES, CALIBRATION_CHARACTERS), (LONG_SHARES, CALIBRATION_LONG_CHARACTERS)):
        for episode in stream(world, prose, f"calibration-{seed}", shares):
            texts.append(episode.text.removesuffix(END_OF_TEXT).removesuffix("\n") + "\n")
            characters -= len(texts[-1])
            if characters <= 0:
                break
    random.Random(f"calibration-order-{seed}").shuffle(texts)
    return texts


def main() -> None:
    """Write the three files into a directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, help="directory with the public-domain prose")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    world = make_world(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(entry, ensure_ascii=False) for entry in make_questions(world, options.seed)]
    files = {
        "questions.jsonl": "\n".join(lines) + "\n",
        "heldout.txt": SEPARATOR.join(held_out_texts(world, options.seed)),
        "calibration.txt": SEPARATOR.join(calibration_texts(world, Prose(options.text), options.seed)),
    }
    for name, text in files.items():
        (options.out / name).write_text(text, encoding="utf-8")
        print(f"{options.out / name}: {len(text.encode())} bytes")


if __name__ == "__main__":
    main()
