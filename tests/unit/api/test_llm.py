# SPDX-License-Identifier: Apache-2.0
"""LLM on a tiny random model: what comes out of generate, stream, chat, score and compare, and what is refused."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_llama import CONTEXT, write_tiny_llama

from linnet.api import LLM, Completion, ParameterError, SamplingParams
from linnet.errors import CapacityError, CheckpointError, ConfigError, LinnetError, UnsupportedError
from linnet.text import ChatTemplateError

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with LLM(model, policy="exact", max_sequences=4, check=True, seed_source=itertools.count().__next__) as opened:
        yield opened


def test_one_prompt_or_many_texts_or_ids(llm: LLM) -> None:
    ids = llm.tokenizer.encode("the cat")
    outputs = [llm.generate("the cat", GREEDY), llm.generate(["the cat"], GREEDY), llm.generate(ids, GREEDY)]
    outputs += [llm.generate(np.array(ids), GREEDY), llm.generate([ids], [GREEDY])]
    texts = {tuple(entry.outputs[0].token_ids for entry in output) for output in outputs}
    assert len(texts) == 1
    assert [output[0].prompt for output in outputs] == ["the cat", "the cat", None, None, None]
    assert all(output[0].prompt_token_ids == tuple(ids) for output in outputs)
    many = llm.generate(["the cat", ids, "a"], GREEDY)
    assert many[0].outputs[0].token_ids == many[1].outputs[0].token_ids == outputs[0][0].outputs[0].token_ids
    assert llm.generate([], GREEDY) == []


def test_more_prompts_than_seats_and_progress(llm: LLM) -> None:
    calls: list[tuple[int, int]] = []
    prompts = [f"prompt {index}" for index in range(23)]
    params = SamplingParams(temperature=0.0, max_tokens=4, n=2)
    outputs = llm.generate(prompts, params, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(index + 1, 23) for index in range(23)]
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.prompt == prompt
        assert output.outputs[0].token_ids == output.outputs[1].token_ids


def test_stream_equals_generate(llm: LLM) -> None:
    for stop, seed in itertools.product([(), ("e",), ("a", "th")], range(4)):
        params = SamplingParams(max_tokens=24, seed=seed, stop=stop, logprobs=1)
        whole = llm.generate("the end", params)[0].outputs[0]
        parts = list(llm.stream("the end", params))
        assert "".join(part.text for part in parts) == whole.text
        assert tuple(token for part in parts for token in part.token_ids) == whole.token_ids
        assert tuple(entry for part in parts for entry in part.logprobs) == whole.logprobs
        assert parts[-1].finish_reason == whole.finish_reason
        assert not any(string in whole.text for string in stop)


def test_samples_are_seeded_per_index(llm: LLM) -> None:
    def ids(params: SamplingParams) -> list[tuple[int, ...]]:
        return [sample.token_ids for sample in llm.generate("the", params)[0].outputs]

    many = ids(SamplingParams(max_tokens=10, n=4, seed=3))
    assert many == ids(SamplingParams(max_tokens=10, n=4, seed=3))
    assert ids(SamplingParams(max_tokens=10, n=1, seed=3)) == many[:1]
    assert len(set(many)) == 4
    unseeded = SamplingParams(max_tokens=10)
    assert ids(unseeded) != ids(unseeded)


def test_the_end(llm: LLM) -> None:
    first = llm.generate("the", GREEDY)[0].outputs[0]
    stop = SamplingParams(temperature=0.0, max_tokens=12, stop_token_ids=[first.token_ids[2]])
    ended: Completion = llm.generate("the", stop)[0].outputs[0]
    assert ended.finish_reason == "stop"
    assert ended.stop_reason == first.token_ids[2]
    assert ended.token_ids == first.token_ids[: first.token_ids.index(first.token_ids[2]) + 1]
    forced = SamplingParams(temperature=0.0, max_tokens=6, logit_bias={2: 100.0})
    assert llm.generate("the", forced)[0].outputs[0].token_ids == (2,)
    ignoring = SamplingParams(temperature=0.0, max_tokens=6, logit_bias={2: 100.0}, ignore_eos=True)
    assert llm.generate("the", ignoring)[0].outputs[0].token_ids == (2,) * 6
    late = SamplingParams(temperature=0.0, max_tokens=6, min_tokens=3, logit_bias={2: 100.0})
    tokens = llm.generate("the", late)[0].outputs[0].token_ids
    assert 2 not in tokens[:3]
    assert tokens[3] == 2


def test_without_max_tokens_the_context_is_filled(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, ignore_eos=True)
    output = llm.generate([[5] * (CONTEXT - 10)], params)[0].outputs[0]
    assert len(output.token_ids) == 10
    assert output.finish_reason == "length"


def test_a_closed_stream_gives_its_blocks_back(llm: LLM) -> None:
    stream = llm.stream("the", SamplingParams(max_tokens=100, ignore_eos=True))
    next(stream)
    assert llm._engine.has_work
    stream.close()  # type: ignore[attr-defined]
    llm.generate("a", GREEDY)
    assert llm.counters().used_blocks == 0
    assert not llm._engine.has_work


def test_a_stream_and_a_call_share_the_engine(llm: LLM) -> None:
    alone = list(llm.stream("the", GREEDY))
    stream = llm.stream("the", GREEDY)
    parts = [next(stream)]
    other = llm.generate("other", GREEDY)
    parts += list(stream)
    assert "".join(part.text for part in parts) == "".join(part.text for part in alone)
    assert other[0].outputs[0].token_ids == llm.generate("other", GREEDY)[0].outputs[0].token_ids


def test_a_stream_loses_nothing_while_rows_are_scored(llm: LLM) -> None:
    alone = list(llm.stream("the", GREEDY))
    stream = llm.stream("the", GREEDY)
    parts = [next(stream)]
    rows = [[5, 6, 7, 8]] * 9
    scores = llm.score(rows)
    assert all((one == scores[0]).all() for one in scores)
    for _ in range(20):  # until the stream has ended behind the reader's back
        llm.score(rows[:1])
    assert not llm._engine.has_work
    parts += stream
    assert "".join(part.text for part in parts) == "".join(part.text for part in alone)
    assert parts[-1].finish_reason == alone[-1].finish_reason


def test_progress_may_cancel(llm: LLM) -> None:
    def cancel(done: int, total: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        llm.generate(["a", "b", "c d e"], [GREEDY, GREEDY, SamplingParams(max_tokens=90)], progress=cancel)
    llm.generate("a", GREEDY)
    assert llm.counters().used_blocks == 0


def test_chat_goes_through_the_template_with_one_conversation_or_many(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hi"}]
    (answer,) = llm.chat(messages, GREEDY)
    assert answer.prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert answer.prompt_token_ids[0] == 1
    two = llm.chat([messages, messages], GREEDY)
    assert [entry.outputs[0].token_ids for entry in two] == [answer.outputs[0].token_ids] * 2
    with pytest.raises(ConfigError, match="messages is empty"):
        llm.chat([], GREEDY)


def test_scores_are_the_logprobs_of_the_rows(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=8, logprobs=0, ignore_eos=True)
    output = llm.generate("the cat", params)[0]
    completion = output.outputs[0]
    row = [*output.prompt_token_ids, *completion.token_ids]
    start = len(output.prompt_token_ids)
    (scores,) = llm.score([row], starts=[start])
    assert completion.logprobs is not None
    assert scores == pytest.approx([entry.logprob for entry in completion.logprobs], abs=1e-4)
    (whole,) = llm.score([row])
    assert len(whole) == len(row) - 1
    assert whole[start - 1 :] == pytest.approx(scores, abs=1e-4)
    details = llm.score_details([row], starts=[start], top_logprobs=2)[0]
    assert details.greedy.tolist() == list(completion.token_ids)
    assert details.ranks.tolist() == [0] * len(completion.token_ids)
    calls: list[tuple[int, int]] = []
    assert len(llm.score([row] * 9, progress=lambda *call: calls.append(call))) == 9
    assert calls[-1] == (9, 9)


def test_prompt_logprobs_come_with_the_completion(llm: LLM) -> None:
    output = llm.generate("the cat", SamplingParams(max_tokens=3, prompt_logprobs=1))[0]
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs.logprobs) == len(output.prompt_token_ids) - 1
    assert len(output.outputs[0].token_ids) == 3
    two = llm.generate("the cat", SamplingParams(max_tokens=0, prompt_logprobs=0, n=2))[0]
    assert two.prompt_logprobs is not None
    assert [sample.token_ids for sample in two.outputs] == [(), ()]


def test_comparing_a_model_with_itself_and_with_another(llm: LLM, tmp_path: Path) -> None:
    rows = [llm.tokenizer.encode("the cat and the dog"), llm.tokenizer.encode("a")[:1] * 7]
    for result, row in zip(llm.compare(llm, rows), rows, strict=True):
        assert len(result.kl) == len(row) - 1
        assert np.abs(result.kl).max() < 1e-6
        assert result.agree.all()
    with LLM(write_tiny_llama(tmp_path, seed=1), policy="exact", max_sequences=2, check=True) as other:
        compared = llm.compare(other, rows, starts=[2, 1])
        scored = llm.score(rows, starts=[2, 1])
        theirs = other.score(rows, starts=[2, 1])
        backwards = other.compare(llm, rows, starts=[2, 1])
        for result, mine, yours, back in zip(compared, scored, theirs, backwards, strict=True):
            assert result.kl.min() > 0
            assert result.logprobs == pytest.approx(mine, abs=1e-4)
            assert result.reference_logprobs == pytest.approx(yours, abs=1e-4)
            assert back.greedy.tolist() == result.reference_greedy.tolist()
        stream = other.stream("the", GREEDY)
        next(stream)
        with pytest.raises(ConfigError, match="unfinished requests"):
            llm.compare(other, rows)


def test_the_prefix_cache_counts(llm: LLM) -> None:
    llm.forget_prefixes()
    prompt = [7] * 40
    assert llm.generate(prompt, GREEDY)[0].cached_tokens == 0
    assert llm.generate(prompt, GREEDY)[0].cached_tokens == 32


def test_what_it_says_about_itself(llm: LLM, model: Path) -> None:
    assert llm.name == model.name
    assert llm.vocabulary_size == llm.tokenizer.vocabulary_size
    assert llm.max_model_len == CONTEXT
    assert llm.parameters > 20_000
    assert set(llm.linear_scheme_names()) == {"dense"}
    assert llm.machine()["numerics"] == llm.numerics_id
    assert llm.kv_bytes > 0


def test_a_checkpoint_that_prescribes_its_kv_cache_gets_it(model: Path, tmp_path: Path, caplog) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(model, tmp_path / "copy")
    config = json.loads((model / "config.json").read_text())
    scheme = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "dense", "config_groups": {}, "kv_cache_scheme": scheme,
    }  # fmt: skip
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.self_attn.k_scale"] = np.ones(1, np.float32)
    save_file(tensors, tmp_path / "copy" / "model.safetensors")

    def answer(path: Path, **settings: object) -> tuple[object, ...]:
        with LLM(path, max_sequences=2, **settings) as opened:  # type: ignore[arg-type]
            return opened.numerics_id, opened.kv_bytes, opened.generate("the cat", GREEDY)[0].outputs[0].token_ids

    assert answer(tmp_path / "copy", num_blocks=32) == answer(model, num_blocks=32, kv_cache="fp8")
    assert "the KV cache is fp8_e4m3, as config.json prescribes" in caplog.text
    assert "scales stored for it are ignored" in caplog.text
    assert answer(tmp_path / "copy", num_blocks=32, kv_cache="bf16") == answer(model, num_blocks=32)


def test_a_closed_model_refuses_in_one_sentence(model: Path) -> None:
    with LLM(model, max_sequences=2) as closed:
        closed.generate("a", GREEDY)
    closed.close()
    assert closed.numerics_id
    for call in (lambda: closed.generate("a", GREEDY), lambda: closed.score([[1, 2]])):
        with pytest.raises(LinnetError, match="closed"):
            call()


def test_a_tokenizer_with_more_ids_than_the_model_is_told(model: Path, tmp_path: Path, caplog) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(model, tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())
    (tmp_path / "copy" / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "<pad>"}))
    with LLM(tmp_path / "copy", max_sequences=2) as wide:
        assert "the tokenizer knows" in caplog.text
        with pytest.raises(ParameterError, match="prompt token id"):
            wide.generate("a<pad>", GREEDY)


REFUSED = [
    ({"prompts": ""}, "the prompt is empty"),
    ({"prompts": [[]]}, "the prompt is empty"),
    ({"prompts": [[1, 99999]]}, "prompt token id 99999"),
    ({"prompts": [[1, "a"]]}, "accepted are a text or a list of token ids"),
    ({"prompts": 7}, "accepted are a text, token ids, or a list of either"),
    ({"prompts": [{"a": 1}]}, "accepted are a text or a list of token ids"),
    ({"prompts": ["a", "b"], "params": [GREEDY]}, "1 sampling parameters for 2 prompts"),
    ({"prompts": [[1] * 300]}, "the prompt has 300 tokens; the context holds 256"),
    ({"prompts": [[1] * 250], "params": SamplingParams(max_tokens=7)}, "make 257; the context holds 256"),
    ({"prompts": "a", "params": SamplingParams(stop_token_ids=[5000])}, "stop_token_ids has token id 5000"),
]


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED)
def test_refusals_come_before_any_work(llm: LLM, arguments: dict, sentence: str) -> None:
    with pytest.raises(ParameterError, match=sentence):
        llm.generate(**arguments)
    assert not llm._engine.has_work


@pytest.mark.parametrize(
    ("rows", "starts"), [([[1]], None), ([[1, 2]], [2]), ([[1, 2]], [0]), ([[1, 2]], [1, 1]), ([[1, 99999]], None)]
)
def test_rows_that_cannot_be_scored(llm: LLM, rows: list[list[int]], starts: list[int] | None) -> None:
    with pytest.raises(ConfigError):
        llm.score(rows, starts=starts)
    assert not llm._engine.has_work


def test_opening_refuses_in_one_sentence(model: Path, tmp_path: Path) -> None:
    for arguments, error in (
        ({"policy": "quick"}, ConfigError),
        ({"backend": "gpu"}, ConfigError),
        ({"max_model_len": 300}, ConfigError),
        ({"max_model_len": 0}, ConfigError),
        ({"token_budget": 0}, ConfigError),
        ({"max_sequences": True}, ConfigError),
        ({"kv_bytes": 64}, CapacityError),
        ({"kv_bytes": 4096, "max_model_len": 256}, CapacityError),
        ({"scheduling": "random"}, ConfigError),
        ({"backend": "reference", "isa": "avx2"}, UnsupportedError),
    ):
        with pytest.raises(error) as caught:
            LLM(model, **arguments)  # type: ignore[arg-type]
        assert isinstance(caught.value, LinnetError)
    with pytest.raises(CheckpointError):
        LLM(tmp_path / "nothing")
    with pytest.raises(LinnetError):
        LLM(tmp_path)


def test_greedy_tokens_equal_transformers(llm: LLM, model: Path) -> None:
    """R13 in small: 20 prompts, prefill and cached decode, policy exact."""
    transformers = pytest.importorskip("transformers")
    import torch

    theirs = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    rng = np.random.default_rng(4)
    prompts = [rng.integers(3, llm.vocabulary_size, rng.integers(1, 60)).tolist() for _ in range(20)]
    params = SamplingParams(temperature=0.0, max_tokens=24, logprobs=0)
    outputs = llm.generate(prompts, params)
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            whole = theirs.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0
            )[0].tolist()
            logprobs = torch.log_softmax(theirs(torch.tensor([whole])).logits[0].double(), -1)
        completion = output.outputs[0]
        assert list(completion.token_ids) == whole[len(prompt) :]
        assert completion.logprobs is not None
        for index, entry in enumerate(completion.logprobs):
            assert entry.logprob == pytest.approx(logprobs[len(prompt) + index - 1, entry.token_id].item(), abs=1e-4)


def test_a_chat_template_that_does_not_compile_is_told_at_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = write_tiny_llama(tmp_path / "model")
    (directory / "chat_template.jinja").write_text("{% if %}", encoding="utf-8")
    with LLM(directory, kv_bytes=1 << 20, max_sequences=1) as broken:
        assert "chat template 'default', line 1, does not compile" in caplog.text
        assert broken.generate("the", GREEDY)[0].outputs[0].token_ids
        with pytest.raises(ChatTemplateError, match="does not compile"):
            broken.chat([{"role": "user", "content": "hi"}], GREEDY)


def test_one_prompt_that_fails_ends_the_call_at_once(model: Path, tmp_path: Path) -> None:
    """The others are not computed to their end first; the model goes on."""
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    config = json.loads((broken / "config.json").read_text())
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.weight"] = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"]).copy()
    tensors["model.embed_tokens.weight"][77] = np.nan
    save_file(tensors, broken / "model.safetensors")
    (broken / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    done: list[int] = []
    prompts = [[5, 6, 7]] * 4 + [[5, 77, 7]] + [[5, 6, 7]] * 200
    with LLM(broken, policy="exact", max_sequences=4, prefix_cache=False) as llm:
        with pytest.raises(LinnetError, match="NaN"):
            llm.generate(prompts, GREEDY, progress=lambda count, _: done.append(count))
        assert len(done) < 20
        assert len(llm.generate(prompts[:3], GREEDY)) == 3
        assert llm.counters().used_blocks == 0
