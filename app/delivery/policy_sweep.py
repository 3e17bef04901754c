"""Policy sweep: after a change of settings, holds, releases or drops the jobs that wait.

settings changed ─▶ held, or due again; made under a looser policy ─▶ dropped (policy) ─▶ captured again
"""

from __future__ import annotations

from collections.abc import Callable

from app.capture.recapture import Recapturer
from app.database import recover
from app.database.connection import Ledger
from app.delivery.deliver import HOLD_MS
from app.delivery.policy_check import PolicyCheck
from app.ledger import policy_enforcement
from app.privacy.policy import Hold, Recapture
from app.privacy.terms import Capture


class PolicySweep:
    def __init__(
        self, policy_check: PolicyCheck, recapturer: Recapturer, destination_id: int, log: Callable[[str], None]
    ) -> None:
        self._policy_check = policy_check
        self._recapturer = recapturer
        self._destination_id = destination_id
        self._log = log
        self._swept: object = None

    @property
    def has_swept(self) -> bool:
        """Whether what waits is held, or not, by the settings as they are."""
        return self._swept is not None

    def look(self, db: Ledger, now_ms: int, wake: Callable[[str], None]) -> bool:
        """Sweep when settings have changed, and capture one session again; whether there may be more of these.

        Without a job that settings bind, none of their files is read: that is most of what an idle tick would do.
        """
        if not policy_enforcement.is_any_bound(db, self._destination_id):
            return False
        basis = self._policy_check.basis(db)
        if basis != self._swept:
            self._sweep(db, now_ms)
            self._swept = basis

        def withheld(folder: str) -> Capture | None:
            """Text is for a hook to redact: it knows the secrets of the OpenCode that it belongs to."""
            found = self._policy_check.capture(db, folder)
            return found if isinstance(found, Capture) and found.policy.mode == "metadata_only" else None

        return self._recapturer.step(db, withheld, now_ms=now_ms, wake=wake)

    def _sweep(self, db: Ledger, now_ms: int) -> None:
        held = dropped = 0
        for folder, made_under in policy_enforcement.made_under(db, self._destination_id):
            match self._policy_check.permit(db, folder, made_under):
                case Hold(reason):
                    while batch := policy_enforcement.hold_folder(
                        db, self._destination_id, folder, due_ms=now_ms + HOLD_MS, reason=reason
                    ):
                        held += batch
                case Recapture():
                    while batch := policy_enforcement.drop_looser(db, self._destination_id, folder, made_under, now_ms):
                        dropped += batch
        released = self._release(db, now_ms)
        if dropped:
            # They hold the bodies that were just dropped.
            for left in recover.forget_copies(db.path).values():
                self._log(left)
        if held or dropped or released:
            self._log(
                f"settings changed: {held} job(s) wait, {released} no longer wait,"
                f" {dropped} made under a looser policy dropped"
            )

    def _release(self, db: Ledger, now_ms: int) -> int:
        """How many jobs are no longer held."""
        released = 0
        for folder in policy_enforcement.held_folders(db, self._destination_id):
            if not isinstance(self._policy_check.capture(db, folder), Hold):
                while batch := policy_enforcement.hold_folder(
                    db, self._destination_id, folder, due_ms=now_ms, reason=None
                ):
                    released += batch
        return released
