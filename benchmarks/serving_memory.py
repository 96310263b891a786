"""One process that only serves: what it needs at each stage, as JSON. Started by edge.py.

python benchmarks/serving_memory.py GRAPH MODEL_FOLDER ADAPTER.safetensors LAYOUT.json
"""

import http.client
import json
import sys
import time
from pathlib import Path

from base_model.chat_tokens import ChatTokens, Turn
from base_model.reference import ResolvedModel
from edge_node.memory import give_back_memory, share_one_heap
from edge_node.serving.answering import Answering
from edge_node.serving.export import ServedModel
from edge_node.serving.http import application
from edge_node.serving.inference import Inference, ServedVersion
from edge_node.serving.session import Session
from edge_node.watching import HttpServer
from schemas.adapter import Adapter, Layout

ANSWER = 64  # tokens, after a prompt of about 128
Memory = dict[str, float]


def main() -> None:
    """Load, take up an adapter, answer; print memory in MB after each."""
    graph, folder, body, layout = map(Path, sys.argv[1:])
    share_one_heap()
    stages = {"idle": megabytes()}
    begun, processor = time.monotonic(), time.process_time()
    chat = ChatTokens(folder)
    give_back_memory()
    session = Session(ServedModel(ResolvedModel("", folder, ""), "q41x", graph))
    load = {"wall_s": time.monotonic() - begun, "cpu_s": time.process_time() - processor}
    stages["loaded"] = megabytes()
    inference = Inference(session)
    take_up(inference, layout, body)
    stages["adapter"] = megabytes()
    turn = [{"role": "user", "content": "turn on the lamp in the kitchen " * 16}]
    stages["answering"], stages["serving"] = answered(inference, chat, turn)
    assert "torch" not in sys.modules
    print(json.dumps({**stages, "load": load}))


def answered(inference: Inference, chat: ChatTokens, turns: list[Turn]) -> tuple[Memory, Memory]:
    """Over HTTP, two answers at once, two times: memory while the last ones stream, and after them."""
    answering = Answering(inference, chat, parallel=2, waiting=8, timeout_s=600)
    server = HttpServer(application(inference, answering, inference.session.model.resolved, ANSWER), "127.0.0.1", 0)
    server.start()
    body = json.dumps({"messages": turns, "max_tokens": ANSWER, "stream": True})
    for _ in range(2):
        connections = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(2)]
        for connection in connections:
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        streams = [connection.getresponse() for connection in connections]
        lines = [line for stream in streams for line in iter(stream.readline, b"")][-1:]
        assert lines, "there was no answer"
    during = megabytes()
    time.sleep(1)  # the answering threads give back what they needed
    after = megabytes()
    answering.stop()
    server.stop()
    return during, after


def take_up(inference: Inference, layout: Path, body: Path) -> None:
    """Serve the adapter; its values are not kept."""
    adapter = Adapter.from_safetensors(Layout.model_validate_json(layout.read_bytes()), body.read_bytes())
    inference.swap(inference.prepare(adapter, ServedVersion(1, 1), adapter.digest))


def megabytes() -> Memory:
    """Resident and anonymous memory now, and the highest resident so far, in millions of bytes."""
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return {
        name: round(int(text.split(f"\n{key}:")[1].split()[0]) * 1024 / 1e6, 1)
        for name, key, text in (
            ("rss", "Rss", rollup),
            ("anonymous", "Anonymous", rollup),
            ("peak_rss", "VmHWM", status),
        )
    }


if __name__ == "__main__":
    main()
