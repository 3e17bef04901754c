"""Finding: the result of one of `doctor`'s checks, and what a person should know of each fault by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    level: Level
    """problem: something does not work, or is not safe; warning: somebody should look at it."""
    found: str
    todo: str = ""
    name: str = ""
    """Of the fault, one of FAULTS; '' where all is well."""
    instead: str = ""
    """What to type here, where it is not what to type of every fault of this name."""

    @property
    def why(self) -> str:
        """Why it matters."""
        return FAULTS[self.name].why if self.name else ""

    @property
    def command(self) -> str:
        """What to type; '' where no command does it."""
        return self.instead or (FAULTS[self.name].command if self.name else "")


@dataclass(frozen=True, slots=True)
class Fault:
    why: str
    command: str = ""
    """What to type, or where to begin."""
    is_mended: bool = False
    """`doctor --fix` does it: it is safe, and ours."""


_SHOW = "opencode-helicone config show"
_NOT_CAPTURED = "what OpenCode does in that folder is neither captured nor sent"
FAULTS: Mapping[str, Fault] = {
    # --- settings, and OpenCode's files
    "setting-wrong": Fault("no command starts, and nothing is captured, with settings that cannot be used", _SHOW),
    "variable-misspelt": Fault("it may have been meant to withhold something, so nothing is done until it is right"),
    "key-missing": Fault("Helicone takes nothing without one: jobs wait", "opencode-helicone setup"),
    "key-odd": Fault("Helicone's own keys look otherwise: it may be cut off", "opencode-helicone doctor --send"),
    "option-misspelt": Fault(f"it may have been meant to withhold something, so {_NOT_CAPTURED}"),
    "option-refused": Fault("it counts as not set, and the next source decides", _SHOW),
    "pattern-refused": Fault(f"it was to withhold something, so {_NOT_CAPTURED}", _SHOW),
    "config-unreadable": Fault(f"it may withhold something, so {_NOT_CAPTURED}"),
    "block-unknown": Fault("what stands in it has no effect, patterns included"),
    "predecessor-listed": Fault("every session is sent twice, and that one redacts by other rules"),
    "predecessor-spool": Fault("it may hold transcripts that were never redacted"),
    "logins-unreadable": Fault("passwords in it are not known, and so not masked"),
    # --- the machine
    "spool-open": Fault("other users can read what waits there: your transcripts", is_mended=True),
    "spool-unusable": Fault("nothing can be kept there, so nothing is captured", _SHOW),
    "disk-full": Fault("what does not fit is dropped or not captured"),
    "proxy-unusable": Fault("nothing leaves: of proxies only http:// and https:// are understood"),
    "certificates-unusable": Fault("no https:// connection can be made"),
    "certificate-untrusted": Fault("nothing is delivered to a server whose certificate is not trusted"),
    "app-shadowed": Fault("a worker that is started there as in the Procfile loads that package, and fails"),
    "clock-back": Fault("what waits may be tried late"),
    "clock-skewed": Fault("Helicone shows sessions at wrong times, and does not find what was just delivered"),
    # --- OpenCode and the plugin
    "plugin-missing": Fault("sessions are not captured while they go on", "opencode-helicone install-plugin --global"),
    "plugin-changed": Fault("it may not fit this program", "opencode-helicone install-plugin", is_mended=True),
    "plugin-foreign": Fault("sessions are not captured while they go on", "opencode-helicone install-plugin"),
    "plugin-unsafe": Fault("whoever can write there runs code in your OpenCode"),
    "plugin-unfitting": Fault("that OpenCode does not load it", "opencode-helicone install-plugin", is_mended=True),
    "command-not-on-path": Fault("the project's plugin starts nothing", "opencode-helicone install-plugin --global"),
    "opencode-unknown": Fault("which form of the plugin it loads cannot be told", "opencode --version"),
    "opencode-untried": Fault("its store or its plugins may have changed", "opencode-helicone verify"),
    "store-unreadable": Fault("all that is captured is read from it"),
    "store-in-memory": Fault("nobody but OpenCode itself can read it"),
    "history-unmigrated": Fault(
        "OpenCode shows them no more, and they reach Helicone only by", "opencode-helicone backfill"
    ),
    "hook-never-seen": Fault("sessions are not captured while they go on", "opencode-helicone backfill"),
    "environment-differs": Fault("OpenCode's hook works under other settings than those that commands show"),
    "lines-unused": Fault("what the plugin said then is not captured by itself", "opencode-helicone verify"),
    # --- the queue
    "ledger-newer": Fault("a newer version of this program has been here: this one must not write"),
    "ledger-unusable": Fault("the queue is in it"),
    "ledger-damaged": Fault("rows may be missing from the queue", "opencode-helicone verify"),
    "counts-wrong": Fault("what status counts, and what is due, may be wrong", "opencode-helicone flush"),
    "queue-damaged": Fault("a worker is woken late", is_mended=True),
    "no-worker": Fault("jobs wait until one runs", "opencode-helicone flush"),
    "folder-held": Fault("it may withhold something, so nothing of these folders is captured or sent"),
    "sessions-unread": Fault("what is new in them is not captured yet", "opencode-helicone flush"),
    "jobs-elsewhere": Fault("the present key and endpoint do not deliver them", "opencode-helicone destination list"),
    "jobs-dead": Fault("they are not tried again by themselves", "opencode-helicone dead list"),
    "jobs-dropped": Fault("they were not delivered, and will not be", "opencode-helicone dead list --dropped"),
    "incident": Fault("something went wrong that no job tells of"),
    "unerased": Fault("what was purged still lies on this disk", "opencode-helicone dead purge --all", is_mended=True),
    # --- Helicone
    "destination-down": Fault("jobs wait, and are tried again by themselves", "opencode-helicone flush"),
    "destination-refused": Fault("jobs wait until key and address are right", "opencode-helicone setup"),
    "quota-exceeded": Fault("Helicone keeps numbers without texts"),
    "read-back-blind": Fault("whether what was accepted is stored cannot be told", "opencode-helicone doctor --send"),
    "never-stored": Fault("what was accepted is not there", "opencode-helicone doctor --send"),
    "not-sent": Fault("nothing else arrives either"),
    "intake-silent": Fault("nothing is sent before it has said what may leave", "opencode-helicone doctor --send"),
    "intake-unusable": Fault("it may withhold something, so nothing is sent until it can be understood"),
    "intake-away": Fault("what it said last counts, and may be out of date"),
    "intake-refuses": Fault("nothing is taken from this machine", "opencode-helicone setup"),
    "dead-at-centre": Fault("the centre does not try them again by itself", "opencode-helicone dead list"),
}
