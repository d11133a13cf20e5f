# SPDX-License-Identifier: Apache-2.0
"""The source of a job, opened for as long as a segment takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from linnet.compress.job import Job
from linnet.formats import Checkpoint
from linnet.models.load import ModelSource, load_model


@contextmanager
def opened(job: Job) -> Iterator[ModelSource]:
    """Mapped anew, so that the pages a segment touched are given back when it ends."""
    with Checkpoint.open(job.directory, verify=False) as stored:
        if job.codes and stored.lacks_shapes:
            load_model(stored)  # tells it what shapes the config leads to
        arranged = stored.arranged(job.source.spec.arranged)
        shown = arranged.dequantised() if job.codes else arranged
        source = replace(job.source, checkpoint=shown.by_outputs(job.source.by_inputs))
        for transform in job.steps.model_transforms:
            source = transform.apply(source, job.schemes, job.recipe.seed)
        yield source
