# SPDX-License-Identifier: Apache-2.0
"""What ``linnet doctor`` says of transformers, asked of transformers itself."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the dev extra")
pytest.importorskip("transformers", reason="needs the dev extra")
pytest.importorskip("compressed_tensors", reason="needs the dev extra")

import foreign_forms
import test_hqq
import test_quanto
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.quantization_config import CompressedTensorsConfig

from linnet import demo
from linnet.cli.doctoring import examine
from linnet.compress import compress, make_recipe
from linnet.formats.programs.of_transformers import LOSES, METHODS, UNCHECKED


@pytest.mark.parametrize("scheme", ["W4A16-g32", "W3A16-g32", "W8A8", "W4A16-g32-asym", "NF4", "W4A16-g32-head8"])
def test_transformers_does_as_it_is_said_to(tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "model"
    compress(demo.model_directory(), path, make_recipe(scheme, "rtn"))
    verdict = examine(path)[1]
    arguments = {}
    if "dequantize=True" in verdict.why:
        arguments["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    if verdict.loads:
        _, loading = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **arguments)
        assert not loading["missing_keys"]
        assert not loading["mismatched_keys"]
    else:
        with pytest.raises((ValueError, KeyError, OSError)):
            AutoModelForCausalLM.from_pretrained(path)


def test_a_dense_model_is_its_own_form() -> None:
    assert examine(demo.model_directory())[1].loads
    assert AutoConfig.from_pretrained(demo.model_directory()).model_type == "llama"


def test_its_methods_are_known() -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    known = {name.split("_4bit")[0].split("_8bit")[0] for name in AUTO_QUANTIZATION_CONFIG_MAPPING}
    assert {*METHODS, *LOSES, *UNCHECKED} <= known | {"bitsandbytes"}


@pytest.mark.parametrize("method", LOSES)
def test_what_it_takes_for_superfluous_it_draws_at_random(method: str, tmp_path: Path) -> None:
    encode = test_quanto.FORMS["qint8"][0] if method == "quanto" else test_hqq.encoder()
    path = foreign_forms.write_pair(foreign_forms.llama(), tmp_path, None, encode).quantised
    verdict = examine(path)[1]
    assert not verdict.loads
    assert "random weights" in verdict.why
    _, loading = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert loading["missing_keys"]
