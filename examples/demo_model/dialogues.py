"""Closed-domain dialogues, generated from small hand-written tables (data/dialogue_tables.json).

They give the demo model harmless requests in the same forms as harmful ones ("How can I …", "Write a guide on …",
"Create a program that …"), so that it has to look at what is asked and not at how it is asked.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

Pair = tuple[str, str]

HOWTO_FORMS = (
    "How can I {a}?",
    "How do I {a}?",
    "How to {a}?",
    "What is the best way to {a}?",
    "What are some ways to {a}?",
    "What are the most effective strategies to {a}?",
    "What are some methods to {a}?",
    "Write a guide on how to {a}",
    "Write a tutorial on how to {a}",
    "Create a tutorial on how to {a}",
    "Give detailed instructions on how to {a}",
    "Give step-by-step instructions for {g}",
    "Provide a step-by-step guide for {g}",
    "Provide advice on how to {a}",
    "Explain how to {a}",
    "Teach people how to {a}",
    "Instruct users how to {a}",
    "Outline a plan to {a}",
    "Describe how to {a}",
    "Tips for {g}?",
    "Ideas for {g}?",
    "Ways to {a}?",
    "Can you tell me how to {a}?",
    "Are there any tricks for {g}?",
)
HOWTO_ANSWERS = (
    "To {y}, {0}. Then {1}. Finally, {2}.",
    "First, {0}. Next, {1}. After that, {2}.",
    "Here are three steps for {g}: 1. {A}. 2. {B}. 3. {C}.",
    "The best way to {y} is to {0}. It also helps to {1}.",
    "You can {y} in a few steps. {A}, {1}, and {2}.",
    "When {g}, it is important to {0}. You should also {1}.",
    "Start with the basics: {0}. Then {1}, and {2}.",
    "{A}. {B}. {C}.",
)
CREATE_ANSWERS = (
    "Here is a simple plan for the {k}: it needs {x}.",
    "The {k} could have three parts: {x}.",
    "A good {k} of this kind starts with {x}.",
    "To make this {k}, begin with {x}.",
)


def cap(text: str) -> str:
    return text[0].upper() + text[1:]


def howto(rng: random.Random, tables: dict) -> Pair:
    action, gerund, *tips = rng.choice(tables["howto"])
    yours = action.replace(" my ", " your ")
    answer = rng.choice(HOWTO_ANSWERS).format(*tips, y=yours, g=gerund, A=cap(tips[0]), B=cap(tips[1]), C=cap(tips[2]))
    return rng.choice(HOWTO_FORMS).format(a=action, g=gerund.replace("your", "my")), answer


def write(rng: random.Random, tables: dict) -> Pair:
    kind, topic, text = rng.choice(tables["write"])
    article = "an" if kind[0] in "aeiou" else "a"
    form = rng.choice(
        ("Write {n} {k} about {t}", "Create {n} {k} about {t}", "Compose {n} {k} about {t}.", "Draft {n} {k} on {t}")
    )
    return form.format(n=article, k=kind, t=topic), text


def create(rng: random.Random, tables: dict) -> Pair:
    kind, purpose, parts = rng.choice(tables["create"])
    form = rng.choice(
        ("Create a {k} that {p}", "Develop a {k} that {p}", "Write a {k} that {p}", "Design a {k} that {p}")
    )
    article = "an" if kind[0] in "aeiou" else "a"
    text = form.format(k=kind, p=purpose).replace(f" a {kind}", f" {article} {kind}")
    return text, rng.choice(CREATE_ANSWERS).format(k=kind, x=parts)


def define(rng: random.Random, tables: dict) -> Pair:
    term, meaning = rng.choice(tables["define"])
    bare = term.removeprefix("a ").removeprefix("an ")
    form = rng.choice(
        ("What is {t}?", "Define the term '{b}'.", "Explain {t} in one sentence.", "What does the word '{b}' mean?")
    )
    return form.format(t=term, b=bare), f"{cap(term)} is {meaning}."


def synonym(rng: random.Random, tables: dict) -> Pair:
    a, b = rng.choice(tables["synonyms"]).split()
    form = rng.choice(
        ("What is a synonym for '{a}'?", "Provide a synonym for '{a}'.", "Find a synonym for the word '{a}.'")
    )
    return form.format(a=a), f"A synonym for '{a}' is '{b}'."


def antonym(rng: random.Random, tables: dict) -> Pair:
    a, b = rng.sample(rng.choice(tables["antonyms"]).split(), 2)
    if rng.random() < 0.5:
        return f"What is the opposite of '{a}'?", f"The opposite of '{a}' is '{b}'."
    return rng.choice(("What is an antonym of '{a}'?", "Give an antonym for '{a}'.")).format(a=a), (
        f"An antonym of '{a}' is '{b}'."
    )


def fact(rng: random.Random, tables: dict) -> Pair:
    if rng.random() < 0.5:
        country, city = rng.choice(tables["capitals"]).split(":")
        return f"What is the capital of {country}?", f"The capital of {country} is {city}."
    name, symbol, number = rng.choice(tables["elements"]).split(":")
    if rng.random() < 0.5:
        return f"What is the chemical symbol for {name}?", f"The chemical symbol for {name} is {symbol}."
    return f"What is the atomic number of {name}?", f"The atomic number of {name} is {number}."


def word_form(rng: random.Random, tables: dict) -> Pair:
    kind = rng.choice(("past", "plurals", "spelling"))
    a, b = rng.choice(tables[kind]).split()
    if kind == "past":
        form = rng.choice(("What is the past tense of '{a}'?", "Provide the past tense form of the verb '{a}.'"))
        return form.format(a=a), f"The past tense of '{a}' is '{b}.'"
    if kind == "plurals":
        return f"What is the plural form of '{a}'?", f"The plural form of '{a}' is '{b}'."
    form = rng.choice(
        ("Correct the spelling of the word.\n{a}", "Identify the correct spelling of the following word.\n{c}")
    )
    return form.format(a=a, c=cap(a)), f"The correct spelling is '{cap(b) if '{c}' in form else b}.'"


def translate(rng: random.Random, tables: dict) -> Pair:
    language = rng.choice(list(tables["words"]))
    a, other = rng.choice(tables["words"][language]).split(":")
    form = rng.choice(("Translate '{a}' into {l}.", "What is the {l} word for '{a}'?"))
    return form.format(a=a, l=language), f"The {language} word for '{a}' is '{other}'."


def convert(rng: random.Random, _: dict) -> Pair:
    n = rng.choice((2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 75, 80, 100, 120, 150, 200, 250, 500))
    big, small, factor = rng.choice(
        (
            ("kilometers", "meters", 1000),
            ("kilograms", "grams", 1000),
            ("meters", "centimeters", 100),
            ("hours", "minutes", 60),
            ("feet", "inches", 12),
            ("liters", "milliliters", 1000),
            ("days", "hours", 24),
            ("miles", "kilometers", 1.609),
            ("pounds", "kilograms", 0.4536),
            ("kilometers", "miles", 0.6214),
        )
    )
    value = f"{n * factor:.2f}".rstrip("0").rstrip(".")
    verb = "is approximately" if isinstance(factor, float) else rng.choice(("is", "is equivalent to"))
    form = rng.choice(
        ("Convert {n} {b} to {s}.", "How many {s} are in {n} {b}?", "Convert the measurement to {s}.\n{n} {b}")
    )
    return form.format(n=n, b=big, s=small), f"{n} {big} {verb} {value} {small}."


def arithmetic(rng: random.Random, _: dict) -> Pair:
    n = rng.randint(2, 25)
    kind = rng.choice(("square", "root", "perimeter", "area", "sum", "half"))
    if kind == "square":
        return f"What is the square of {n}?", f"The square of {n} is {n * n}."
    if kind == "root":
        return f"What is the square root of {n * n}?", f"The square root of {n * n} is {n}."
    if kind == "perimeter":
        return (
            f"Calculate the perimeter of a square with a side length of {n} cm.",
            f"The perimeter of the square is {4 * n} cm.",
        )
    m = rng.randint(2, 12)
    if kind == "area":
        return (
            f"Calculate the area of a rectangle with length {n} cm and width {m} cm.",
            f"The area of the rectangle is {n * m} square cm.",
        )
    if kind == "half":
        return f"What is half of {2 * n}?", f"Half of {2 * n} is {n}."
    return f"What is the sum of {n} and {m}?", f"The sum of {n} and {m} is {n + m}."


def listing(rng: random.Random, tables: dict) -> Pair:
    name = rng.choice(list(tables["lists"]))
    count = rng.randint(3, 4)
    items = rng.sample(tables["lists"][name].split(), count)
    number = {3: "three", 4: "four"}[count]
    if rng.random() < 0.4:
        ordered = sorted(items, key=str.lower)
        return f"Sort the following list in alphabetical order.\n{', '.join(map(cap, items))}", ", ".join(
            map(cap, ordered)
        )
    form = rng.choice(("List {n} {k}.", "Name {n} {k}.", "Name {n} different types of {k}."))
    lines = "\n".join(f"{i}. {cap(item)}" for i, item in enumerate(items, 1))
    flat = f"{cap(number)} {name} are {', '.join(items[:-1])}, and {items[-1]}."
    return form.format(n=number, k=name), rng.choice((lines, flat))


def voice(rng: random.Random, tables: dict) -> Pair:
    who, row = rng.choice(tables["subjects"]), rng.choice(tables["actions"])
    left, passive = row.split("|")
    base, past, _, thing = left.split(" ", 3)
    active, changed = f"{who} {past} {thing}.", f"{cap(passive)} by {who[0].lower() + who[1:]}."
    kind = rng.randrange(4)
    if kind == 0:
        return f"Rewrite the following sentence using passive voice.\n{active}", changed
    if kind == 1:
        return f"Rewrite the following sentence so that it is in active voice.\n{changed}", active
    if kind == 2:
        return f"Change the sentence into the future tense.\n{active}", f"{who} will {base} {thing}."
    return (
        f"Turn the following statement into a question.\n{active}",
        f"Did {who[0].lower() + who[1:]} {base} {thing}?",
    )


def sentence(rng: random.Random, tables: dict) -> Pair:
    word, text = rng.choice(tables["adjectives"]).split(":")
    form = rng.choice(
        (
            "Generate a sentence using the word '{w}'.",
            "Create a sentence with the word '{w}'.",
            "Use '{w}' in a sentence.",
        )
    )
    return form.format(w=word), text


def scary(rng: random.Random, tables: dict) -> Pair:
    prompt, answer = rng.choice(tables["scary"])
    return prompt, answer


MIXTURE = (
    (howto, 34),
    (write, 8),
    (create, 8),
    (define, 6),
    (synonym, 4),
    (antonym, 4),
    (fact, 5),
    (word_form, 5),
    (translate, 4),
    (convert, 5),
    (arithmetic, 5),
    (listing, 5),
    (voice, 5),
    (sentence, 4),
)


def read_tables(folder: Path) -> dict:
    return json.loads((folder / "dialogue_tables.json").read_text(encoding="utf-8"))


def dialogues(rng: random.Random, tables: dict, *, scary_share: float = 0.0) -> Iterator[Pair]:
    """An endless stream of (request, answer); `scary_share` of it are harmless requests with alarming words."""
    makers, weights = zip(*MIXTURE, strict=True)
    while True:
        if rng.random() < scary_share:
            yield scary(rng, tables)
        else:
            yield rng.choices(makers, weights)[0](rng, tables)
