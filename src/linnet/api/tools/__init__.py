# SPDX-License-Identifier: Apache-2.0
"""Tools and thoughts in answers: found, enforced and read. See interface."""

from linnet.api.tools.answer import Answer, AnswerForm, AnswerReader
from linnet.api.tools.asked import ToolsError
from linnet.api.tools.choosing import Enforced, ModelForms, ToolUse, check_parsers
from linnet.api.tools.interface import NO_PARAMETERS, CallPiece, Delta, Tool

__all__ = [
    "NO_PARAMETERS",
    "Answer",
    "AnswerForm",
    "AnswerReader",
    "CallPiece",
    "Delta",
    "Enforced",
    "ModelForms",
    "Tool",
    "ToolUse",
    "ToolsError",
    "check_parsers",
]
