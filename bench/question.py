"""What is asked: a body that has one place for a number and one for white space.

Who sends it, wrk by `load.lua` or a check in Python, makes the same bytes of it.
"""

from dataclasses import dataclass

import orjson

# A word and the space after it.
_WORD = "word "
_SPACES = 24
_USER = '{"role":"user","content":"'
HEADERS = {"content-type": "application/json", "authorization": "Bearer sk-bench"}


@dataclass(frozen=True, slots=True)
class Question:
    """One request but for its number; `extra`: members of the body, as JSON, a comma after each."""

    path: str = "/v1/chat/completions"
    model: str = "gpt-4o"
    extra: str = ""
    words: int = 362  # makes the body 2 KB

    def parts(self) -> tuple[str, str, str]:
        """Before the white space, between that and the number, and after it; none has a newline."""
        model = orjson.dumps(self.model).decode()
        if self.path.endswith("/embeddings"):
            return f'{{"model":{model},{self.extra}', '"input":"', '"}'
        system = '{"role":"system","content":"You are a helpful assistant that answers in prose."}'
        between = f'"temperature":0,"max_tokens":400,"messages":[{system},{_USER}'
        return f'{{"model":{model},{self.extra}', between, f' {_WORD * self.words}"}}]}}'

    def body(self, number: int = 0) -> bytes:
        """The bytes that `load.lua` sends for this number, without its spellings."""
        before, between, after = self.parts()
        return f"{before}{' ' * _SPACES}{between}{number:08d}{after}".encode()


CHAT = Question()
STREAM = Question(extra='"stream":true,')
