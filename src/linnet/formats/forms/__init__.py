# SPDX-License-Identifier: Apache-2.0
"""The forms in which quantised models are published, one object each, asked in order."""

from linnet.formats.forms.awq import Awq
from linnet.formats.forms.base import Form, Shapeless
from linnet.formats.forms.bitsandbytes import BitsAndBytes
from linnet.formats.forms.compressed_tensors import CompressedTensors
from linnet.formats.forms.fp8 import Fp8
from linnet.formats.forms.gguf import Gguf
from linnet.formats.forms.gptq import Gptq
from linnet.formats.forms.hqq import Hqq
from linnet.formats.forms.mxfp4 import Mxfp4
from linnet.formats.forms.quanto import Quanto

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
)
"""The first is also who looks at tensors where a config says nothing."""

__all__ = ["FORMS", "Form", "Shapeless"]
