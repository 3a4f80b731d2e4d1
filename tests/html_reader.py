"""HTML as a list of its elements, for tests of pages."""

from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "input", "link", "br"}


class Reader(HTMLParser):
    """Every element with its attributes, the elements around it and its text; fails where tags do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[dict[str, Any]] = []
        self.elements: list[dict[str, Any]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = {"tag": tag, "in": [each["tag"] for each in self.open], "text": "", **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append({"tag": tag, "in": [each["tag"] for each in self.open], "text": "", **dict(attrs)})

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [element for element in self.elements if element["tag"] == tag]


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader
