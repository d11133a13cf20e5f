# SPDX-License-Identifier: Apache-2.0
"""What llama.cpp reads: what is known of one version, tested with that version itself
(tests/golden/test_programs_llama_cpp.py)."""

from collections.abc import Mapping

from linnet.formats.programs.described import GgufFacts, Model, Verdict

NAME = "llama.cpp"
VERSION = "0.3.36"
"""Of llama-cpp-python, which carries it; its own versions are numbers of builds."""
TOKENIZERS = ("llama", "gpt2", "bert", "t5", "rwkv", "plamo2", "gemma4", "no_vocab", "none")
"""The values of ``tokenizer.ggml.model`` that it takes."""
WITHOUT_TOKENS = ("no_vocab", "none")
WITH_MERGES = ("gpt2", "gemma4")
_CUTS = """
    a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe command-r dbrx
    deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone exaone-moe exaone4 f2llmv2 falcon
    falcon-h1 falcon3 gemma4 gigachat glm4 glm5 gpt-2 gpt-4o gpt3-finnish granite-docling granite-embed-multi-311m
    granite-embed-multi-97m grok-2 hunyuan hunyuan-dense hy_v4 jais jais-2 jina-de jina-es jina-v1-en jina-v2-code
    jina-v2-de jina-v2-es jina-v5-nano joyai-llm kanana2 kimi-k2 kormo laguna lfm2 llada-moe llama-bpe llama-v3
    llama3 llama4 megrez mellum mellum2 midm-2.0 minerva-7b minicpm5 minimax-m2 modern-bert mpt olmo phi-2 pixtral
    poro-chat qwen2 qwen35 refact roberta-bpe sarvam-moe seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2
    starcoder superbpe talkie tekken tiny_aya trillion ufakzeka viking whitespace youtu
"""
CUTS = frozenset(_CUTS.split())
"""The values of ``tokenizer.ggml.pre``: ways of cutting text before byte-level BPE."""
_ARCHITECTURES = """
    afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bailingmoe3 bert bitnet bloom chameleon
    chatglm codeshell cogvlm cohere2 cohere2moe command-r dbrx deci deepseek deepseek2 deepseek2-ocr deepseek32
    deepseek4 dflash dots1 dots3note dream eagle3 ernie4_5 ernie4_5-moe eurobert exaone exaone-moe exaone4 falcon
    falcon-h1 gemma gemma-embedding gemma2 gemma3 gemma3n gemma4 gemma4-assistant glm-dsa glm4 glm4moe glm5-next
    gpt-oss gpt2 gptj gptneox granite granite_swa granitehybrid granitemoe graniteswitch grok grovemoe hrm_text
    hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 hy_v4 internlm2 jais jais2 jamba jina-bert-v2 jina-bert-v3 kimi-k3
    kimi-linear laguna lfm2 lfm2moe llada llada-moe llama llama4 maincoder mamba mamba2 maple mellum mimo2 minicpm
    minicpm3 minimax-01 minimax-m2 minimax-m3 mistral3 mistral4 modern-bert mpt muse-glimmer nanbeige nemotron
    nemotron_h nemotron_h_moe neo-bert nomic-bert nomic-bert-moe olmo olmo2 olmoe openelm orion paddleocr
    pangu-embedded phi2 phi3 phimoe plamo plamo2 plamo3 plm pockettts qwen qwen2 qwen2moe qwen2vl qwen3 qwen35
    qwen35moe qwen3moe qwen3next qwen3tts qwen3vl qwen3vlmoe qwen4exp refact rnd1 rwkv6 rwkv6qwen2 rwkv7 seed_oss
    smallthinker smollm3 spark2_5 stablelm starcoder starcoder2 step35 t5 t5encoder talkie wavtokenizer-dec xverse
"""
ARCHITECTURES = frozenset(_ARCHITECTURES.split())
"""The values of ``general.architecture``."""
WANTED: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "gptneox": ("blk.0.attn_qkv.bias", ()),
    "chatglm": ("blk.0.attn_output.weight", (1, 1)),
    "olmoe": ("blk.0.attn_k_norm.weight", (1,)),
}
"""Architecture -> a tensor that it wants in every layer, and of what shape, in widths of the embedding; () is any.
Other readers have no such limit: a bias that may be missing, a size of heads of its own, fewer heads of keys."""
ELSE = "and so computes something else"
"""How the reason ends where it opens a file and is wrong."""
DEEP_WITH_WINDOWS = 64
DEEP_WITH_NORMS = 64
WITHOUT_QUERY_RANK = (26, 27)
"""It tells members of a family by their number of layers: EXAONE 4 with windows, Command R with norms of heads,
DeepSeek V2 whose queries have no rank."""
UNMULTIPLIED = ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")
"""Types of tensors that no weight may have: it ends its process at the first product."""


