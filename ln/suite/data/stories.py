"""Generated stories: a few characters, each with places and things of their own, who persist through a book."""

import random

PEOPLE = [
    "Ada",
    "Ben",
    "Clara",
    "Dov",
    "Edith",
    "Felix",
    "Greta",
    "Hugo",
    "Ida",
    "Jonas",
    "Kate",
    "Leo",
    "Mary",
    "Ned",
    "Olga",
    "Paul",
]
PLACES = [
    "mill",
    "harbour",
    "garden",
    "tower",
    "market",
    "forest",
    "bridge",
    "kitchen",
    "stable",
    "chapel",
    "meadow",
    "library",
]
THINGS = ["lamp", "letter", "basket", "ring", "book", "rope", "knife", "cloak", "drum", "map", "apple", "violin"]
GLAD, SORRY = ["glad", "merry", "proud", "calm", "hopeful"], ["sad", "angry", "weary", "afraid", "lonely"]
FINE, POOR = ["fine", "lovely", "bright", "splendid", "good"], ["broken", "ugly", "dull", "dreadful", "bad"]

STORIES, SCENES = 48, 12


def stories() -> list[str]:
    """STORIES texts of SCENES paragraphs; always the same.

    Who is where, who carries what and how they feel is kept from sentence to sentence, so that a sentence tells much
    of its neighbours.
    """
    return [_story(random.Random(f"story {number}")) for number in range(STORIES)]


def _story(draw: random.Random) -> str:
    people = draw.sample(PEOPLE, 3)
    places = draw.sample(PLACES, 3)
    holds = dict(zip(people, draw.sample(THINGS, 3), strict=True))
    feels = {person: draw.choice(GLAD + SORRY) for person in people}
    scenes = []
    for _ in range(SCENES):
        who, other = draw.sample(people, 2)
        place, thing = draw.choice(places), holds[who]
        sentences = [f"{who} went to the {place} with the {thing}.", f"At the {place} {who} met {other}."]
        if draw.random() < 0.5:
            sentences += [f'"Is that my {thing}?" asked {other}.', f"{who} gave the {thing} to {other}."]
            holds[who], holds[other] = holds[other], thing
            feels[other] = draw.choice(GLAD)
        else:
            sentences += [f"{other} wanted the {thing}.", f"But {who} kept the {thing}."]
            feels[other] = draw.choice(SORRY)
        sentences.append(f"{other} was {feels[other]}, and {who} was {feels[who]}.")
        if draw.random() < 0.4:
            sentences.append(f"Then {other} left the {place}.")
        scenes.append(" ".join(sentences))
    return "\n\n".join(scenes)
