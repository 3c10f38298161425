"""What somebody else's JSON object must have before anything is made of it. A bool is no number."""

from collections.abc import Mapping


def expect(document: Mapping[str, object], kind: type, *names: str) -> None:
    """Raise TypeError unless each field is there and of this kind; KeyError where one is missing."""
    for name in names:
        if not isinstance(document[name], kind) or isinstance(document[name], bool):
            raise TypeError(f"{name} is not {kind.__name__}")


def expect_optional(document: Mapping[str, object], kind: type, name: str) -> None:
    """Raise TypeError where the field is there, not null, and of another kind."""
    if document.get(name) is not None:
        expect(document, kind, name)


def expect_optional_texts(document: Mapping[str, object]) -> None:
    """Raise TypeError unless every field is a text or null."""
    for name in document:
        expect_optional(document, str, name)
