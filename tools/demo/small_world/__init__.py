# SPDX-License-Identifier: Apache-2.0
"""The small world: a seeded town and everything that is written, asked and answered about it."""
