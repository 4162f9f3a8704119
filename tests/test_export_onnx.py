"""A quantized model exported by torch to ONNX: its weights are the cast, and onnxruntime's logits are the model's."""

import warnings

import numpy as np
import pytest

from lotion_theory import Quantizer
from tests.model_cases import cast_model, decoder, matrices
from tests.test_export_models import rounding_of

torch = pytest.importorskip("torch")
needs = "needs onnx, onnxscript and onnxruntime, of the extra runtimes"
onnx = pytest.importorskip("onnx", reason=needs)
pytest.importorskip("onnxscript", reason=needs)
onnxruntime = pytest.importorskip("onnxruntime", reason=needs)


@pytest.mark.slow
def test_weights_and_logits(tmp_path):
    from lotion_theory.training import quantized

    model = decoder(depth=1)
    names, q = list(matrices(model)), Quantizer.parse("int4/absmax/block=32")
    points = {name: q.cast(w) for name, w in matrices(model).items()}
    ids = torch.randint(1, 256, (2, 24), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), quantized(model, dict.fromkeys(names, q)):
        warnings.simplefilter("ignore")  # deprecations within the exporter
        torch.onnx.export(model, (ids,), dynamo=True, verbose=False).save(tmp_path / "m.onnx")
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "m.onnx").graph.initializer}
    for point in points.values():
        found = [a for a in stored.values() if np.array_equal(a, point.numpy()) or np.array_equal(a, point.numpy().T)]
        assert len(found) == 1
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: ids.numpy()})
    cast = cast_model(model, points)
    with torch.no_grad():
        assert abs(logits - cast(ids).numpy()).max() <= rounding_of(cast, ids)
