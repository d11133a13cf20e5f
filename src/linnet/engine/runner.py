# SPDX-License-Identifier: Apache-2.0
"""Executes a StepPlan: ``launch`` builds the batch and runs the program, ``collect`` reads what its rows are for.

Owns the persistent buffers and the participants' KV states. Order of side effects: launch writes the buffers, then the
states of each participant in order, while masks are filled beside; collect appends scores, then advances matchers.
"""

from collections.abc import Mapping, Sequence

from linnet.backends.interface import Limits, check_batch
from linnet.engine.buffers import BatchBuffers
from linnet.engine.hidden_rows import HiddenRows
from linnet.engine.live import LiveRequest
from linnet.engine.moving import Moved, make_moves
from linnet.engine.participant import Participant
from linnet.engine.score_rows import ScoreRows
from linnet.engine.token_rows import StepOutput, TokenRows
from linnet.scheduler import Hidden, Score, StepPlan


class Runner:
    """The participants' programs, run on one plan after the other.

    ``num_blocks``: of each cache group. The first participant's rows yield tokens; scores may compare it with the
    second.
    """

    def __init__(
        self,
        participants: Sequence[Participant],
        limits: Limits,
        num_blocks: Sequence[int],
        vocabulary: int,
        check: bool = False,
        hidden: str | None = None,
    ) -> None:
        self._participants = tuple(participants)
        self._limits, self._num_blocks, self._vocabulary = limits, num_blocks, vocabulary
        self._buffers = BatchBuffers(limits, len(num_blocks))
        self._tokens, self._scores, self._hidden = TokenRows(vocabulary), ScoreRows(), HiddenRows(hidden)
        self._check = check
        self._moved = Moved()
        self._launched: tuple[StepPlan, Mapping[int, LiveRequest], int] | None = None

    def close(self) -> None:
        """Let go of the executables and their states."""
        self._participants, self._launched = (), None
        self._tokens.close()

    def launch(self, plan: StepPlan, live: Mapping[int, LiveRequest]) -> None:
        """Make the plan's moves, then run the program on its rows. ``live`` has every request of the plan."""
        batch = self._buffers.fill(plan)
        if self._check:
            check_batch(batch, self._limits, self._num_blocks, self._vocabulary)
        computing = [self._participants[index] for index in plan.participants]
        self._moved = make_moves(computing, plan.moves) if plan.moves else Moved()
        self._tokens.foresee(plan, live)
        for participant in computing:
            participant.executable.execute(batch, participant.states)
        assert batch.logit_rows is not None
        self._launched = (plan, live, batch.logit_rows)

    def collect(self) -> StepOutput:
        """Sample, verify and score what ``launch`` computed."""
        assert self._launched is not None, "collect() follows launch()"
        (plan, live, hidden_row), self._launched = self._launched, None  # rows of hidden states follow those of logits
        output = StepOutput(moved=self._moved)
        row = 0
        for item in plan.items:
            one = live[item.request_id]
            for use in item.uses:
                if isinstance(use, Hidden):
                    self._hidden.want(one, use, hidden_row)
                    hidden_row += use.rows
                    continue
                if isinstance(use, Score):
                    self._scores.want(one, use, row, compared=len(item.participants) > 1)
                else:
                    self._tokens.want(one, use, row, output)
                row += use.rows
        first, *others = self._participants
        self._scores.read(first.executable, others[0].executable if others else None)
        self._hidden.read(first.executable)
        self._tokens.read(first.executable, output)
        return output
