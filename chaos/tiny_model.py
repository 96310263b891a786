"""A base model for tests: a randomly initialised two-layer Llama with a byte-level tokenizer. Real, and 0.3 MB."""

import sys
from pathlib import Path

TEXT = [
    'turn on the desk lamp in the kitchen {"intent":"TurnOn","area":"kitchen","name":"desk lamp"}',
    'turn off the lights in the office {"intent":"TurnOff","area":"office","domain":"light"}',
    'set the volume to 20 percent {"intent":"SetVolume","volume_level":20}',
]


def make_tiny_model(folder: Path) -> None:
    """Write the model's files into a folder; the same files every time."""
    # slow to import, and most tests never need it
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)  # type: ignore[no-untyped-call]
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,  # with the usual 0.02 the output layer is too small for factors to learn anything
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":  # a process of its own forgets PyTorch's memory
    make_tiny_model(Path(sys.argv[1]))
