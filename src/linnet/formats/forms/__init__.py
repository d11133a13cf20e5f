# SPDX-License-Identifier: Apache-2.0
"""The forms in which quantised models are published, one object each: those that read, asked in order, and those that
write, by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from linnet.formats.forms.awq import Awq
from linnet.formats.forms.awq_written import AwqWritten
from linnet.formats.forms.base import Form, Shapeless
from linnet.formats.forms.bitnet import BitNet
from linnet.formats.forms.bitsandbytes import BitsAndBytes
from linnet.formats.forms.bitsandbytes_written import BitsAndBytesWritten
from linnet.formats.forms.canonical_written import Canonical
from linnet.formats.forms.compressed_tensors import CompressedTensors
from linnet.formats.forms.fp8 import Fp8
from linnet.formats.forms.fp8_written import Fp8Written
from linnet.formats.forms.gguf import Gguf
from linnet.formats.forms.gptq import Gptq
from linnet.formats.forms.gptq_written import GptqWritten
from linnet.formats.forms.hqq import Hqq
from linnet.formats.forms.mxfp4 import Mxfp4
from linnet.formats.forms.mxfp4_written import Mxfp4Written
from linnet.formats.forms.quanto import Quanto
from linnet.formats.forms.written import WrittenForm

FORMS: tuple[Form, ...] = (
    CompressedTensors(),
    Gguf(),
    Gptq(version_2=False),
    Gptq(version_2=True),
    Awq(),
    Fp8(),
    BitsAndBytes(),
    Hqq(),
    Quanto(),
    Mxfp4(),
    BitNet(),
)
"""The first is also who looks at tensors where a config says nothing."""

WRITTEN_FORMS: Mapping[str, Callable[[str], WrittenForm]] = MappingProxyType(
    {
        "compressed-tensors": Canonical.of_type,
        "gptq": GptqWritten.of_type,
        "awq": AwqWritten.of_type,
        "bitsandbytes": BitsAndBytesWritten.of_type,
        "fp8": Fp8Written.of_type,
        "mxfp4": Mxfp4Written.of_type,
    }
)
"""What ``linnet convert --to`` calls a form -> what makes it of the type after the colon ("": none was given)."""

__all__ = ["FORMS", "WRITTEN_FORMS", "Form", "Shapeless", "WrittenForm"]
