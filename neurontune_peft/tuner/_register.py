"""Makes `NEURONTUNE` a PEFT method.

This is the only place that relies on the inside of `peft.PeftType` and of `enum`: PEFT offers `register_peft_method`,
but no way to add a name to its closed enum. `tests/test_register.py` explains itself when either changes.
"""

from __future__ import annotations

from typing import Any, cast

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType, register_peft_method

from neurontune_peft.tuner.config import NeuronTuneConfig
from neurontune_peft.tuner.model import NeuronTuneModel
from neurontune_peft.tuner.names import METHOD, PREFIX


def register() -> None:
    """Add the method to PEFT's enum and tables; a second call changes nothing."""
    extend_peft_type(METHOD)
    if PeftType[METHOD] not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(
            name=METHOD.lower(), config_cls=NeuronTuneConfig, model_cls=NeuronTuneModel, prefix=PREFIX
        )


def extend_peft_type(name: str) -> None:
    """
    Add a member to `peft.PeftType` so that it behaves like one written in its class body.

    A plain string as the method's key would not do: transformers' `load_adapter` asks the type for its `value`.

    Args:
        name (`str`): Name and value of the member.
    """
    if name in PeftType.__members__:
        return
    members = cast(Any, PeftType)
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member._sort_order_ = len(members._member_names_)
    member.__objclass__ = PeftType
    # EnumType.__setattr__ refuses to rebind members, and from Python 3.12 on attribute access no longer falls back to
    # the member map, so the class attribute has to be set past it.
    type.__setattr__(PeftType, name, member)
    members._member_names_.append(name)
    members._member_map_[name] = member
    members._value2member_map_[name] = member
