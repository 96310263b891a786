"""What the graph calls the LoRA factors that come in with a request, for who makes it and who feeds it."""


def factor_names(module: str) -> tuple[str, str]:
    """Inputs for a module's LoRA factors: A transposed, (in, rank), and scaled B transposed, (rank, out)."""
    return f"{module}.lora_A", f"{module}.lora_B"