def reads_file(model: Model, file: GgufFacts) -> Verdict:
    """The verdict of a GGUF file; ``loads`` is None where Linnet found it damaged: others may look at less."""
    name = model.architecture
    refused = (
        _refused(name, file) or _tokenizer_refused(file) or _shape_refused(name, file) or _depth_refused(name, file)
    )
    if refused is not None:
        return Verdict(NAME, False, refused)
    if model.damaged:
        why = f"it knows the architecture {name}; whether it misses what Linnet misses is not checked"
        return Verdict(NAME, None, why)
    return Verdict(NAME, True, "GGUF is its own form")


def _refused(architecture: str, file: GgufFacts) -> str | None:
    """Why it does not open a file, or not the one of a set that was named."""
    if file.first is not None:
        return f"of a set it opens the first file alone, {file.first}, which finds the others"
    if architecture not in ARCHITECTURES:
        return f"it knows no architecture {architecture!r} (version {VERSION})"
    found = [name for name in UNMULTIPLIED if name in file.types]
    return f"it multiplies by no weights of the type {' or '.join(found)}" if found else None


def _tokenizer_refused(file: GgufFacts) -> str | None:
    """Why it does not take the tokenizer, without which it opens nothing."""
    if file.tokenizer is None:
        return "it opens no file without a tokenizer (tokenizer.ggml.model)"
    if file.tokenizer not in TOKENIZERS:
        return f"it knows no tokenizer.ggml.model {file.tokenizer[:40]!r} (version {VERSION})"
    if file.tokenizer in WITHOUT_TOKENS:
        return None
    if not file.tokens:
        return "its tokenizer has no tokenizer.ggml.tokens"
    if file.tokenizer not in WITH_MERGES:
        return None
    if not file.merges:
        return "its tokenizer has no tokenizer.ggml.merges"
    if file.cut and file.cut not in CUTS:
        return f"it knows no tokenizer.ggml.pre {file.cut[:40]!r} (version {VERSION})"
    return None


def _shape_refused(architecture: str, file: GgufFacts) -> str | None:
    """Why a layer is none of its own."""
    name, widths = WANTED.get(architecture, ("", ()))
    embedding = file.shapes.get("token_embd.weight")
    if not name or embedding is None:
        return None
    found, wanted = file.shapes.get(name), [width * embedding[-1] for width in widths]
    if found is None:
        return f"its {architecture} wants {name} in every layer, which is not there"
    return f"its {architecture} wants {name} to be {wanted}, not {[*found]}" if wanted and [*found] != wanted else None


def _depth_refused(architecture: str, file: GgufFacts) -> str | None:
    """Why a model of so many layers is none that it knows."""
    layers = file.layers
    if layers is None:
        return None
    if architecture == "exaone4" and layers != DEEP_WITH_WINDOWS and "exaone4.attention.sliding_window" in file.keys:
        return f"its exaone4 sees windows where there are {DEEP_WITH_WINDOWS} layers alone, not {layers}, {ELSE}"
    if architecture == "command-r" and (layers >= DEEP_WITH_NORMS) != ("blk.0.attn_q_norm.weight" in file.shapes):
        return f"its command-r has norms of heads from {DEEP_WITH_NORMS} layers on and not before; here are {layers}"
    ranked = "deepseek2.attention.q_lora_rank" in file.keys
    if architecture == "deepseek2" and not ranked and layers not in WITHOUT_QUERY_RANK:
        shown = " or ".join(map(str, WITHOUT_QUERY_RANK))
        return f"its deepseek2 has queries without a rank (attention.q_lora_rank) at {shown} layers alone, not {layers}"
    return None
