"""What tests of several packages share: a tiny model, and a link with faults."""

import asyncio
import contextlib
import json
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants
from numpy.typing import NDArray
from safetensors.numpy import load_file

from base_model.reference import ResolvedModel, resolve
from edge_node.serving.weights import GGUF_NAMES

TEXT = [
    'turn on the desk lamp in the kitchen {"intent":"TurnOn","area":"kitchen","name":"desk lamp"}',
    'turn off the lights in the office {"intent":"TurnOff","area":"office","domain":"light"}',
    'set the volume to 20 percent {"intent":"SetVolume","volume_level":20}',
]


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a randomly initialised two-layer Llama and a byte-level tokenizer: real, and 0.3 MB."""
    # slow to import, and most tests never need it
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
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
    return folder


@pytest.fixture(scope="session")
def quantised(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    """The tiny model as a GGUF file of Q4_1 blocks and a Q8_0 embedding, beside its conversion to float32."""
    path = tmp_path_factory.mktemp("quantised") / "tiny.gguf"
    _write_gguf(path, tiny_model_dir)
    return resolve(str(path), path.parent / "cache")


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., None]:
    """write_gguf(path, model folder, architecture)."""
    return _write_gguf


def _write_gguf(path: Path, folder: Path, architecture: str = "llama") -> None:
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text()))
    for name, values in load_file(folder / "model.safetensors").items():
        kind = GGMLQuantizationType.Q4_1
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            values = _interleaved(values, heads if "q_proj" in name else kv_heads)
        if values.ndim == 1:
            writer.add_tensor(_gguf_name(name), values)
            continue
        if "embed_tokens" in name:
            kind = GGMLQuantizationType.Q8_0
        writer.add_tensor(_gguf_name(name), quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: GGUFWriter, tokenizer: dict[str, Any]) -> None:
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([TokenType.CONTROL] + [TokenType.NORMAL] * (len(vocabulary) - 1))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_unk_token_id(0)


def _interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _gguf_name(name: str) -> str:
    renamed = name.replace("model.layers.", "blk.").replace("model.embed_tokens", "token_embd")
    renamed = renamed.replace("model.norm", "output_norm")
    for ours, theirs in GGUF_NAMES.items():
        renamed = renamed.replace(ours, theirs)
    return renamed


class FaultProxy:
    """A TCP proxy on a loopback port, for one program to reach another over a link with faults.

    Set the faults at any time: `delay_s` and `bytes_per_s` make the link slow, `cuts` are the bytes towards the target
    after which each next connection is cut, `corrupt` are those (counted in all, from 0) that arrive inverted. Exactly
    the bytes before a cut reach the target; what is on its way back is lost.
    """

    def __init__(self, target_port: int) -> None:
        self.delay_s = self.bytes_per_s = 0.0
        self.cuts: deque[int] = deque()
        self.corrupt: set[int] = set()
        self.bytes_up = self.connections = 0  # that reached the target so far
        self._target_port = target_port
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        started: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve(started)), daemon=True)
        self._thread.start()
        self.port = started.get(timeout=10)

    def cut(self) -> None:
        """Drop every connection now; new ones are let through."""
        self._loop.call_soon_threadsafe(self._drop)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, started: "queue.SimpleQueue[int]") -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        started.put(server.sockets[0].getsockname()[1])
        await self._ended.wait()
        server.close()
        self._drop()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        try:
            target_in, target_out = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            client_out.transport.abort()
            return
        self._open |= {client_out, target_out}
        self.connections += 1
        left = self.cuts.popleft() if self.cuts else None
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(self._up(client_in, target_out, client_out, left), self._down(target_in, client_out))

    async def _up(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, back: asyncio.StreamWriter, left: int | None
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(4096 if left is None else min(4096, left)):
                await self._linger(len(data))
                sink.write(bytes(b ^ 0xFF if self.bytes_up + i in self.corrupt else b for i, b in enumerate(data)))
                self.bytes_up += len(data)
                await sink.drain()
                left = None if left is None else left - len(data)
                if left == 0:
                    back.transport.abort()
                    break
        sink.close()

    async def _down(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(4096):
                await self._linger(len(data))
                sink.write(data)
                await sink.drain()
        sink.close()

    async def _linger(self, size: int) -> None:
        await asyncio.sleep(self.delay_s + (size / self.bytes_per_s if self.bytes_per_s else 0))

    def _drop(self) -> None:
        for end in self._open:
            end.transport.abort()
        self._open.clear()


@pytest.fixture
def fault_proxy() -> Iterator[Callable[[int], FaultProxy]]:
    """fault_proxy(port): a link with faults to a program on that loopback port."""
    proxies: list[FaultProxy] = []

    def start(target_port: int) -> FaultProxy:
        proxies.append(FaultProxy(target_port))
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()
