"""Examples that are longer than training reads, counted with the base model's tokenizer where that is here already."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from base_model.chat_tokens import ChatRefused, ChatTokens
from base_model.examples import MAX_ANSWER_TOKENS, MAX_PROMPT_TOKENS, Example
from base_model.reference import folder_at_hand
from edge_node.data.quality import QualityWarning

TEMPLATE_TOKENS = 128  # more than a chat template adds to a prompt


def over_the_limits(training: Sequence[Example], model: str, cache: Path) -> tuple[QualityWarning, ...]:
    """What the model would not read or learn whole; nothing when its tokenizer is not at hand."""
    # a token is a byte at least, so most examples need no counting
    prompts = [e for e in training if len(e.prompt.encode()) + TEMPLATE_TOKENS > MAX_PROMPT_TOKENS]
    completions = [e for e in training if len(e.completion.encode()) >= MAX_ANSWER_TOKENS]
    folder = folder_at_hand(model, cache) if prompts or completions else None
    if folder is None:
        return ()
    tokens = ChatTokens(folder)
    long_prompts = sum(_prompt_tokens(tokens, example) > MAX_PROMPT_TOKENS for example in prompts)
    # the end of the text is a token too
    long_completions = sum(tokens.count(example.completion) >= MAX_ANSWER_TOKENS for example in completions)
    return tuple(_warnings(long_prompts, long_completions))


def _prompt_tokens(tokens: ChatTokens, example: Example) -> int:
    try:
        return len(tokens.prompt([{"role": "user", "content": example.prompt}]))
    except ChatRefused:
        return tokens.count(example.prompt)


def _warnings(prompts: int, completions: int) -> Iterator[QualityWarning]:
    if prompts:
        yield QualityWarning(
            "prompt_over_limit",
            prompts,
            f"{prompts} prompts have more than {MAX_PROMPT_TOKENS} tokens",
            "they are trained on without their beginning: put what matters last, or split them",
        )
    if completions:
        yield QualityWarning(
            "completion_over_limit",
            completions,
            f"{completions} completions have {MAX_ANSWER_TOKENS} tokens or more",
            "they are trained on without their end: shorten them",
        )
