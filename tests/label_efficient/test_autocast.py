"""Half precision: where it is chosen, what runs in it, and that outputs are single again."""

import pytest
import torch

from label_efficient.engine.autocast import AutocastInferer, half_precision, scales_gradients


class Linear(torch.nn.Linear):
    """Remembers the type that it computed in."""

    def forward(self, inputs, factor=1):
        """A list of vectors, a dictionary of batches, or B x 4, to the same kinds of outputs."""
        if isinstance(inputs, dict):
            return {name: self(value) for name, value in inputs.items()}
        output = super().forward(torch.stack(inputs) if isinstance(inputs, list) else inputs) * factor
        self.dtype = output.dtype
        return (output, output.argmax(dim=1)) if factor != 1 else output


@pytest.mark.parametrize(("amp", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_a_network_runs_in_half_precision_on_a_cpu_and_answers_in_single(amp, dtype):
    network, batch = Linear(4, 2), torch.randn(3, 4)
    exact = network(batch)
    for inputs in (batch, list(batch), {"image": batch}):
        output = AutocastInferer(amp=amp)(inputs, network)
        output = output["image"] if isinstance(output, dict) else output
        assert network.dtype == dtype and output.dtype == torch.float32
        torch.testing.assert_close(output, exact, rtol=0.03, atol=0.03)
        assert torch.equal(output, exact) != amp
    logits, classes = AutocastInferer(amp=amp)(batch, network, factor=2)
    assert logits.dtype == torch.float32 and classes.dtype == torch.int64
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_auto_is_half_on_a_gpu_and_where_a_cpu_has_the_instructions(has_bfloat16, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    found = {device: half_precision("auto", device) for device in ("cpu", "cuda:1", "mps")}
    assert found == {"cpu": has_bfloat16, "cuda:1": True, "mps": False}
    assert [scales_gradients(amp, "cuda:0") for amp in (True, "auto", False)] == [True, True, False]
    assert not any(scales_gradients(amp, "cpu") for amp in (True, "auto", False))
    with pytest.raises(ValueError, match="amp is 'often', expected true, false or auto"):
        half_precision("often", "cpu")
