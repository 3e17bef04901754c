"""The ledger: every rule about jobs, one function per transition, the state it leaves named in the WHERE.

    versions            in: a turn's version becomes a job, or supersedes one
    decision            whether a version is wanted, and what a caller asks to have back
    claims              out: a job is claimed, acknowledged record by record, finished
    confirmations       delivered jobs are read back, sent again, given up
    readback            how reading back goes at a destination
    maintenance         what no wake-up brings: orphans, what is due, the clock
    pruning             what there is no room for, or what is too old
    limits              what binds the jobs of one folder alone
    eviction            jobs that gave up their bodies, which OpenCode's store has
    policy_enforcement  what the settings in force forbid: jobs are held, or dropped to be captured again
    adoption            jobs that change their destination
    history             all versions of a session's turns, and what Helicone knows their records by (record_identity)
    notices             what the plugin said and is not read yet; how each turn was when it was last read
    dead_letters        what is dead or dropped, for who looks into it; dead ones come back or go for good
    counts              numbers, for people
    counters            the same of each day, which outlive the jobs
    listing, sent       jobs one by one, for people: by what they are asked for, and by what left
    job                 what these take and give: bodies, versions, claims
    destinations, flow  where jobs go, and how much of them now; folders, incidents: what stands beside the jobs

The picture of the states stands at the head of migrations/0001_initial.sql, and what came to it in those after it.
Functions take the connection first; those that need several statements open their own transaction, so the caller must
not be inside one. Times come in as milliseconds UTC: nothing here reads a clock.
"""
