# SPDX-License-Identifier: Apache-2.0
"""The hook sees every text before anybody else, and what it says holds."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_llama import write_tiny_llama

from linnet.api import LLM, SamplingParams
from linnet.errors import LinnetError

PARAMS = SamplingParams(max_tokens=24, temperature=1.0, seed=3, ignore_eos=True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


class Hook:
    """Says ``word`` of the text in which the ``at``-th character comes."""

    def __init__(self, word: str = "continue", at: int = 1 << 30) -> None:
        self.word, self.at = word, at
        self.seen: list[tuple[str, str]] = []

    def __call__(self, shown: str, fresh: str) -> str:
        self.seen.append((shown, fresh))
        return self.word if len(shown) + len(fresh) >= self.at else "continue"


def opened(directory: Path, hook: object) -> Iterator[LLM]:
    return LLM(directory, kv_bytes=1 << 20, moderate=hook)  # type: ignore[arg-type,return-value]


def test_it_sees_all_of_the_text_in_order_and_changes_nothing(directory: Path) -> None:
    with LLM(directory, kv_bytes=1 << 20) as plain:
        wanted = plain.generate("the rain", PARAMS)[0].outputs[0]
    hook = Hook()
    with opened(directory, hook) as llm:
        found = llm.generate("the rain", PARAMS)[0].outputs[0]
    assert found == wanted
    assert "".join(fresh for _, fresh in hook.seen) == wanted.text
    assert all(fresh for _, fresh in hook.seen)
    for place, (shown, _) in enumerate(hook.seen):
        assert shown == "".join(fresh for _, fresh in hook.seen[:place])


def test_stop_withholds_what_it_was_said_of(directory: Path) -> None:
    hook = Hook("stop", at=12)
    with opened(directory, hook) as llm:
        found = llm.generate("the rain", PARAMS)[0].outputs[0]
        pieces = []
        for piece in llm.stream("the rain", PARAMS):
            assert "".join(fresh for _, fresh in hook.seen).endswith(piece.text)  # seen before it came out
            pieces.append(piece)
        assert not llm.counters().running_requests
    assert found.finish_reason == "policy"
    assert found.stop_reason is None
    assert found.text == hook.seen[-1][0]
    assert len(found.text) < 12 <= len(found.text) + len(hook.seen[-1][1])
    assert "".join(piece.text for piece in pieces) == found.text
    assert sum((piece.token_ids for piece in pieces), ()) == found.token_ids
    assert pieces[-1].finish_reason == "policy"


def test_end_shows_it_and_ends(directory: Path) -> None:
    hook = Hook("end", at=12)
    with opened(directory, hook) as llm:
        found = llm.generate("the rain", PARAMS)[0].outputs[0]
    assert (found.finish_reason, found.stop_reason) == ("stop", "policy")
    assert found.text == "".join(hook.seen[-1])
    assert len(found.token_ids) < 24


def test_of_several_samples_one_ends(directory: Path) -> None:
    with opened(directory, lambda shown, fresh: "stop" if "e" in fresh else "continue") as llm:
        params = SamplingParams(max_tokens=4, seed=3, n=8, ignore_eos=True)
        outputs = llm.generate("the rain", params)[0].outputs
    assert {one.finish_reason for one in outputs} == {"policy", "length"}
    assert not any("e" in one.text for one in outputs)


def broken(shown: str, fresh: str) -> str:
    raise ValueError(fresh)


@pytest.mark.parametrize(
    ("hook", "sentence"),
    [
        (broken, r"^the moderation hook failed \(ValueError\)$"),
        (Hook("no", at=1), r"said 'no'; accepted: continue, stop, end"),
    ],
)
def test_a_hook_that_fails_ends_the_request_with_an_error_and_no_text(
    directory: Path, hook: object, sentence: str
) -> None:
    with opened(directory, hook) as llm:
        with pytest.raises(LinnetError, match=sentence):
            llm.generate("the rain", PARAMS)
        shown = []
        with pytest.raises(LinnetError, match=sentence):
            shown += [piece.text for piece in llm.stream("the rain", PARAMS)]
        assert not "".join(shown)
        llm.score([[1, 2, 3]])  # nothing is left behind, and scores are no text
        assert llm.counters().used_blocks == 0


def test_the_end_of_a_text_that_was_held_back_is_seen_too(directory: Path) -> None:
    with LLM(directory, kv_bytes=1 << 20) as plain:
        text = plain.generate("the rain", PARAMS)[0].outputs[0].text
    held = SamplingParams(max_tokens=24, temperature=1.0, seed=3, ignore_eos=True, stop=text + "x")
    hook = Hook("stop", at=1)
    with opened(directory, hook) as llm:
        found = llm.generate("the rain", held)[0].outputs[0]
    assert hook.seen == [("", text)]
    assert (found.text, found.finish_reason) == ("", "policy")
