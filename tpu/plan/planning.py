"""From compiled shapes to a plan: memory against HBM, time, what binds, sentences a second."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final

from tpu.chips import Topology
from tpu.plan.compiled import Compiled, compile_job, slice_mesh
from tpu.plan.cost import Cost
from tpu.plan.jobs import Encode, Train, linear_weights


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a job needs and costs on one mesh, per device and step; of several shapes their mean.

    Attributes:
        fits: Whether needed_bytes are at most hbm_bytes.
        needed_bytes: Bytes of arguments, temporaries, results and code.
        flops: FLOP of all matrix products.
        bytes: Bytes of arguments and results, each touched at least once.
        compute_s: Seconds of compute, compiler-estimated.
        collective_s: Seconds of waiting for the links.
        copy_s: Seconds of waiting for copies out of HBM.
        kernel_s: Seconds of Pallas kernels, by our own count.
        estimated_s: Sum of these four.
        link_s: Seconds in which the links are busy, overlapped or not.
        roofline_s: Largest of FLOP over peak, bytes over bandwidth, and link_s; `bound` names it.
        useful_mfu: FLOP of real tokens (2 or 4 for each weight of a linear layer) over peak.
        utilization: FLOP of real tokens, attention's too, over peak; None for a training step.
        unpriced: Instructions without an estimate, by opcode.
        notes: Sentences that the plan leaves out or cuts.
    """

    model: str
    job: str
    topology: str
    mesh: str
    shapes: str
    fits: bool
    hbm_bytes: int
    argument_bytes: int
    temp_bytes: int
    needed_bytes: int
    flops: float
    bytes: float
    collectives: Sequence[dict[str, Any]]
    compute_s: float | None
    collective_s: float | None
    copy_s: float | None
    kernel_s: float | None
    estimated_s: float | None
    link_s: float | None
    roofline_s: float | None
    bound: str
    sentences_per_s: float | None
    useful_mfu: float | None
    utilization: float | None
    real_tokens: float
    unpriced: dict[str, float]
    compile_s: float
    notes: Sequence[str] = ()


def make_plan(name: str, job: Encode | Train, topology: Topology, mesh: tuple[int, int]) -> Plan:
    """Compile a job for a mesh over all chips of a slice and judge it."""
    compiled = compile_job(job, topology, slice_mesh(topology, mesh))
    fits = all(c.cost is not None and c.needed_bytes <= topology.chip.hbm_bytes for c in compiled)
    memory: dict[str, Any] = {
        field: max(getattr(c, field) for c in compiled)
        for field in ("argument_bytes", "temp_bytes", "needed_bytes")
    }
    times = _times(compiled, job, topology) if fits else dict.fromkeys(_TIMES)
    others: dict[str, Any] = {"bound": "memory", "collectives": [], "unpriced": {}} | times
    return Plan(
        model=name,
        job=type(job).__name__.lower(),
        topology=str(topology),
        mesh=f"{mesh[0]}x{mesh[1]}",
        shapes=", ".join(c.step.label for c in compiled),
        fits=fits,
        hbm_bytes=topology.chip.hbm_bytes,
        **memory,
        flops=_mean(compiled, lambda c: c.flops),
        bytes=_mean(compiled, lambda c: c.argument_bytes + c.output_bytes),
        real_tokens=_mean(compiled, lambda c: c.step.tokens),
        compile_s=sum(c.compile_s for c in compiled),
        notes=job.notes,
        **others,
    )


_TIMES: Final = (
    *("compute_s", "collective_s", "copy_s", "kernel_s", "estimated_s", "link_s", "roofline_s"),
    *("sentences_per_s", "useful_mfu", "utilization"),
)


def _mean(compiled: Sequence[Compiled], value: Callable[[Compiled], float]) -> float:
    """Return the mean over the steps of the stream."""
    return sum(c.step.share * value(c) for c in compiled)


def _times(compiled: Sequence[Compiled], job: Encode | Train, topology: Topology) -> dict[str, Any]:
    chip = topology.chip
    total = Cost()
    for c in compiled:
        assert c.cost is not None  # what fits was compiled
        total.add(c.cost, c.step.share)
    terms = {
        "compute": _mean(compiled, lambda c: c.flops) / chip.peak,
        "memory": _mean(compiled, lambda c: c.argument_bytes + c.output_bytes) / chip.bandwidth,
        "collectives": total.link_s,
    }
    bound = max(terms, key=lambda name: terms[name])
    tokens = _mean(compiled, lambda c: c.step.tokens)
    useful = 2.0 * job.passes * linear_weights(job.config) * tokens
    needed = job.flops_per_token * tokens if isinstance(job, Encode) else None
    most = total.total_s * topology.devices * chip.peak
    return {
        "compute_s": total.compute_s,
        "collective_s": total.collective_s,
        "copy_s": total.copy_s,
        "kernel_s": total.kernel_s,
        "estimated_s": total.total_s,
        "link_s": total.link_s,
        "roofline_s": terms[bound],
        "bound": bound,
        "sentences_per_s": _mean(compiled, lambda c: c.step.sentences) / total.total_s,
        "useful_mfu": useful / most,
        "utilization": None if needed is None else needed / most,
        "collectives": sorted(
            map(dataclasses.asdict, total.collectives.values()), key=lambda c: -c["link_s"]
        ),
        "unpriced": dict(total.unpriced),
    }
