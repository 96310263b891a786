"""The node answers: the base model as an ONNX graph, the adapter in use, requests over HTTP and MQTT."""
