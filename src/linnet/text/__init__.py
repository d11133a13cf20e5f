# SPDX-License-Identifier: Apache-2.0
"""Text in, token ids out, and back: tokenizer, chat templates, incremental decoding, calibration rows."""

from linnet.text.decoder import IncrementalDecoder
from linnet.text.own import OwnDocument, OwnText
from linnet.text.rows import CalibrationRows, calibration_rows, document_rows, encode_document, rows_digest
from linnet.text.template import ChatTemplateError, ChatTemplates
from linnet.text.tokenizer import Tokenizer

__all__ = [
    "CalibrationRows",
    "ChatTemplateError",
    "ChatTemplates",
    "IncrementalDecoder",
    "OwnDocument",
    "OwnText",
    "Tokenizer",
    "calibration_rows",
    "document_rows",
    "encode_document",
    "rows_digest",
]
