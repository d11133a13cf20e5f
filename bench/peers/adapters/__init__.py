# SPDX-License-Identifier: Apache-2.0
"""One small file per engine: ``open_model(path, settings) -> Run``, as ``worker.py`` defines it.

``settings``: threads, context_tokens, max_sequences. Greedy, exactly as many new tokens as asked, prompts as ids.
"""
