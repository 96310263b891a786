"""`alignfed codec`: write adapter files in the codecs that travel, read them back, and look at what is in a body."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from commands.console import FAILED, FAILURE, USAGE, Json, ending, fail, note, print_table

if TYPE_CHECKING:
    from schemas.adapter import Adapter

CodecName = Literal["kltp", "int8", "fp16", "fp32", "safetensors"]

CodecOption = Annotated[CodecName, typer.Option("--codec", help="What the body is written in.")]
LayoutFile = Annotated[
    Path,
    typer.Option(
        "--layout", metavar="ADAPTER", help="An adapter file with the body's names and shapes: a body has none."
    ),
]
Body = Annotated[Path, typer.Argument(metavar="BODY", help="A body as it travels.")]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Compress adapters as nodes do, and look inside.")


@app.command("list", epilog=ending("alignfed codec list"))
def list_codecs(as_json: Json = False) -> None:
    """List every codec, what it loses, and how small it makes a delta.

    The ratio to fp32 is a usual one, measured as docs/codec.md says. The best for updates comes first.
    """
    from schemas.codec import CODECS, UPDATE_CODECS

    if as_json:
        facts = [
            {"codec": name, "updates": name in UPDATE_CODECS, "typical_ratio": c.typical_ratio, "loses": c.loses}
            for name, c in CODECS.items()
        ]
        print(json.dumps(facts, indent=2))
        return
    rows = [
        [name, "yes" if name in UPDATE_CODECS else "no", f"{codec.typical_ratio:g}x", codec.loses]
        for name, codec in CODECS.items()
    ]
    print_table(["codec", "for updates", "smaller", "loses"], rows)


@app.command("encode", epilog=ending("alignfed codec encode delta.safetensors delta.kltp --end adapter.safetensors"))
def encode_delta(
    delta: Annotated[Path, typer.Argument(metavar="DELTA", help="An adapter file: what training changed.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the body goes.")],
    end: Annotated[
        Path | None,
        typer.Option(metavar="ADAPTER", help="The adapter that training came to. kltp measures what it loses by it."),
    ] = None,
    codec: CodecOption = "kltp",
    step: Annotated[float, typer.Option(help="kltp's step: 2 halves the bytes of 1, and loses more.")] = 1.0,
) -> None:
    """Write a delta as a body, as a node would send it."""
    from schemas.codec import encode

    adapter = _adapter(delta)
    try:
        body = encode(adapter, codec, end=None if end is None else _adapter(end), step=step)
    except ValueError as error:
        fail(str(error), USAGE)
    out.write_bytes(body)
    note(f"{len(body)} bytes in {out}: {4 * adapter.layout.size / len(body):.1f} times smaller than float32")


@app.command(
    "decode",
    epilog=ending("alignfed codec decode delta.kltp restored.safetensors --layout adapter.safetensors", FAILURE),
)
def decode_body(
    body: Body,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the adapter file goes.")],
    layout: LayoutFile,
    codec: CodecOption = "kltp",
) -> None:
    """Read a body back into an adapter file."""
    from schemas.codec import CodecError, decode

    try:
        adapter = decode(body.read_bytes(), _adapter(layout).layout, codec)
    except CodecError as error:
        fail(f"{body} is no {codec} body of the layout of {layout}: {error}", FAILED)
    out.write_bytes(adapter.to_safetensors())
    note(f"{adapter.layout.size} values in {out}, norm {adapter.norm:.4g}")


@app.command("info", epilog=ending("alignfed codec info delta.kltp --layout adapter.safetensors", FAILURE))
def show_body(body: Body, layout: LayoutFile, codec: CodecOption = "kltp", as_json: Json = False) -> None:
    """Show what is in a body.

    Its bytes by part, and for kltp the quantiser's step and how many rows of each factor were worth sending.
    """
    from schemas.codec import CodecError, decode

    raw, shape = body.read_bytes(), _adapter(layout).layout
    try:
        facts: dict[str, Any] = {
            "codec": codec,
            "bytes": len(raw),
            "ratio": round(4 * shape.size / max(len(raw), 1), 2),
            "norm": decode(raw, shape, codec).norm,
            "parts": {"values": len(raw)},
        }
        if codec == "kltp":
            facts |= _kltp(raw, shape)
    except CodecError as error:
        fail(f"{body} is no {codec} body of the layout of {layout}: {error}", FAILED)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    print(f"{codec}, {len(raw)} bytes, {facts['ratio']} times smaller than float32; norm {facts['norm']:.4g}")
    print(", ".join(f"{part} {size}" for part, size in facts["parts"].items()))
    if codec == "kltp":
        print(f"version {facts['version']}, step {facts['step']:.4g}")
        print_table(["factor", "rows", "sent"], [[f["name"], str(f["rows"]), str(f["sent"])] for f in facts["factors"]])


def _kltp(body: bytes, layout: Any) -> dict[str, Any]:
    import numpy as np

    from schemas.kltp import VERSION, read

    contents, parts = read(body, layout)
    rows = [min(shape) for _, shape in layout.tensors]
    sent = [int(np.count_nonzero(part)) for part in np.split(contents.buckets, np.cumsum(rows)[:-1])]
    names = [name for name, _ in layout.tensors]
    factors = [{"name": n, "rows": r, "sent": s} for n, r, s in zip(names, rows, sent, strict=True)]
    return {"version": VERSION[-1], "step": contents.step, "parts": parts, "factors": factors}


def _adapter(file: Path) -> "Adapter":
    """An adapter file, with its layout as far as names and shapes say it."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    from schemas.adapter import A_SUFFIX, Adapter, Layout, LoraConfig

    try:
        tensors = load(file.read_bytes())
        ranks = [tensor.shape[0] for name, tensor in tensors.items() if name.endswith(A_SUFFIX)]
        shapes = tuple((name, tensors[name].shape) for name in sorted(tensors))
        layout = Layout(lora=LoraConfig(rank=max(ranks, default=1)), tensors=shapes)
        return Adapter.from_tensors(layout, tensors)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        fail(f"{file} is no adapter file: {str(error).splitlines()[0]}", FAILED)
