"""What travels between nodes and the coordinator: messages, topics, adapters, codecs and chunks. No I/O lives here."""
