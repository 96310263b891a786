"""Prompts are made as in training, answers come as text piece by piece, and stop strings are never seen."""

import shutil

import pytest
from transformers import AutoTokenizer

from base_model.chat_tokens import ChatRefused, ChatTokens, until_stop
from base_model.reference import DEFAULT_NAME, default_cache, resolve
from base_model.tokens import prompt_tokens
from base_model.wheel import BaseModelError

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ '<s>You are kind</s>' }}{% endif %}"
    "{{ m.role + ': ' + m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
WITHOUT_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)


@pytest.fixture
def folder(tiny_model_dir, tmp_path):
    return shutil.copytree(tiny_model_dir, tmp_path / "model")


def user(content):
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("template", [CHATML, WITHOUT_SYSTEM, None], ids=["chat", "no system role", "no template"])
@pytest.mark.parametrize("prompt", ["turn on the desk lamp", "", "Grüße\n\n{{ x }} 🙂<|end|>"])
def test_a_prompt_has_the_tokens_that_training_gives_it(folder, template, prompt):
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    expected = prompt_tokens(AutoTokenizer.from_pretrained(folder), prompt)
    assert ChatTokens(folder).prompt(user(prompt)) == expected


@pytest.mark.slow
def test_the_default_model_gets_the_prompts_that_it_is_trained_on():
    resolved = resolve(DEFAULT_NAME, default_cache())
    expected = prompt_tokens(AutoTokenizer.from_pretrained(resolved.path), "turn on the light")
    assert ChatTokens(resolved.path).prompt(user("turn on the light")) == expected


def test_a_conversation_with_a_system_turn_keeps_it(folder):
    (folder / "chat_template.jinja").write_text(CHATML)
    turns = [
        {"role": "system", "content": "be brief"},
        *user("hi"),
        {"role": "assistant", "content": "yes"},
        *user("on"),
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert ChatTokens(folder).prompt(turns) == list(expected)


def test_what_a_template_refuses_is_refused_in_its_words(folder):
    (folder / "chat_template.jinja").write_text(WITHOUT_SYSTEM)
    with pytest.raises(ChatRefused, match="System role not supported"):
        ChatTokens(folder).prompt([{"role": "system", "content": "be brief"}, *user("hi")])


def test_a_template_reaches_nothing_but_its_arguments(folder):
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    with pytest.raises(ChatRefused):
        ChatTokens(folder).prompt(user("hi"))


def test_a_model_without_a_readable_tokenizer_is_refused_with_what_to_do(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BaseModelError, match="AutoTokenizer"):
        ChatTokens(folder)


def test_text_comes_piece_by_piece_and_is_the_whole_text(folder):
    text, chat = "turn on the desk lamp: Grüße 🙂", ChatTokens(folder)
    tokens = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    pieces = list(chat.text(tokens))
    assert len(pieces) > 5
    assert "".join(pieces) == text


def test_end_of_text_is_a_stop_token(folder):
    assert ChatTokens(folder).stops == {0}


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["one ", "two ", "three"], ["two"], "one "),
        (["a", "b", "c", "d"], ["bcd"], "a"),
        (["a", "b", "c", "x"], ["bcd"], "abcx"),
        (["abab", "c"], ["abc"], "ab"),
        (["a", "b"], ["b", "a"], ""),
        (["end of i"], ["it"], "end of i"),
        (["whole"], [], "whole"),
    ],
)
def test_an_answer_ends_before_the_first_stop_string(pieces, stops, expected):
    assert "".join(until_stop(pieces, stops)) == expected
