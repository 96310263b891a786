"""Everything that knows MQTT: connect, publish, acknowledge, record. Knows nothing of federated learning."""
