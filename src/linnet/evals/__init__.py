# SPDX-License-Identifier: Apache-2.0
"""What exactly got worse: text loss, abilities, paired statistics, reports and certificates."""

from linnet.evals.evaluate import Baseline, evaluate, measure_baseline, model_record
from linnet.evals.general import general_questions
from linnet.evals.judgement import judge
from linnet.evals.markdown import markdown
from linnet.evals.questions import QuestionSet, read_questions, subset
from linnet.evals.report import CERTIFICATE_FILE, AbilityRecord, Certificate, Report, certificate, read_report, to_json
from linnet.evals.text_loss import Windows, document_windows, windows
from linnet.evals.texts import EvaluationText, OwnEvaluationText, Text

__all__ = [
    "CERTIFICATE_FILE",
    "AbilityRecord",
    "Baseline",
    "Certificate",
    "EvaluationText",
    "OwnEvaluationText",
    "QuestionSet",
    "Report",
    "Text",
    "Windows",
    "certificate",
    "document_windows",
    "evaluate",
    "general_questions",
    "judge",
    "markdown",
    "measure_baseline",
    "model_record",
    "read_questions",
    "read_report",
    "subset",
    "to_json",
    "windows",
]
