"""Tags: names that an operator gives to entries, to purge them by."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Final

MOST_TAGS: Final = 64
LONGEST_TAG: Final = 128


def normalized_tag(text: str) -> str:
    """The tag as it is stored and compared: any text of a strange kind goes by its hash.

    Longer than `LONGEST_TAG`, or with characters that are not printable or separate tags in a
    header, it is `sha256-` and the digest. Entries and purges both go through here.
    """
    text = text.strip()
    if len(text) <= LONGEST_TAG and text.isprintable() and "," not in text:
        return text
    return "sha256-" + sha256(text.encode(errors="surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class TagTemplate:
    """A tag with places for what a request says, such as `project:{header.x-project}`.

    A place is `header.<name>` or the path of a request field. A request that lacks one of them
    does not get the tag.
    """

    text: str

    @classmethod
    def parse(cls, text: str) -> "TagTemplate":
        """Read a template; ValueError says what is wrong."""
        return cls(text)
