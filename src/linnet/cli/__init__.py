# SPDX-License-Identifier: Apache-2.0
"""Composition root: parse, build, call. The only room that reads the environment."""
