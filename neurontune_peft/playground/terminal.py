"""The playground in a terminal, or from a file: one request or command per line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TextIO

from neurontune_peft.playground.session import Playground

HELP = """\
Any other line is a request; each stands alone, nothing is remembered.
/strength X [ROLE]      0 is the base model, 1 the adapter as trained
/counts ROLE=N ...      only the N top-ranked neurons of a role; ROLE=all brings them back
/threshold X            where the trigger fires; without X, the adapter's own
/preset NAME            a setting that was measured and stored in the adapter
/attack NAME            put requests into an attack template; without NAME, no longer
/attacks                the names of the attacks
/base                   show or hide the base model's answer
/neurons                show or hide which neurons fired most
/show                   where the dials stand
/help, /quit"""
MOST_NEURONS = 5


class Terminal:
    """
    Reads lines, writes answers.

    Args:
        playground ([`Playground`]): The model and its dials.
        out (`TextIO`): Answers go there.
        err (`TextIO`): Refused commands go there.
    """

    def __init__(self, playground: Playground, *, out: TextIO, err: TextIO) -> None:
        self.playground = playground
        self.out = out
        self.err = err
        self.attack: str | None = None
        self.with_base = True
        self.with_neurons = False
        self.refused = 0  # how many commands were wrong
        self._commands: dict[str, Callable[[list[str]], None]] = {
            "strength": self._strength,
            "counts": self._counts,
            "threshold": self._threshold,
            "preset": self._preset,
            "attack": self._attack,
            "attacks": lambda words: self._say("\n".join(playground.attacks)),
            "base": self._base,
            "neurons": self._neurons,
            "show": lambda words: self._say(self.setting),
            "help": lambda words: self._say(HELP),
        }

    @property
    def setting(self) -> str:
        """`str`: Where the dials stand, in a line."""
        play = self.playground
        words = [
            f"{role}: strength {play.strengths[role]:g}, {count} of {play.totals[role]} neurons"
            for role, count in play.counts.items()
        ]
        if play.threshold is not None:
            words.append(f"threshold {play.threshold:.3f}")
        return "; ".join([*words, f"attack {self.attack or 'none'}"])

    def run(self, lines: Iterable[str]) -> None:
        """
        Answer line after line until `/quit` or the end.

        Args:
            lines (`Iterable[str]`): What is typed.
        """
        for line in lines:
            text = line.strip()
            if text == "/quit":
                return
            if text:
                self.take(text)

    def take(self, text: str) -> None:
        """
        Answer a request, or obey a command; what is wrong with one is said, and the chat goes on.

        Args:
            text (`str`): One line.
        """
        try:
            if text.startswith("/"):
                name, *words = text[1:].split()
                if name not in self._commands:
                    raise ValueError(f"got /{name}; expected one of {sorted(self._commands)} or quit; see /help")
                self._commands[name](words)
            else:
                self._answer(text)
        except ValueError as error:
            self.refused += 1
            print(f"neurontune: {error}", file=self.err, flush=True)

    def _answer(self, text: str) -> None:
        play = self.playground
        prompt = play.attacked(text, self.attack)
        if self.with_base:
            self._piece("base   ")
            play.base(prompt, self._piece)
            self._say("")
        self._piece("tuned  ")
        _, state = play.tuned(prompt, self._piece)
        self._say("")
        if state is not None:
            self._say(f"trigger {state}")
        if self.with_neurons:
            for neuron in play.neurons(prompt)[:MOST_NEURONS]:
                self._say(
                    f"neuron {neuron.site}[{neuron.index}] ({neuron.role}): activation {neuron.activation:.3f}, scale "
                    f"{neuron.scale:.3f}"
                )

    def _strength(self, words: list[str]) -> None:
        if not 1 <= len(words) <= 2:
            raise ValueError(f"got /strength with {len(words)} words; expected a number and maybe a role; see /help")
        self.playground.set_strength(_number(words[0]), *words[1:])
        self._say(self.setting)

    def _counts(self, words: list[str]) -> None:
        counts: dict[str, int | None] = {}
        for word in words:
            role, _, count = word.partition("=")
            if not (count == "all" or count.isdecimal()):
                raise ValueError(f"got count '{word}'; expected ROLE=NUMBER or ROLE=all; write for example safety=64")
            counts[role] = None if count == "all" else int(count)
        self.playground.set_counts(**counts)
        self._say(self.setting)

    def _threshold(self, words: list[str]) -> None:
        self.playground.set_threshold(_number(words[0]) if words else None)
        self._say(self.setting)

    def _preset(self, words: list[str]) -> None:
        self.playground.use_preset(" ".join(words))
        self._say(self.setting)

    def _attack(self, words: list[str]) -> None:
        name = " ".join(words) or None
        self.playground.attacked("", name)  # refuses an unknown one
        self.attack = name
        self._say(self.setting)

    def _base(self, words: list[str]) -> None:
        self.with_base = not self.with_base
        self._say(f"base answers {'shown' if self.with_base else 'hidden'}")

    def _neurons(self, words: list[str]) -> None:
        self.with_neurons = not self.with_neurons
        self._say(f"neurons {'shown' if self.with_neurons else 'hidden'}")

    def _piece(self, text: str) -> None:
        print(text, end="", file=self.out, flush=True)

    def _say(self, text: str) -> None:
        print(text, file=self.out, flush=True)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"got '{word}'; expected a number; write for example 0.5") from None
