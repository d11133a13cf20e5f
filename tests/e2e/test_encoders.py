# SPDX-License-Identifier: Apache-2.0
"""Models without a head: embeddings as their checkpoints say, the same in any company, over HTTP, compressed; and what
they refuse."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from serving import NAME, Running
from tiny_encoder import (
    BERT_SPECIALS,
    UNIGRAM_PIECES,
    UNIGRAM_SPECIALS,
    word_piece_tokenizer,
    write_pooling,
    write_tiny_bert,
    write_tiny_qwen3_embedding,
    write_tiny_xlm_r,
)
from tiny_llama import write_tiny_llama

from linnet.api import LLM, ParameterError
from linnet.compress import compress, make_recipe
from linnet.errors import CheckpointError, ConfigError, UnsupportedError

TEXTS = ["the cat", "rains in a dog!", "cab", "the the the rain in the dog"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("policy", ["exact", "fast"])
def test_alone_equals_in_company(bert: Path, policy: Any) -> None:
    """Bit for bit, whatever else is in the step, and however few fit into one."""
    rng = random.Random(3)
    rows = [[rng.randrange(5, 23) for _ in range(rng.choice((1, 2, 5, 17, 40, 64)))] for _ in range(14)]
    with LLM(bert, policy=policy, check=True) as llm:
        alone = {pooling: [llm.embed([row], pooling=pooling)[0] for row in rows] for pooling in ("mean", "cls", "last")}
        assert llm.facts.scheduling.token_budget == 512
    settings: list[dict[str, Any]] = [{}, {"token_budget": 64, "max_sequences": 3}, {"num_blocks": 5}]
    settings += [
        {"token_budget": 1},
        {"preempt_every": 1, "threads": 2},
    ]  # a step holds the longest prompt all the same
    for setting in settings:
        with LLM(bert, policy=policy, check=True, **setting) as llm:
            for pooling, wanted in alone.items():
                found = llm.embed(rows, pooling=pooling)  # type: ignore[arg-type]
                assert all(map(np.array_equal, found, wanted)), (setting, pooling)
            assert llm.counters().used_blocks == 0


def test_tokens_see_those_behind_them(bert: Path) -> None:
    with LLM(bert) as llm:
        one, other = llm.embed([[2, 7, 8], [2, 7, 9]], pooling="cls")
        assert np.abs(one - other).max() > 1e-3


def test_the_head_is_not_run_for_hidden_states(tmp_path: Path) -> None:
    """Of a model that has one: beside answers, whose bits do not change for it."""
    path = write_tiny_llama(tmp_path)
    with LLM(path, check=True, max_model_len=64) as llm:
        kept = [op for op in llm.executable.program.ops if op.kind == "logits"]
        values = {value.name: value for value in llm.executable.program.values}
        assert values[kept[0].outputs[0]].shape[0] == "logit_rows"
        llm.embed([list(range(3, 40))], pooling="mean")
        assert llm.executable.logits().shape[0] == 0
        assert llm.executable.tap("head.norm").shape[0] == 37


def test_what_the_checkpoint_says_is_the_default(tmp_path: Path) -> None:
    path = write_tiny_bert(tmp_path)
    for pooling in ("mean", "cls", "last"):
        write_pooling(path, pooling)
        with LLM(path) as llm:
            assert llm.facts.pooling == pooling
            assert np.array_equal(llm.embed("the cat")[0], llm.embed("the cat", pooling=pooling)[0])  # type: ignore[arg-type]
    (path / "modules.json").unlink()
    with LLM(path) as llm:
        assert llm.facts.pooling == "mean"


def test_an_end_is_put_behind_the_text_as_its_tokenizer_says(tmp_path: Path) -> None:
    with LLM(write_tiny_qwen3_embedding(tmp_path), max_model_len=64) as llm:
        assert llm.facts.pooling == "last"
        ids = llm.tokenizer.encode("the cat")
        assert ids[-1] == 0
        assert np.array_equal(llm.embed("the cat")[0], llm.embed([ids])[0])


@pytest.mark.parametrize("scheme", ["W8A16", "W4A16-g16"])
def test_compressed_with_calibration_and_read_again(bert: Path, tmp_path: Path, scheme: str) -> None:
    recipe = make_recipe(scheme, "gptq", calibration_rows=4, calibration_length=32)
    made = compress(bert, tmp_path / "packed", recipe, calibration_text="the cat in the rain and a dog " * 60)
    with LLM(bert) as dense, LLM(made.path) as packed:
        assert packed.facts.pooling == "mean"
        for one, other in zip(dense.embed(TEXTS, normalize=True), packed.embed(TEXTS, normalize=True), strict=True):
            assert float(one @ other) > (0.999 if scheme == "W8A16" else 0.9)


def test_served(bert: Path) -> None:
    with LLM(bert, check=True) as llm:
        wanted = llm.embed(TEXTS, normalize=True)
        with Running(llm) as server:
            answer = server.http.post("/v1/embeddings", json={"model": NAME, "input": TEXTS}).json()
            assert np.array_equal(np.float32([one["embedding"] for one in answer["data"]]), np.array(wanted))
            pairs = {"model": NAME, "text_1": TEXTS[0], "text_2": TEXTS[1:]}
            scores = server.http.post("/v1/score", json=pairs).json()["data"]
            assert abs(scores[0]["score"] - float(wanted[0] @ wanted[1])) < 1e-6
            written = server.http.post("/v1/completions", json={"model": NAME, "prompt": "the cat"})
            assert written.status_code == 400
            assert "this model has no head" in written.json()["error"]["message"]
            assert server.http.post("/v1/embeddings", json={"model": NAME, "input": "the " * 63}).status_code == 400
            server.wait_settled()


def test_what_is_refused(bert: Path, tmp_path: Path) -> None:
    with LLM(bert) as llm:
        with pytest.raises(ParameterError, match="has no head: it writes and scores no text"):
            llm.generate("the cat")
        with pytest.raises(ParameterError, match="has no head"):
            llm.score([[1, 2, 3]])
    for setting, words in (
        ({"max_chunk_tokens": 8}, "accepted is 64 or more"),
        ({"kv_swap_bytes": 1 << 20}, "accepted"),
    ):
        with pytest.raises(ConfigError, match=words):
            LLM(bert, **setting)
    path = write_tiny_bert(tmp_path)
    config = path / "1_Pooling" / "config.json"
    for broken, words in (
        ({"pooling_mode_max_tokens": True}, "is true for max_tokens; supported is one of cls_token"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "cls_token, mean_tokens"),
        ({"pooling_mode": "weightedmean"}, "pooling_mode is 'weightedmean'"),
    ):
        config.write_text(json.dumps(broken))
        with pytest.raises(UnsupportedError, match=words):
            LLM(path)
    listed = json.loads((path / "modules.json").read_text())
    for change, error, words in (
        ({"type": "sentence_transformers.models.Dense"}, UnsupportedError, "a module of the type 'Dense'"),
        ({"path": "../elsewhere"}, CheckpointError, "accepted is the name of a folder"),
        ({"path": "2_Pooling"}, CheckpointError, "cannot be read"),
    ):
        (path / "modules.json").write_text(json.dumps([listed[0], listed[1] | change]))
        with pytest.raises(error, match=words):
            LLM(path)


GGML_NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def word_pieces(writer: gguf.GGUFWriter) -> None:
    """Words with a mark in front, parts of words without one."""
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(2)
    pieces = [token for token, _ in sorted(word_piece_tokenizer().get_vocab().items(), key=lambda item: item[1])]
    controls = [token in BERT_SPECIALS for token in pieces]
    shown = [
        token if control else token[2:] if token.startswith("##") else f"\u2581{token}"
        for token, control in zip(pieces, controls, strict=True)
    ]
    writer.add_token_list(shown)
    writer.add_token_types([gguf.TokenType.CONTROL if control else gguf.TokenType.NORMAL for control in controls])
    for key, token in (("unk", "[UNK]"), ("sep", "[SEP]"), ("pad", "[PAD]"), ("mask", "[MASK]"), ("bos", "[CLS]")):
        getattr(writer, f"add_{key}_token_id")(pieces.index(token))


def unigram_pieces(writer: gguf.GGUFWriter) -> None:
    """With their scores; without a table of characters."""
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_type_count(1)
    pieces = [piece for piece, _ in UNIGRAM_PIECES]
    kinds = dict.fromkeys((*UNIGRAM_SPECIALS, "<mask>"), gguf.TokenType.CONTROL) | {"<unk>": gguf.TokenType.UNKNOWN}
    writer.add_token_list(pieces)
    writer.add_token_scores([score for _, score in UNIGRAM_PIECES])
    writer.add_token_types([kinds.get(piece, gguf.TokenType.NORMAL) for piece in pieces])
    for key, token in (("bos", "<s>"), ("pad", "<pad>"), ("eos", "</s>"), ("sep", "</s>"), ("unk", "<unk>")):
        getattr(writer, f"add_{key}_token_id")(pieces.index(token))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)


def write_gguf_bert(
    directory: Path,
    path: Path,
    pooling: gguf.PoolingType,
    tokenizer: Callable[[gguf.GGUFWriter], None] = word_pieces,
    unused: int = 0,
) -> Path:
    """As llama.cpp's converters write it. ``unused``: positions that no token has, of which it leaves the rows out."""
    config = json.loads((directory / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(config["max_position_embeddings"] - unused)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    tokenizer(writer)
    for name, tensor in load_file(directory / "model.safetensors").items():
        stem, _, kind = name.removeprefix("roberta.").rpartition(".")
        tensor = tensor[unused:] if stem.endswith("position_embeddings") else tensor
        block = stem.startswith("encoder.layer.")
        layer, _, inner = stem.removeprefix("encoder.layer.").partition(".") if block else ("", "", stem)
        writer.add_tensor(f"{f'blk.{layer}.' if block else ''}{GGML_NAMES[inner]}.{kind}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_says_the_same(bert: Path, tmp_path: Path) -> None:
    for pooling, named in ((gguf.PoolingType.CLS, "cls"), (gguf.PoolingType.MEAN, "mean")):
        path = write_gguf_bert(bert, tmp_path / f"{named}.gguf", pooling)
        with LLM(bert) as directory, LLM(path) as file:
            assert file.facts.pooling == named
            for text in (*TEXTS, "Rains, [MASK] cab zzz!"):
                assert file.tokenizer.encode(text) == directory.tokenizer.encode(text)
            wanted = directory.embed(TEXTS, pooling=named)  # type: ignore[arg-type]
            assert all(map(np.array_equal, file.embed(TEXTS), wanted))


def test_a_gguf_file_of_xlm_r_says_the_same(tmp_path: Path) -> None:
    model = write_tiny_xlm_r(tmp_path / "model")
    path = write_gguf_bert(model, tmp_path / "m.gguf", gguf.PoolingType.CLS, unigram_pieces, unused=2)
    with LLM(model) as directory, LLM(path) as file:
        for text in (*TEXTS, " rains,  <mask> cab zzz!", ""):
            assert file.tokenizer.encode(text) == directory.tokenizer.encode(text)
        assert len(file.tokenizer.encode(TEXTS[1])) > 5
        assert all(map(np.array_equal, file.embed(TEXTS), directory.embed(TEXTS)))
