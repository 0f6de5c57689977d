"""Importing the package makes NEURONTUNE a PEFT method."""

import copy
import importlib
import pickle
import subprocess
import sys

import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType

import neurontune_peft
from neurontune_peft.tuner._register import register

EXPLANATION = (
    "PEFT or Python changed how enum members are kept; adapt neurontune_peft/tuner/_register.py, the one place that "
    "adds a member to peft.PeftType"
)


def test_the_enum_member_behaves_like_one_that_peft_declares():
    member = PeftType.NEURONTUNE
    assert member is PeftType["NEURONTUNE"] is PeftType("NEURONTUNE"), EXPLANATION
    assert (member.name, member.value, member == "NEURONTUNE", isinstance(member, PeftType)) == (
        "NEURONTUNE",
        "NEURONTUNE",
        True,
        True,
    ), EXPLANATION
    assert list(PeftType).count(member) == 1, EXPLANATION
    assert len(PeftType) == len(list(PeftType)), EXPLANATION
    assert pickle.loads(pickle.dumps(member)) is copy.deepcopy(member) is member, EXPLANATION
    assert f"{peft.LoraConfig().peft_type.value}" == "LORA", EXPLANATION


def test_peft_knows_the_method_by_configuration_tuner_and_prefix():
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.NEURONTUNE] is neurontune_peft.NeuronTuneConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.NEURONTUNE] is neurontune_peft.NeuronTuneModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.NEURONTUNE] == "neurontune_"


def test_importing_twice_changes_nothing():
    before = len(PeftType)
    register()
    importlib.reload(neurontune_peft)
    assert len(PeftType) == before
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.NEURONTUNE] is neurontune_peft.NeuronTuneModel


@pytest.mark.parametrize(
    "imports",
    [
        "import neurontune_peft, peft",
        "import peft, neurontune_peft",
        "import peft.tuners, peft.auto, transformers; import neurontune_peft; import neurontune_peft",
    ],
)
def test_importing_in_a_subprocess_in_any_order_registers_the_method(imports):
    code = f"{imports}; print(peft.get_peft_config({{'peft_type': 'NEURONTUNE'}}).peft_type.value)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "NEURONTUNE", done.stderr


def test_importing_the_package_loads_nothing_of_the_pipeline():
    code = (
        "import sys, neurontune_peft; parts = ('attribution', 'training', 'evaluation', 'prompts'); "
        "print([part for part in parts if f'neurontune_peft.{part}' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_imported_and_has_a_docstring():
    for name in neurontune_peft.__all__:
        assert getattr(neurontune_peft, name).__doc__, name
        assert name in dir(neurontune_peft)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        neurontune_peft.nothing  # noqa: B018
