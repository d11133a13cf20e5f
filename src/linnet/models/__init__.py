# SPDX-License-Identifier: Apache-2.0
"""Model families as data: config -> ArchSpec -> Program, and a checkpoint's weights by reference."""

from linnet.models.families import arch_spec, supported_architectures
from linnet.models.inventory import LinearInfo
from linnet.models.load import ModelSource, load_model
from linnet.models.spec import ArchSpec

__all__ = ["ArchSpec", "LinearInfo", "ModelSource", "arch_spec", "load_model", "supported_architectures"]
