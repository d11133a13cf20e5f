# SPDX-License-Identifier: Apache-2.0
"""What is read of PEFT directories, and the sentences for what is not."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_adapter import write_adapter

from linnet.errors import CheckpointError, LinnetError, UnsupportedError
from linnet.formats.peft import peft_rank, read_peft, read_peft_config

SHAPES = {"model.layers.0.self_attn.q_proj": (12, 8), "model.layers.0.mlp.down_proj": (8, 20)}


def test_matrices_ranks_and_factors_are_those_of_the_directory(tmp_path: Path) -> None:
    ranks = {"model.layers.0.mlp.down_proj": 2}
    path = write_adapter(tmp_path, SHAPES, rank=4, alpha=6, ranks=ranks, alpha_pattern={"down_proj": 10})
    adapter = read_peft(path)
    assert set(adapter.linears) == set(SHAPES)
    query, down = adapter.linears["model.layers.0.self_attn.q_proj"], adapter.linears["model.layers.0.mlp.down_proj"]
    assert (query.down.shape, query.up.shape, query.factor) == ((4, 8), (12, 4), 6 / 4)
    assert (down.down.shape, down.up.shape, down.factor) == ((2, 20), (8, 2), 10 / 2)
    assert adapter.rank == peft_rank(read_peft_config(path)) == 4
    assert adapter.base == "owner/base"


def test_rank_stabilised_factors(tmp_path: Path) -> None:
    adapter = read_peft(write_adapter(tmp_path, SHAPES, rank=4, alpha=6, use_rslora=True))
    assert {linear.factor for linear in adapter.linears.values()} == {6 / 2}


def test_numbers_stay_what_they_are(tmp_path: Path) -> None:
    for dtype, kept in ((np.float32, np.float32), (ml_dtypes.bfloat16, ml_dtypes.bfloat16), (np.float16, np.float32)):
        path = write_adapter(tmp_path / np.dtype(dtype).name, SHAPES, dtype=dtype)
        linear = next(iter(read_peft(path).linears.values()))
        assert linear.down.dtype == linear.up.dtype == kept


def test_the_digest_is_of_what_the_result_depends_on(tmp_path: Path) -> None:
    def digest(name: str, **changes: Any) -> bytes:
        return read_peft(write_adapter(tmp_path / name, SHAPES, **changes)).digest

    assert digest("one") == digest("same", lora_dropout=0.1, target_modules="all-linear")
    others = [digest("seed", seed=1), digest("alpha", alpha=9.0), digest("rslora", use_rslora=True)]
    assert len({digest("one"), *others}) == 4


def test_older_names_of_tensors(tmp_path: Path) -> None:
    path = write_adapter(tmp_path, SHAPES)
    from safetensors.numpy import load_file

    file = path / "adapter_model.safetensors"
    save_file({name.replace(".weight", ".default.weight"): value for name, value in load_file(file).items()}, file)
    assert set(read_peft(path).linears) == set(SHAPES)


REFUSALS: dict[str, tuple[dict[str, Any], type[LinnetError], str]] = {
    "another kind": ({"peft_type": "IA3"}, UnsupportedError, "peft_type is 'IA3'"),
    "another task": ({"task_type": "SEQ_CLS"}, UnsupportedError, "task_type is 'SEQ_CLS'"),
    "DoRA": ({"use_dora": True}, UnsupportedError, "DoRA"),
    "modules": ({"modules_to_save": ["lm_head"]}, UnsupportedError, "modules_to_save"),
    "biases": ({"bias": "all"}, UnsupportedError, "bias is 'all'"),
    "biases beside": ({"lora_bias": True}, UnsupportedError, "biases"),
    "embeddings": ({"trainable_token_indices": [3]}, UnsupportedError, "embeddings"),
    "changes the base": ({"init_lora_weights": "pissa_niter_4"}, UnsupportedError, "change the base model"),
    "a choice of others": ({"arrow_config": {"top_k": 2}}, UnsupportedError, "Arrow"),
    "what nobody knows": ({"use_quantum": True}, UnsupportedError, "use_quantum is set"),
    "no rank": ({"r": 0}, CheckpointError, "r is 0"),
    "no alpha": ({"lora_alpha": None}, CheckpointError, "lora_alpha is None"),
    "no targets": ({"target_modules": None}, CheckpointError, "target_modules"),
    "another rank": ({"r": 5}, CheckpointError, "rank 4 and 4"),
    "a costly pattern": ({"alpha_pattern": {"(a+)+$": 3}}, UnsupportedError, "names of modules"),
    "no pattern": ({"alpha_pattern": {"(": 3}}, UnsupportedError, "names of modules"),
    "a pattern of choices": ({"rank_pattern": {"a?" * 60 + "b": 3}}, UnsupportedError, "names of modules"),
    "a rank without end": (
        {"rank_pattern": {"q_proj": 999_999}},
        CheckpointError,
        "rank_pattern is 999999; accepted is 1 to 1024",
    ),
    "no numbers": ({"rank_pattern": {"q_proj": "many"}}, CheckpointError, "rank_pattern is many"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_would_change_the_result_is_refused(case: str, tmp_path: Path) -> None:
    changes, kind, words = REFUSALS[case]
    with pytest.raises(kind, match=words.replace("(", r"\(")) as caught:
        read_peft(write_adapter(tmp_path, SHAPES, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("base_model.model.model.embed_tokens.lora_embedding_A", np.ones((4, 8), np.float32), "no lora_A or lora_B"),
        ("base_model.model.q_proj.lora_magnitude_vector", np.ones(8, np.float32), "no lora_A or lora_B"),
        ("base_model.model.other.lora_A.weight", np.ones((4, 8), np.float32), "lora_A alone"),
        ("base_model.model.other.lora_A.weight", np.ones((4, 8), np.int32), "int32"),
        ("base_model.model.other.lora_A.weight", np.full((4, 8), np.nan, np.float32), "NaN"),
        ("base_model.model.other.lora_A.weight", np.ones((4, 8, 1), np.float32), "supported are matrices"),
    ],
)
def test_other_tensors_are_refused(name: str, values: np.ndarray, words: str, tmp_path: Path) -> None:
    path = write_adapter(tmp_path, SHAPES)
    save_file({name: values}, path / "adapter_model.safetensors")
    with pytest.raises(LinnetError, match=words):
        read_peft(path)


def test_more_than_a_model_could_have_is_not_read(tmp_path: Path) -> None:
    path = write_adapter(tmp_path, SHAPES)
    read_peft(path, most_bytes=4 * 4 * (12 + 8 + 8 + 20))
    with pytest.raises(CheckpointError, match=r"matrices of 768 bytes, .*down_proj.lora_A.weight' the largest; .* 767"):
        read_peft(path, most_bytes=767)


def test_an_embedding_models_adapter_is_one(tmp_path: Path) -> None:
    assert read_peft(write_adapter(tmp_path, SHAPES, task_type="FEATURE_EXTRACTION")).rank == 4


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        read_peft(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="not a PEFT adapter"):
        read_peft(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 4, "target_modules": "all-linear"}))
    with pytest.raises(CheckpointError, match="no such file"):
        read_peft(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="never unpickles"):
        read_peft(tmp_path)


def test_damaged_files_end_in_a_sentence(tmp_path: Path) -> None:
    """Cut anywhere, and every byte of the header changed."""
    path = write_adapter(tmp_path, SHAPES)
    file = path / "adapter_model.safetensors"
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    mutants = [whole[:size] for size in range(0, len(whole), 211)]
    mutants += [whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :] for at in range(0, header, 11)]
    for mutant in mutants:
        file.write_bytes(mutant)
        with suppress(LinnetError):
            read_peft(path)


CUT_WHILE_READ = """
import os, sys
from pathlib import Path
from linnet.formats import peft

path, checked = Path(sys.argv[1]), peft.check_finite

def cut(*arguments):
    os.truncate(path / peft.WEIGHTS_FILE, 1000)
    checked(*arguments)

peft.check_finite = cut
try:
    peft.read_peft(path)
except peft.CheckpointError as error:
    print(error)
"""


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    """And not the end of the process (SIGBUS), which it would be under a mapping."""
    path = write_adapter(tmp_path, {"model.layers.0.self_attn.q_proj": (4096, 4096)}, rank=8)
    done = subprocess.run([sys.executable, "-c", CUT_WHILE_READ, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert "adapter_model.safetensors: has become shorter while it was read, 1000 bytes" in done.stdout
