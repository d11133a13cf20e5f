# SPDX-License-Identifier: Apache-2.0
"""A conversation on a terminal: turns, the commands that begin with a slash, and what Ctrl-C means.

Every turn sends the whole conversation; the engine's prefix cache makes that cost only what is new. An answer that
Ctrl-C ends stays in the conversation as far as it came; a message that got no answer is taken back.
"""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from linnet.cli.partners import Partner
from linnet.cli.standard_input import standard_input
from linnet.errors import ConfigError, LinnetError

HELP = """\
/help          this list
/system TEXT   tell the model what it is; without a text: show it
/reset         forget the conversation, keep the system text
/save FILE     write the conversation to a new file (JSON)
/quit          leave; Ctrl-D does too
Ctrl-C ends an answer."""


class Conversation:
    """``say`` gets the pieces of answers, ``note`` the sentences about them; nothing else is printed."""

    def __init__(
        self,
        partner: Partner,
        say: Callable[[str], None],
        note: Callable[[str], None],
        system: str | None = None,
    ) -> None:
        self._partner, self._say, self._note = partner, say, note
        self._system = system
        self.turns: list[dict[str, str]] = []
        self.interrupted = False
        """Whether Ctrl-C ended the last answer."""

    @property
    def messages(self) -> list[dict[str, str]]:
        """What the model is sent, and what /save writes."""
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        return system + self.turns

    def take(self, line: str) -> bool:
        """One line of the user: a command or a message. False when the user wants to leave."""
        if not line.strip():
            return True
        if line.startswith("/"):
            return self._command(line)
        try:
            self.ask(line)
        except ConfigError as error:  # too long, or refused by the template: the next line may do better
            self._note(str(error))
        return True

    def ask(self, text: str) -> None:
        """Send a message and print the answer as it comes. Raises ConfigError; the message is taken back then."""
        self.turns.append({"role": "user", "content": text})
        answer = ""
        try:
            answer = self._answer()
        finally:
            if answer:
                self.turns.append({"role": "assistant", "content": answer})
            else:
                self.turns.pop()

    def _answer(self) -> str:
        answer, ended = "", None
        with _interrupts() as interrupted:
            for said in self._partner.answer(self.messages, interrupted):
                self._say(said.text)
                answer += said.text
                ended = said.ended
            self.interrupted = interrupted()
        self._say("\n")
        if self.interrupted:
            self._note("the answer was interrupted")
        elif ended:
            self._note(ended)
        return answer

    def _command(self, line: str) -> bool:
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name in ("/quit", "/exit", "/bye"):
            return False
        if name in ("/help", "/?"):
            self._note(HELP)
        elif name in ("/reset", "/clear"):
            self.turns.clear()
            self._note("the conversation is forgotten")
        elif name == "/system":
            self._system = rest or self._system
            self._note(f"the system text is: {self._system}" if self._system else "there is no system text")
        elif name == "/save":
            self._save(rest)
        else:
            self._note(f"there is no command {name}; /help lists them")
        return True

    def _save(self, name: str) -> None:
        if not name:
            self._note("/save needs the name of a file")
            return
        try:
            with Path(name).expanduser().open("x", encoding="utf-8") as file:
                file.write(json.dumps({"messages": self.messages}, ensure_ascii=False, indent=2) + "\n")
        except FileExistsError:
            self._note(f"{name} exists already; give another name")
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a home that cannot be found
            self._note(f"{name} cannot be written: {getattr(error, 'strerror', None) or error}")
        else:
            self._note(f"{len(self.messages)} messages are in {name}")


def converse(conversation: Conversation, interactive: bool, note: Callable[[str], None]) -> None:
    """Take the user's lines until they end: typed ones with a prompt and line editing, or one a line from a pipe.

    Raises KeyboardInterrupt where Ctrl-C ended an answer and nobody types the next line.
    """
    if not interactive:
        for line in standard_input():
            if not conversation.take(line.rstrip("\n")):
                return
            if conversation.interrupted:
                raise KeyboardInterrupt
        return
    import readline  # noqa: F401  # gives input() its editing and history

    while True:
        try:
            line = input(">>> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            note("Ctrl-D or /quit leaves")
            continue
        except UnicodeDecodeError:
            note("that was not UTF-8 text")
            continue
        try:
            if not conversation.take(line):
                return
        except LinnetError as error:  # this answer failed; the conversation need not
            note(str(error))


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed in the body; a second one interrupts the program.

    A step of the engine is never torn: an exception in the middle of one would leave it unusable.
    """
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
