"""The join of button and camera: a pure function, used by the joiner's lanes and by `reconcile`."""

from activation.join import RULE_VERSION, join

__all__ = ["RULE_VERSION", "join"]
