# SPDX-License-Identifier: Apache-2.0
"""What is raised where a law of the scheduler does not hold."""


class InvariantError(AssertionError):
    """A law of the scheduler does not hold: a defect of Linnet or a misuse by its engine, never the user's input."""
