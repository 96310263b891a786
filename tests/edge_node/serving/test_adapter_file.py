"""The adapter file holds what ONNX Runtime's own would hold, and a damaged one is refused."""

import numpy as np
import onnxruntime
import pytest

from edge_node.serving.adapter_file import DamagedAdapterFile, Factor, load_factors, write_factors

PROMPT = [5, 17, 300, 42]


def factors_of(*shapes):
    """Random factors, transposed as an adapter's are; every second one scaled."""
    generator = np.random.default_rng(0)
    return {
        f"layer.{number}.lora_{'AB'[number % 2]}": Factor(
            generator.normal(size=shape).astype(np.float32).T, 1.0 + number % 2
        )
        for number, shape in enumerate(shapes)
    }


@pytest.mark.parametrize(
    "shapes", [[(4, 64)], [(1, 1), (1, 1)], [(4, 63), (17, 4), (1, 5), (3, 1)], [(16, 576), (1536, 16)] * 20]
)
def test_onnx_runtime_reads_the_same_file_as_if_it_had_written_it(tmp_path, shapes):
    factors = factors_of(*shapes)
    write_factors(factors, tmp_path / "ours")
    theirs = onnxruntime.AdapterFormat()
    scaled = {name: np.ascontiguousarray(values * np.float32(scale)) for name, (values, scale) in factors.items()}
    held = {name: onnxruntime.OrtValue.ortvalue_from_numpy(values) for name, values in scaled.items()}
    theirs.set_parameters(held)
    theirs.export_adapter(str(tmp_path / "theirs"))
    ours, theirs = (onnxruntime.AdapterFormat.read_adapter(str(tmp_path / name)) for name in ("ours", "theirs"))
    for read in ("get_format_version", "get_adapter_version", "get_model_version"):
        assert getattr(ours, read)() == getattr(theirs, read)()
    our_values, their_values = ours.get_parameters(), theirs.get_parameters()
    assert our_values.keys() == their_values.keys() == factors.keys()
    for name in factors:
        for one in (our_values[name], their_values[name]):
            np.testing.assert_array_equal(one.numpy(), scaled[name])
            assert one.data_type() == "tensor(float)"


def test_a_name_longer_than_expected_finds_room(tmp_path):
    values = np.ones((2, 3), np.float32)
    write_factors({"m" * 5000: Factor(values)}, tmp_path / "one")
    read = onnxruntime.AdapterFormat.read_adapter(str(tmp_path / "one")).get_parameters()
    np.testing.assert_array_equal(read["m" * 5000].numpy(), values)


@pytest.mark.parametrize("keep", [0, 10, 400])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "one"
    write_factors(factors_of((64, 4), (4, 64)), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedAdapterFile, match="cannot load it"):
        load_factors(path)


def test_writing_a_file_again_leaves_the_loaded_one_as_it_was(session, tmp_path):
    names = sorted(name for name in session.factor_shapes if "layers.0.self_attn.q_proj" in name)
    shapes = [(64, 4), (4, 64)]
    path = tmp_path / "one"
    write_factors({n: Factor(np.full(s, 0.1, np.float32)) for n, s in zip(names, shapes, strict=True)}, path)
    held = load_factors(path)
    before = session.begin(4, held.values).read(PROMPT, [3])
    write_factors({n: Factor(np.full(s, 0.7, np.float32)) for n, s in zip(names, shapes, strict=True)}, path)
    after = session.begin(4, held.values).read(PROMPT, [3])
    np.testing.assert_array_equal(after, before)
