# SPDX-License-Identifier: Apache-2.0
"""What admission leaves free for those who run: the blocks that their answers are still expected to need.

Nothing is taken ahead: a request holds blocks for its known tokens, and a window is only a number that a newcomer must
leave. It is asked anew whenever somebody could be admitted, so it follows what has been learnt meanwhile, and it grows
as an answer outgrows what was predicted (growing windows: the scheduling of Tencent's HCF). So who is admitted has to
make way less often, and starts later. No token depends on it.
"""

from collections.abc import Sequence

from .config import Reserve
from .lengths import AnswerLengths
from .policy import OrderedRequests
from .request import Request


class Reservations:
    """One block for each running request ('none': its next token may need one), or all that its answer will need: as
    past answers let expect, and twice what it has where it has more ('past'), or as it is allowed to ('limit')."""

    def __init__(self, reserve: Reserve, block_size: int) -> None:
        self._reserve, self._block_size = reserve, block_size
        self._past = AnswerLengths()

    def ended(self, request: Request) -> None:
        """A request has gone; learn from it."""
        if self._reserve == "past":
            self._past.ended(request)

    def ahead(self, request: Request) -> int:
        """Blocks that it will need beyond those of its known tokens; 0 where nothing is predicted. Mutates nothing."""
        if self._reserve == "none":
            return 0
        known = len(request.known)
        tokens = max(request.prompt_tokens + self._answer_tokens(request), known)
        return -(-tokens // self._block_size) - -(-known // self._block_size)

    def of_running(self, requests: Sequence[Request] | OrderedRequests) -> int:
        """Blocks to be left for these, one for each at least. Mutates nothing."""
        if self._reserve == "none":  # asked for every newcomer of every step
            return len(requests)
        return sum(max(self.ahead(request), 1) for request in requests)

    def _answer_tokens(self, request: Request) -> int:
        allowed, generated = request.max_new_tokens, request.generated_tokens
        if self._reserve == "limit":
            return allowed
        expected = int(self._past.expect(request.tenant) or 0)
        return min(expected if generated < expected else 2 * generated, allowed)
