"""Scores: the loss, the answers in order, and exact matches."""

from base_model.evaluation import ANSWER_BATCH, evaluate
from base_model.examples import Example
from base_model.language_model import LanguageModel
from base_model.training import TrainingConfig, train
from schemas.adapter import LoraConfig

EXAMPLES = tuple(
    Example(prompt=f"turn on the {room} lamp", completion=f'{{"area":"{room}"}}')
    for room in ("kitchen", "office", "den")
)


def ignore(done: int, total: int) -> None:
    """Nobody watches."""


def test_a_model_that_learned_the_answers_writes_them_exactly(model: LanguageModel, lora: LoraConfig) -> None:
    start = model.initial_adapter(lora, seed=1)
    before = evaluate(model, start, EXAMPLES, ignore)
    config = TrainingConfig(steps=60, batch_size=3, learning_rate=0.01)
    learned = train(model, start, EXAMPLES, config, ignore).adapter
    after = evaluate(model, learned, EXAMPLES, ignore)
    assert before.exact_match == 0
    assert after.answers == tuple(example.completion for example in EXAMPLES)
    assert after.exact_match == 1
    assert after.loss < before.loss


def test_answers_do_not_depend_on_which_other_prompts_share_the_batch(model: LanguageModel, lora: LoraConfig) -> None:
    adapter = model.initial_adapter(lora, seed=1)
    many = tuple(Example(prompt="lamp " * (1 + n % 7), completion='{"area":"den"}') for n in range(ANSWER_BATCH + 3))
    together = evaluate(model, adapter, many, ignore)
    assert together.answers == evaluate(model, adapter, many, ignore).answers
    for n in (0, 6, ANSWER_BATCH + 2):
        assert evaluate(model, adapter, many[n : n + 1], ignore).answers[0] == together.answers[n]


def test_progress_counts_every_example_for_loss_and_for_answers(model: LanguageModel, lora: LoraConfig) -> None:
    heard: list[tuple[int, int]] = []
    evaluate(model, model.initial_adapter(lora, 1), EXAMPLES, lambda done, total: heard.append((done, total)))
    assert heard == [(3, 6), (6, 6)]
