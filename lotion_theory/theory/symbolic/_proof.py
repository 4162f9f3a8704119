"""What a machine proof is, whichever engine runs it: a claim, a statement, a scope, and a function that computes."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

SCOPES = {
    "any": "any adjacent levels lo <= w <= hi, fixed or moving but not random: every format that does not clip",
    "uniform": "adjacent levels k s and (k + 1) s of a uniform grid",
    "absmax": "levels that are multiples of the largest magnitude of the block, which is itself a level",
    "fixed-scale": "levels that do not depend on the weights",
    "sr-scale": "a scale that is itself rounded randomly between two grids",
    "quadratic": "quadratic losses, rounded independently between any adjacent levels",
    "half": "IEEE half precision, finite values, every operation rounded to nearest even",
    "minifloat": "binary floats of 6 to 8 bits, finite values, every operation rounded to nearest even",
}


@dataclass(frozen=True)
class Result:
    """Outcome of one proof. ``counterexample`` is a point where the statement fails, or the witness of a statement
    that something exists; values are exact, written as text."""

    proved: bool
    detail: str
    seconds: float
    counterexample: dict[str, str] | None = None


@dataclass(frozen=True)
class Proof:
    """One machine-checked statement; ``scope`` is a key of :data:`SCOPES`, ``method`` is ``sympy`` or ``z3``."""

    claim: str
    name: str
    statement: str
    scope: str
    method: str
    run: Callable[[], Result]


# What an engine answers for one obligation: holds or not, why, and a point.
Verdict = tuple[bool, str, dict[str, str] | None]


def claim_order(claim: str) -> int:
    """Sort key that puts ``C2`` before ``C10``, and ``C18b`` with ``C18``."""
    return int(claim[1:].rstrip("bcd"))


class Registry:
    """Collects proofs into a plain dict. ``check`` decides one obligation, whatever that is for the engine."""

    def __init__(self, method: str, check: Callable[[object], Verdict]) -> None:
        self.method = method
        self.check = check
        self.proofs: dict[str, list[Proof]] = {}

    def proof(self, claim: str, statement: str, scope: str = "any") -> Callable:
        """Decorate a function that yields ``(label, obligation)``; all must hold, and there must be at least one."""
        if scope not in SCOPES:
            raise ValueError(f"unknown scope {scope!r}; valid: {', '.join(SCOPES)}")

        def register(obligations: Callable[[], Iterable[tuple[str, object]]]) -> Callable:
            def run() -> Result:
                return self._run(obligations)

            proof = Proof(claim, obligations.__name__, statement, scope, self.method, run)
            self.proofs.setdefault(claim, []).append(proof)
            return obligations

        return register

    def _run(self, obligations: Callable[[], Iterable[tuple[str, object]]]) -> Result:
        start, count, point = time.perf_counter(), 0, None
        for label, obligation in obligations():
            holds, why, found = self.check(obligation)
            if not holds:
                return Result(False, f"{label}: {why}", time.perf_counter() - start, found)
            count, point = count + 1, found or point
        detail = f"{count} obligation{'s' * (count != 1)} discharged" if count else "nothing was checked"
        return Result(count > 0, detail, time.perf_counter() - start, point)

    def run_all(self, claims: Iterable[str] | None = None) -> list[tuple[Proof, Result]]:
        """Run the proofs of ``claims`` (all by default) in order. ``KeyError`` on a claim that has none here."""
        wanted = sorted(self.proofs, key=claim_order) if claims is None else list(claims)
        for claim in wanted:
            if claim not in self.proofs:
                valid = ", ".join(sorted(self.proofs, key=claim_order))
                raise KeyError(f"no {self.method} proof for claim {claim!r}; valid: {valid}")
        return [(proof, proof.run()) for claim in wanted for proof in self.proofs[claim]]
