"""What leaves saelab is exact, or is refused."""

from typing import Any

import pytest
from jaxtyping import Float, Int
from torch import Tensor

from saelab import SAE, FormatError, ReLU, TopK, exporting
from saelab.activation_functions import ActivationFunction
from saelab.kernels.encoding import Selected
from saelab.normalization import Normalization


@pytest.mark.parametrize(("activation", "name"), [(TopK(2), "topk"), (ReLU(), "standard")])
def test_saelens_files_are_those_that_save_writes(activation, name, tmp_path):
    sae = SAE(4, 8, activation, normalization=Normalization(scale_in=0.5, scale_out=0.5))
    sae.save(tmp_path / "own")
    written = exporting.export(sae, tmp_path / "out")
    assert [path.name for path in written] == ["cfg.json", "sae_weights.safetensors"]
    for path in written:
        assert path.read_bytes() == (tmp_path / "own" / path.name).read_bytes()
    assert f'"architecture": "{name}"' in written[0].read_text()
    assert not (tmp_path / "out" / "saelab.json").exists()


class Squared(ActivationFunction):
    """An activation function that SAELens does not have."""

    name = "squared"

    def forward(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        return pre_acts.relu().square()

    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        return ReLU().select(pre_acts)

    def at_pairs(
        self,
        pre_acts: Float[Tensor, " pair"],
        indices: Int[Tensor, " pair"],  # noqa: ARG002
    ) -> Float[Tensor, " pair"]:
        return pre_acts.square()

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name}


def test_a_dictionary_that_saelens_cannot_express_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(FormatError, match="cannot be expressed exactly"):
        exporting.export(SAE(4, 8, Squared()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(FormatError, match=r"no export format 'onnx'. There is saelens"):
        exporting.export(SAE(4, 8, TopK(2)), tmp_path, format="onnx")
