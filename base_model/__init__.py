"""The frozen language model of a federation: named, fetched, verified, cached, loaded, adapted and questioned."""
