"""Expected failures, in one tree. Each says one line to a person, without transcript text or a key.

    AppError                        a command ends with exit code 1
    ├─ UsageError                   with exit code 2: nothing was done
    │  ├─ SettingsError             a setting has a value that cannot be used
    │  ├─ PatternError              a redaction pattern does not compile
    │  ├─ TenantError               the centre has no such tenant or machine, or one already; or it cannot be one
    │  ├─ EndpointError             a URL is none that records can be sent to
    │  └─ ClientError               an HTTP client cannot be built with this key or this proxy
    ├─ TranscriptError              a session's facts break a rule of the transcript
    ├─ ExportError                  a file of `opencode export` cannot be used
    │  └─ StoreError                OpenCode's store cannot be read
    │     └─ AbsentError            there is none yet
    │        └─ InMemoryError       OpenCode keeps it in its own memory
    ├─ UnreadableError              a configuration file of OpenCode cannot be read
    ├─ RelativeError                it names a file relative to a folder that is not known
    ├─ NotJsonError                 it is not JSON with comments
    ├─ LineError                    a line of the plugin cannot be used
    ├─ SchemaError                  the ledger is of a newer program, or its migrations are broken
    ├─ LedgerError                  a row of the ledger holds what it must not hold
    ├─ BundleError                  compressed bodies are damaged
    ├─ DeadLetterError              a dead letter was named that is not there, or could be several
    ├─ UnknownProjectError          a project was named that OpenCode's store does not have
    ├─ UnknownJobError              a job or session was named that is not in the queue, or could be several
    ├─ NoRoomError                  the spool is full, and nobody makes room
    ├─ UnknownSessionError          a session was named that nobody has
    ├─ InstallError                 the plugin's file cannot be written or removed
    ├─ ReadBackError                a destination could not be asked what it has stored
    │  └─ OverlongError             its answer is too long: fewer records are to be asked for
    ├─ AnswerError                  an answer is not JSON, or nested too deeply
    │  └─ TooManyValuesError        it holds too many values
    ├─ DestinationError             a destination was named that is not there, or cannot be moved
    ├─ InUseError                   what is to be removed is in use
    ├─ CentreError                  the centre's database cannot be used
    ├─ UnreadableLedgerError        the ledger cannot be looked at as it is
    ├─ ListenError                  a local server cannot listen as asked
    │  └─ PortTakenError            somebody else listens there
    ├─ ReceiverError                the receiver cannot start as asked
    ├─ FaultError                   a script of the receiver's faults cannot be used
    └─ ReceiverStoreError           a file is not the receiver's store, or a query is not known

Beside it stand failures of the system: PlaceError is an OSError, Damaged a sqlite3.DatabaseError.
"""

from __future__ import annotations


class AppError(Exception):
    """An expected failure."""


class UsageError(AppError):
    """Arguments or settings that cannot be used."""


class ExportError(AppError):
    """A file that is no export. The message says why, without any of its text."""
