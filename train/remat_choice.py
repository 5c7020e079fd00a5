"""The rematerialization that a step needs to fit its device, by what the compiler allocates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from prompteol_jax.distributed import Channel
from prompteol_jax.models.memory import device_bytes
from prompteol_jax.ops.scan import Remat
from train.step import TrainStep

ORDER: Final[tuple[Remat, ...]] = ("none", "dots", "full")  # from the fastest to the smallest


class Fit(NamedTuple):
    """How a step fits a device.

    Attributes:
        remat: the fastest that fits, or the smallest where none does.
        program: the step, compiled with it.
        needs: bytes of a device that each one tried needs.
        memory: bytes of a device that may be filled.
    """

    remat: Remat
    program: Any
    needs: dict[str, int]
    memory: int

    def __str__(self) -> str:
        tried = ", ".join(f"{remat} {need / 1e9:.2f} GB" for remat, need in self.needs.items())
        line = f"memory: a step needs {tried} of a device's {self.memory / 1e9:.2f} GB"
        line += f": --remat {self.remat}"
        if self.needs.get(self.remat, 0) > self.memory:
            line += (
                "; it does not fit: more --chunks, --fsdp, a larger --mesh, --dtype bfloat16 help"
            )
        return line


def choose_remat(
    train_step: TrainStep, arguments: tuple, memory: int, order: Sequence[Remat] = ORDER
) -> Fit:
    """Compile a step with each rematerialization until one fits.

    Args:
        arguments: arguments of `train_step.step`, or placeholders of them.
        memory: bytes of a device that may be filled.
        order: choices to try, from the fastest to the smallest.
    """
    needs: dict[str, int] = {}
    programs: dict[str, Any] = {}
    for remat in order:
        programs[remat] = compiled(train_step, remat, arguments)
        needs[remat] = program_bytes(programs[remat], arguments)
        if needs[remat] <= memory:
            break
    # Every process runs the same program: the one that fits the smallest device.
    chosen = ORDER[max(Channel("memory").exchange(ORDER.index(remat)))]
    program = programs.get(chosen) or compiled(train_step, chosen, arguments)
    return Fit(chosen, program, needs, memory)


def compiled(train_step: TrainStep, remat: Remat, arguments: tuple) -> Any:
    """Compile a step with a rematerialization; the program refuses arguments of another shape."""
    return dataclasses.replace(train_step, remat=remat).step.lower(*arguments).compile()


def program_bytes(program: Any, arguments: tuple) -> int:
    """Return the bytes of a device that a step needs: weights, batch, state, the copy of the state
    that is being saved, and all that is computed.
    """
    analysis = program.memory_analysis()
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
        + device_bytes(arguments[0])
    )
