"""``repshift env``."""

from __future__ import annotations

from repshift.analysis.output.terminal import console


def env() -> None:
    """Say what there is here: versions, devices, and by which kernels attention can be computed, or why not."""
    from repshift.analysis.environment.machine import devices, kernels, versions
    from repshift.kernels import KERNELS

    for title, said in (("versions", versions()), ("devices", devices())):
        console.print(title, highlight=False)
        for name, value in said.items():
            console.print(f"  {name:<14}{value}", highlight=False, markup=False, soft_wrap=True)
    found = kernels()
    console.print("attention (--attention, repshift.attention)", highlight=False)
    for name, meaning in KERNELS.items():
        where = [kind for kind, reasons in found.items() if not reasons[name]]
        lacking = dict.fromkeys(reasons[name] for reasons in found.values() if reasons[name])
        served = f"on {' and '.join(where)}: {meaning}" if where else f"no: {'; '.join(lacking)}"
        console.print(f"  {name:<14}{served}", highlight=False, markup=False, soft_wrap=True)
