"""The cards as tests read them."""

import re
import shlex
from collections.abc import Sequence

from vertebra.tools._cards.facts import ROOT, families

FAMILIES = {family.key: family for family in families()}
KEYS = [*FAMILIES]


def text(key: str) -> str:
    """A family's card."""
    return (ROOT / "model_cards" / f"{key}.md").read_text(encoding="utf-8")


def blocks(key: str, language: str) -> str:
    """The code of a card in one language."""
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", text(key), re.MULTILINE | re.DOTALL))


def commands(key: str) -> Sequence[Sequence[str]]:
    """The commands of a card, without the name of the program."""
    return [shlex.split(line)[1:] for line in blocks(key, "bash").splitlines() if line]
