"""Text becomes objects at the door, with a hint for every slip."""

import pytest
import torch

from transpike.errors import ArtifactError, SpecError
from transpike.methods.chain import Chain
from transpike.methods.ltb import LTB
from transpike.methods.percentile import Percentile
from transpike.specs import method_from, model_from
from transpike.spiking.plan import Granularity


def test_names_ignore_case_and_dashes() -> None:
    assert method_from("max-norm") == method_from("MaxNorm") == method_from("max_norm")


def test_values_take_the_type_of_the_field() -> None:
    method = method_from("ltb", ["iterations=7", "eta=0.25", "cap=none", "signed=yes", "granularity=unit"])
    assert method == LTB(iterations=7, eta=0.25, cap=None, signed=True, granularity=Granularity.UNIT)


def test_a_plus_makes_a_chain_and_settings_go_to_those_that_have_them() -> None:
    method = method_from("ltb+percentile", ["q=99", "iterations=3"])
    assert isinstance(method, Chain)
    assert method.methods == (LTB(iterations=3), Percentile(q=99.0))


@pytest.mark.parametrize("name", ["", "+", "nonsense", "chain"])
def test_unknown_methods_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match="method"):
        method_from(name)


def test_an_enum_lists_its_choices() -> None:
    with pytest.raises(SpecError, match="layer, channel, unit"):
        method_from("ltb", ["granularity=pixel"])


def test_a_torchvision_network_takes_a_state_dict(tmp_path) -> None:
    model = model_from("torchvision:squeezenet1_1")
    assert not model.training
    state = {name: torch.full_like(x, 0.5) for name, x in model.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    loaded = model_from("torchvision:squeezenet1_1", str(tmp_path / "w.pt"))
    assert all(bool((p == 0.5).all()) for p in loaded.parameters())


def test_a_file_that_is_no_state_dict_is_refused(tmp_path) -> None:
    (tmp_path / "w.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ArtifactError, match=r"w\.pt"):
        model_from("torchvision:squeezenet1_1", str(tmp_path / "w.pt"))


def test_a_factory_must_give_a_module() -> None:
    with pytest.raises(SpecError, match="not a torch"):
        model_from("builtins:dict")
