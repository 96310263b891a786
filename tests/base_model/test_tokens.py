"""Text to tokens: chat templates, ends of answers, limits."""

from base_model.examples import MAX_ANSWER_TOKENS, MAX_PROMPT_TOKENS, Example
from base_model.language_model import LanguageModel
from base_model.tokens import encode, prompt_tokens

CHAT = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}<assistant>"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT


def test_a_prompt_without_a_chat_template_is_a_line(model: LanguageModel) -> None:
    assert model.tokenizer.decode(prompt_tokens(model.tokenizer, "turn on the lamp")) == "turn on the lamp\n"


def test_a_chat_template_gets_the_prompt_as_the_users_turn(model: LanguageModel) -> None:
    model.tokenizer.chat_template = CHAT
    assert model.tokenizer.decode(prompt_tokens(model.tokenizer, "hello")) == "<system><user>hello<assistant>"


def test_a_chat_template_that_refuses_a_system_turn_gets_none(model: LanguageModel) -> None:
    model.tokenizer.chat_template = NO_SYSTEM
    assert model.tokenizer.decode(prompt_tokens(model.tokenizer, "hello")) == "<user>hello<assistant>"


def test_an_answer_ends_with_end_of_text_and_long_texts_are_cut(model: LanguageModel) -> None:
    encoded = encode(model.tokenizer, Example(prompt="a b " * 2000, completion="c d " * 2000))
    assert len(encoded.prompt) == MAX_PROMPT_TOKENS
    assert len(encoded.answer) == MAX_ANSWER_TOKENS
    assert encoded.answer[-1] == model.tokenizer.eos_token_id
