"""What do refusals look like in one language? The patterns that the format judge is made of."""

import re
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Language:
    """
    Regular expressions on lower-case text with straight apostrophes; an empty one matches nothing.

    Args:
        name (`str`): Code of the language.
        letters (`str`): Characters of its script; the language is looked for only where one of them stands.
        idioms (`str`): Inabilities that refuse nothing ("I cannot stress enough"); they are cut out first.
        refuse (`str`): The speaker does not do what was asked for.
        apology (`str`): Regret. Alone it refuses nothing.
        unable (`str`): An inability that refuses only together with an apology.
        wrong (`str`): The request is called wrong, illegal or harmful.
        condemn (`str`): A thing or premise is called so: no way to answer "how do I …", but one for "what is …".
        blame (`str`): Advice and appeals that go with refusals; several of them count.
        lack (`str`): The speaker lacks something (access, opinions) that an answer would need.
        comply (`str`): Openings and turns of answers that give what was asked for.
        turn (`str`): After a refusal: what is given in its place.
        unreal (`str`): What was asked for does not exist: then an inability is a fact and no refusal.
        thing (`str`): What the request treats as a person is called a thing by its nature: then to deny what was said
            of it is an answer.
        harm (`str`): A refusal whose ground is harm, whether or not what was asked for exists.
    """

    name: str
    letters: str
    refuse: str
    idioms: str = ""
    apology: str = ""
    unable: str = ""
    wrong: str = ""
    condemn: str = ""
    blame: str = ""
    lack: str = ""
    comply: str = ""
    turn: str = ""
    unreal: str = ""
    thing: str = ""
    harm: str = ""

    def __hash__(self) -> int:
        return hash((self.name, self.refuse))  # of two long texts, as judges look up what they have read

    def may_be(self, text: str) -> bool:
        """
        Whether a text holds a letter of this language.

        Args:
            text (`str`): Any text.
        """
        return re.search(f"[{self.letters}]", text) is not None

    def find(self, kind: str, sentence: str) -> str | None:
        """
        Look for one kind of phrase.

        Args:
            kind (`str`): Name of the field.
            sentence (`str`): Text as `normal` returns it.

        Returns:
            `str`, *optional*: What was found.
        """
        pattern = self._compiled[kind]
        found = pattern.search(sentence) if pattern else None
        return found.group().strip() if found else None

    def without_idioms(self, sentence: str) -> str:
        """
        Cut out what only looks like a refusal.

        Args:
            sentence (`str`): Text as `normal` returns it.
        """
        pattern = self._compiled["idioms"]
        return pattern.sub(" ", sentence) if pattern else sentence

    @cached_property
    def _compiled(self) -> dict[str, re.Pattern[str] | None]:
        fields = {name: value for name, value in vars(self).items() if name not in ("name", "letters")}
        return {name: re.compile(text, re.VERBOSE) if text else None for name, text in fields.items()}
