"""Fairvisor Edge: a policy enforcement point for API traffic. This is the map of the package.

A request passes, in this order:

    http/           1. bytes to requests and answers to bytes; knows nothing of policies
    proxy/             inline: the request goes on to an upstream, and its answer comes back
    reading.py         one reading of a request, the same for every transport
    context.py      2. one request as the policies see it
    descriptors.py     "jwt:sub" becomes a function from a context to a value, at load
    identity/          who sent it: tokens, addresses behind proxies, countries, bots
    llm/               what it asks of a language model, and what that cost
    route.py        3. the policies that apply to it
    engine.py       4. decide(): the order of evaluation, and only the order
    rules/          5. one module per kind of limit
    counters/       6. the shared memory that all workers count in; knows nothing of rules
    decision.py     7. what was decided, and why
    response.py     8. a decision becomes status, headers and body
    metrics/           what is counted on the way
    exposition.py      the numbers, as Prometheus reads them
    audit.py           every enforcement action, as lines that a flood cannot make large

Before the first request:

    cli/            the commands, one module each
    replay/         access logs, decided as they would have been
    applog.py       where log lines go, and how they look
    outlet.py       lines to standard error, which nothing waits for
    settings.py     every FAIRVISOR_* variable, declared once
    setting_reading.py how one setting is read, from a flag, a variable or a file
    setting_values.py how the values of settings are read
    secret_values.py  secrets of the settings: read, and compared with what is shown
    setting_names.py  variables that look like settings and are none
    master.py       the process that starts, reloads and replaces the workers
    master_signals.py what signals mean to it and to the workers
    lame_duck.py    the time between being asked to stop and stopping
    cpu_quota.py    how many processors this process may use
    bundle/         the policy bundle: load, validate, compile
    bundle_file.py  whether the bundle file changed since it was offered, or in force
    reload.py       a new bundle for all workers: checked, shared, acknowledged
    offered.py      what the audit log says of a bundle that was offered
    follow.py       the active bundle of a worker, and how it switches
    leader.py       what one worker does for all: watch the file, save, sweep, tidy
    reset.py        an instance that does not run, forgotten
    snapshots.py    what outlives a reboot, written and found again
    key_sets.py     the key sets that one worker fetched, for all of them and for the next start
    beside.py       the threads beside the requests of a worker
    periodic.py     a thread that takes a step again and again, whatever goes wrong
    reporter.py     the thread that writes the audit log
    top_keys.py     who is rejected most
    lookup.py       one counter or breaker, found by names and values
    status.py       what an instance is doing, for the person on call
    actor.py        who did something, as the audit log names them
    pending.py      records on their way to the audit log, from any process
    chain.py        lines that name the line before by its hash
    linefile.py     a log that several processes append whole lines to
    state.py        files that outlive the machine's memory
    memory.py       the directory of an instance in shared memory, closed to other users
    notes.py        what went wrong, for every process to read
    processes.py    which process is which, and whether it lives
    bounded_cache.py what was worked out for texts that clients choose, bounded
    visible.py      text for people, with what a terminal would act on escaped
    codings.py      gzip and its kin, taken off a slice at a time
    clock.py        the one place that reads a clock
    errors.py       the exceptions, one small tree

Imports point one way: cli and http use the engine, the engine uses the rules, the rules use the counters.
"""

__version__ = "0.1.0"
