"""One import registers the classes; without it the package stays light."""

import logging
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from hf_models import opened, write
from mobilemoe.hf import MobileMoEConfig, MobileMoEForCausalLM, MobileMoEModel
from mobilemoe.hub import ASSETS
from model_configs import FAMILY


def python(source: str) -> str:
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout


def test_the_package_itself_imports_neither_torch_nor_transformers():
    assert python("import sys, mobilemoe; print({'torch', 'transformers'} & sys.modules.keys())").strip() == "set()"


def test_a_missing_package_is_one_sentence_that_names_the_extra():
    source = """
import sys
sys.modules["transformers"] = None
try:
    import mobilemoe.hf
except Exception as fault:
    print(type(fault).__name__, fault)
"""
    assert python(source).startswith("MissingExtraError MobileMoE in transformers needs an extra")
    assert "mobilemoe[hf]" in python(source)


@pytest.mark.parametrize("version", ["4.57.1", "5.17.0", "5.23.2"])
def test_a_package_that_is_too_old_is_one_sentence_with_both_versions(version):
    source = f"""
import importlib.metadata
importlib.metadata.version = {{"transformers": {version!r}}}.__getitem__
try:
    import mobilemoe.hf
except Exception as fault:
    print(type(fault).__name__, fault)
"""
    assert python(source).strip() == (
        f"MobileMoEError MobileMoE in transformers needs its version 5.24 or newer, but {version} is installed: "
        "pip install 'mobilemoe[hf]'"
    )


def test_the_auto_classes_know_the_published_layout():
    nano = ASSETS / "nano"
    assert isinstance(config := AutoConfig.from_pretrained(nano), MobileMoEConfig)
    assert isinstance(AutoModel.from_pretrained(nano), MobileMoEModel)
    assert isinstance(AutoModelForCausalLM.from_pretrained(nano), MobileMoEForCausalLM)
    assert AutoTokenizer.from_pretrained(nano).bos_token_id == config.bos_token_id


@pytest.mark.parametrize("form", ["bf16", "int4-out"])
@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_a_device_map_places_the_model(device_map, form, tmp_path):
    model = opened(write(tmp_path / "model", form=form), device_map=device_map)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert torch.isfinite(model(torch.tensor([[5, 6]])).logits).all()


@pytest.mark.parametrize("form", ["bf16", "int4-out"])
def test_layers_may_be_kept_on_disk(form, tmp_path):
    folder = write(tmp_path / "model", form=form)
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    model = opened(folder, device_map={**places, "lm_head": "cpu"}, offload_folder=tmp_path / "offloaded")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, opened(folder)(ids).logits)


def test_the_released_scaling_is_read_without_a_warning(caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    config = MobileMoEConfig(**FAMILY.to_dict())
    logger.removeHandler(caplog.handler)
    assert config.rope_parameters["rope_type"] == "llama3"
    assert caplog.messages == []
