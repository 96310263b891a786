"""A conversation as the tokens that the model was trained on, and tokens as text again, without PyTorch.

The prompt is made exactly as training makes it (base_model/tokens.py): an adapter answers well only what looks alike.
It does not know the model or requests.
"""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from base_model.wheel import BaseModelError

if TYPE_CHECKING:  # a node without a model needs none of their memory
    from jinja2 import Template
    from tokenizers import Tokenizer

Turn = dict[str, str]
"""One message: its `role` and its `content`."""


class ChatRefused(ValueError):
    """A conversation that the model's chat template does not take; the text is the template's reason."""


class ChatTokens:
    """The tokenizer and the chat template of a model folder; may be used from any thread."""

    def __init__(self, folder: Path) -> None:
        settings = _json(folder / "tokenizer_config.json")
        self._tokenizer = _tokenizer(folder)
        self._special = {name: _text(value) for name, value in settings.items() if name.endswith("_token")}
        self._template = _template(folder, settings)
        self.stops = self._stop_tokens(folder)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """The tokens after which the model answers; ChatRefused for turns that the template does not take."""
        if self._template is None:
            text = "".join(f"{turn['content']}\n" for turn in turns)
            return list(self._tokenizer.encode(text).ids)
        if any(turn["role"] == "system" for turn in turns):
            return self._templated(turns)
        try:
            # as in training: many templates otherwise insert a long system turn of their own
            return self._templated([{"role": "system", "content": ""}, *turns])
        except ChatRefused:  # of a template without a system role
            return self._templated(turns)

    def answer(self, text: str) -> list[int]:
        """The tokens of an answer, without an end."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    @property
    def end(self) -> int:
        """The token that ends an answer in training. Raises BaseModelError where the tokenizer names none."""
        end = self._tokenizer.token_to_id(self._special.get("eos_token") or "")
        if end is None:
            raise BaseModelError("the tokenizer has no end-of-text token")
        return int(end)

    def count(self, text: str) -> int:
        """How many tokens a text has by itself."""
        return len(self.answer(text))

    def text(self, tokens: Iterable[int], stop_strings: Sequence[str] = ()) -> Iterator[str]:
        """The text of tokens, piece by piece as they come; it ends before the first of `stop_strings`."""
        return until_stop(self._pieces(tokens), stop_strings)

    def _pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        for token in tokens:
            if piece := stream.step(self._tokenizer, token):  # nothing while a character lacks bytes
                yield piece

    def _templated(self, turns: Sequence[Turn]) -> list[int]:
        from jinja2 import TemplateError

        assert self._template is not None
        try:
            text = self._template.render(messages=turns, add_generation_prompt=True, **self._special)
        except TemplateError as fault:
            raise ChatRefused(str(fault)) from fault
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _stop_tokens(self, folder: Path) -> frozenset[int]:
        stops = set[int]()
        for name in ("config.json", "generation_config.json"):
            end = _json(folder / name).get("eos_token_id")
            stops.update(end if isinstance(end, list) else [] if end is None else [end])
        trained_end = self._tokenizer.token_to_id(self._special.get("eos_token") or "")
        return frozenset(stops if trained_end is None else stops | {trained_end})


def until_stop(pieces: Iterable[str], stop_strings: Sequence[str]) -> Iterator[str]:
    """The pieces up to the first stop string; what may be the beginning of one is held back until that is clear."""
    held = ""
    for piece in pieces:
        held += piece
        found = [at for stop in stop_strings if (at := held.find(stop)) >= 0]
        if found:
            if min(found):
                yield held[: min(found)]
            return
        clear = len(held) - max((_begun(held, stop) for stop in stop_strings), default=0)
        if clear:
            yield held[:clear]
            held = held[clear:]
    if held:
        yield held


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


def _tokenizer(folder: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise BaseModelError(
            f"{folder} has no tokenizer.json, and serving reads no other kind of tokenizer. Save it once with "
            "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    return Tokenizer.from_file(str(path))


def _template(folder: Path, settings: dict[str, Any]) -> "Template | None":
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    path = folder / "chat_template.jinja"
    source = path.read_text(encoding="utf-8") if path.is_file() else settings.get("chat_template")
    if isinstance(source, list):  # several, by name
        source = next((one["template"] for one in source if one["name"] == "default"), None)
    if source is None:
        return None
    # a template comes with a model from anywhere: it must not reach anything but its arguments
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals |= {"raise_exception": _raise, "strftime_now": time.strftime}
    try:
        return environment.from_string(source)
    except TemplateError as fault:
        raise BaseModelError(f"the chat template in {folder} cannot be read: {fault}") from fault


def _raise(reason: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(reason)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _text(value: Any) -> str | None:
    """A special token, which some files write with its properties."""
    return value.get("content") if isinstance(value, dict) else value
