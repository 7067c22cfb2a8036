"""All supported ways to write a change."""

from engine.lora.images.form import Form
from engine.lora.images.hadamard import Hadamard
from engine.lora.images.kronecker import Kronecker
from engine.lora.images.low_rank import LowRank

FORMS: tuple[Form, ...] = (LowRank(), Hadamard(), Kronecker())
